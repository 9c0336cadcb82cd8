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
    for extra in ("demo", "dev"):
        declared |= requirements(project["optional-dependencies"][extra])
    assert declared <= locked().keys()
    assert LOCK.count("--hash=sha256:") > len(locked())


def test_the_executors_of_clusters_are_locked_apart_from_the_local_run():
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    declared = requirements(project["optional-dependencies"]["cluster"])
    lock = (CLONE / "envs/cluster.lock").read_text()
    layer = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    assert declared <= layer
    assert not layer & locked().keys()  # what the environment below has is not installed twice
    assert lock.count("--hash=sha256:") > len(layer)
    assert "://" not in lock


def test_the_conda_environment_has_the_locked_versions():
    environment = yaml.safe_load((CLONE / "envs/photo-tagger.yaml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    pins = dict(line.split("==") for line in pip)
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    assert set(pins) == requirements(project["dependencies"])
    assert {name: version for name, version in pins.items() if version not in locked()[name]} == {}


def test_no_registry_host_is_written_down():
    assert "://" not in LOCK


def test_object_storage_is_locked_apart_from_the_local_run():
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    declared = requirements(project["optional-dependencies"]["s3"])
    lock = (CLONE / "envs/s3.lock").read_text()
    layer = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.M))
    assert declared <= layer.keys()
    # botocore refuses the version that the local run has; pandas takes both
    assert layer.keys() & locked().keys() == {"python-dateutil"}
    assert lock.count("--hash=sha256:") > len(layer)
    assert "://" not in lock


def test_the_server_of_the_tests_is_locked():
    lock = (CLONE / "envs/s3-server.lock").read_text()
    versions = re.findall(r"^([a-z0-9-]+)==", lock, re.M)
    assert "swift" in versions
    assert lock.count("--hash=sha256:") > len(versions)
    assert "://" not in lock


CONTAINERFILE = (CLONE / "Containerfile").read_text()


def argument(name: str) -> str:
    return re.search(rf'^ARG {name}="?([^"\n]+)"?$', CONTAINERFILE, re.M)[1]


def test_the_image_has_the_versions_of_the_other_environments():
    environment = yaml.safe_load((CLONE / "envs/photo-tagger.yaml").read_text())
    makefile = (CLONE / "Makefile").read_text()
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    assert f"python={argument('PYTHON')}" in environment["dependencies"]
    assert project["requires-python"] == f">={argument('PYTHON')}"
    assert set(re.findall(r"--python-version (\S+)", makefile)) == {argument("PYTHON")}
    assert argument("UV") == re.search(r"^UV\s*:= (\S+)$", makefile, re.M)[1]
    assert all((CLONE / f"envs/{name}.lock").exists() for name in argument("EXTRAS").split())
    assert "envs/requirements.lock" in CONTAINERFILE
    assert CONTAINERFILE.count("--require-hashes") == 2  # no package without one
    assert not re.search(r"pip install(?![^\n]*(uv==|--no-deps|--no-cache))", CONTAINERFILE)


def test_everything_the_image_copies_exists_and_is_not_ignored():
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", CONTAINERFILE, re.M)
        for source in line.split()[:-1]
    }
    lines = (CLONE / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert {source for source in copied if not (CLONE / source).exists()} == set()
    assert {source.split("/")[0] for source in copied} == kept
    assert "*" in lines
    code = {path.name for path in CLONE.glob("*") if path.suffix in ("", ".toml")}
    assert {"Snakefile", "scripts", "config", "registry", "profiles"} <= code & copied


def test_the_image_is_nobodys_in_particular():
    users = re.findall(r"^USER (.+)$", CONTAINERFILE, re.M)
    assert users == ["1000"]
    assert "ENTRYPOINT" not in CONTAINERFILE  # executors bring whole commands
