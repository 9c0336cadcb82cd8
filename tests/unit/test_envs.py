"""The lock file is the one truth about versions."""

import re
import tomllib

import yaml

from phototagger import CLONE

LOCK = (CLONE / "envs/requirements.lock").read_text()


def locked() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK, re.M):
        versions.setdefault(name, set()).add(version)
    return versions


def requirements(group: list[str]) -> set[str]:
    return {re.match(r"[a-z0-9-]+", line)[0] for line in group}


def test_every_declared_dependency_is_locked_with_hashes():
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    declared = requirements(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        declared |= requirements(extra)
    assert declared <= locked().keys()
    assert LOCK.count("--hash=sha256:") > len(locked())


def test_the_conda_environment_has_the_locked_versions():
    environment = yaml.safe_load((CLONE / "envs/photo-tagger.yaml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    pins = dict(line.split("==") for line in pip)
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    assert set(pins) == requirements(project["dependencies"])
    assert {name: version for name, version in pins.items() if version not in locked()[name]} == {}


def test_no_registry_host_is_written_down():
    assert "://" not in LOCK
