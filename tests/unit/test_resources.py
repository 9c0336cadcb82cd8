"""What jobs ask for: enough, more with every attempt, and by every rule."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from workflow.library import make_library

from phototagger import CLONE, gpus, resources, workflow
from phototagger.config import Config, load
from phototagger.plan import Shard
from phototagger.tasks import Task
from phototagger.workflow import Run

RULES = sorted(path.stem for path in (CLONE / "scripts").glob("*.py"))
NOTHING = SimpleNamespace()


@pytest.fixture
def config() -> Config:
    return load(CLONE / "config/config.yaml", {}, {})


def run_of(config: Config, *sizes: int, **facts: Any) -> Run:
    shards = [Shard(f"{n:010x}", "", photos) for n, photos in enumerate(sizes)]
    return Run(config, shards, "", {"setups": {}, **facts}, 0.2)


def clip(config: Config, **changes: Any) -> Config:
    return replace(config, clip=replace(config.clip, **changes))


# ------------------------------------------------------------------------------------ the table


def test_every_script_has_its_line():
    assert sorted(resources.NEEDS) == RULES


def test_memory_and_time_grow_with_attempts_and_photos():
    small, large = (resources.of("thumbs", photos) for photos in (64, 512))
    for name in ("mem_mb", "runtime"):
        first = small[name](NOTHING, 1)
        assert [small[name](NOTHING, n) for n in (2, 3)] == [2 * first, 3 * first]
        assert large[name](NOTHING, 1) > first
    assert large["disk_mb"] > small["disk_mb"]
    assert small["attempt"](NOTHING, 3) == 3


@pytest.mark.parametrize("rule", sorted(resources.NEEDS))
def test_a_library_of_a_million_fits_a_node(rule: str):
    """In shards of 1,600; merge rules see them all."""
    photos = 1_600 if "{shard}" in _output(rule) else 1_000_000
    needs = resources.of(rule, photos)
    assert 500 <= needs["mem_mb"](NOTHING, 1) <= 32_000
    assert 10 <= needs["runtime"](NOTHING, 1) <= 24 * 60


def _output(rule: str) -> str:
    return (CLONE / "Snakefile").read_text().split(f"\nrule {rule}:")[1].split("log:")[0]


# -------------------------------------------------------------------------------- of a library


def test_a_shard_asks_for_the_largest_one_and_a_merge_for_all(config: Config):
    run = run_of(config, 10, 64, 30)
    for name in ("mem_mb", "runtime"):
        assert run.of_shard("thumbs")[name](NOTHING, 1) == resources.of("thumbs", 64)[name](
            NOTHING, 1
        )
        assert run.of_library("medoids")[name](NOTHING, 2) == resources.of("medoids", 104)[name](
            NOTHING, 2
        )


def test_a_model_asks_for_its_weights(config: Config):
    small, large = (run_of(config, 64, weights_mb=mb).of_clip("embed") for mb in (100, 1_700))
    assert large["mem_mb"](NOTHING, 1) - small["mem_mb"](NOTHING, 1) == 2 * 1_600
    assert large["disk_mb"] - small["disk_mb"] == 1_600


@pytest.mark.parametrize(
    ("device", "model", "here", "gpu"),
    [
        ("cpu", None, "0", 0),
        ("cpu", "a100", "0", 0),
        ("cuda", None, "", 1),  # planned on a login node
        ("cuda", "a100", "", 1),
        ("auto", None, "0", 1),
        ("auto", None, "", 0),
        ("auto", "a100", "", 1),
    ],
)
def test_the_gpu_of_the_clip_model(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    model: str | None,
    here: str,
    gpu: int,
):
    monkeypatch.setenv(gpus.VISIBLE, here)
    needs = run_of(clip(config, device=device, gpu_model=model), 1).of_clip("embed")
    assert needs["gpu"] == gpu
    assert needs["gpu_model"] == (model if gpu else None)


def test_a_model_server_is_in_its_jobs_resources(config: Config):
    on_gpus, on_cpu, elsewhere = (
        SimpleNamespace(setup=SimpleNamespace(command=command, gpus=count))
        for command, count in (("vllm serve", 2), ("llama-server", 0), (None, 0))
    )
    config = replace(config, servers=replace(config.servers, gpu_model="h100"))
    tasks: dict[str, Task] = {"gpus": on_gpus, "cpu": on_cpu, "elsewhere": elsewhere}
    needs = replace(run_of(config, 64), tasks=tasks).of_server("describe")
    client = resources.of("describe", 64)["mem_mb"](NOTHING, 1)

    def asked(setup: str) -> tuple[int, str | None, int]:
        wildcards = SimpleNamespace(setup=setup)
        memory = needs["mem_mb"](wildcards, 1) - client
        return needs["gpu"](wildcards), needs["gpu_model"](wildcards), memory

    assert asked("gpus") == (2, "h100", 2 * resources.SERVER_PER_GPU)
    assert asked("cpu") == (0, None, resources.SERVER_ON_CPU)
    assert asked("elsewhere") == (0, None, 0)
    told = replace(config, servers=replace(config.servers, base_url=("http://h:1/v1",)))
    needs = replace(run_of(told, 64), tasks=tasks).of_server("describe")
    assert asked("gpus") == (0, None, 0)


def test_the_kind_of_gpu_makes_nothing_stale(config: Config):
    facts = {"roots": "", "weights_mb": 1}
    other = clip(config, gpu_model="a100")
    assert workflow._run_id(config, [], facts) == workflow._run_id(other, [], facts)


# ------------------------------------------------------------------------------- the Snakefile


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory, wiring: dict[str, str]) -> dict[str, Any]:
    """The Snakefile's rules, as Snakemake reads them."""
    work = tmp_path_factory.mktemp("work")
    photos = make_library(tmp_path_factory.mktemp("photos"), 3)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(CLONE / "Snakefile")],
        cwd=work,
        env={**os.environ, **wiring, "PHOTO_TAGGER__PHOTOS__ROOTS": json.dumps([str(photos)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READ = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ResourceSettings
with SnakemakeApi() as api:
    workflow = api.workflow(ResourceSettings(cores=1), snakefile=Path(sys.argv[1]))._workflow
    print(json.dumps({
        "rules": {r.name: [bool(r.script), sorted(r.resources)] for r in workflow.rules},
        "scopes": workflow.resource_scopes,
    }))
"""


def test_every_rule_with_a_script_says_what_it_needs(rules: dict[str, Any]):
    scripts = {name: known for name, (script, known) in rules["rules"].items() if script}
    assert sorted(scripts) == RULES
    for name, known in scripts.items():
        assert {"_cores", "runtime", "attempt"} <= set(known), name
        assert {"mem", "disk"} <= {word.removesuffix("_mb") for word in known}, name
    assert {name for name, known in scripts.items() if "gpu" in known} == {
        "embed",
        "labels",
        "describe",
    }
    assert rules["scopes"]["gpu"] == rules["scopes"]["asking"] == "local"


# ------------------------------------------------------------------------------------ profiles


def _profile(name: str) -> dict[str, Any]:
    from snakemake.profiles import ProfileConfigFileParser

    with (CLONE / f"profiles/{name}/profile.yaml").open() as file:
        return dict(ProfileConfigFileParser().parse(file))


@pytest.mark.parametrize(
    ("here", "limits"),
    [("", ["asking=1"]), ("0", ["gpu=1", "asking=1"]), ("0,GPU-1", ["gpu=2", "asking=2"])],
)
def test_default_limits_jobs_to_the_gpus_there_are(
    monkeypatch: pytest.MonkeyPatch, here: str, limits: list[str]
):
    monkeypatch.setenv(gpus.VISIBLE, here)
    assert _profile("default")["resources"] == limits


def test_gpu_says_what_default_says_and_more(monkeypatch: pytest.MonkeyPatch):
    """Snakemake uses either one or both, depending on how it is told."""
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    default, gpu = _profile("default"), _profile("gpu")
    limits = gpu.pop("resources")
    assert limits[:2] == default.pop("resources")
    assert limits[2].startswith("mem_mb=")
    assert default.items() <= gpu.items()


def test_profiles_are_yaml_with_comments():
    for path in (CLONE / "profiles").glob("*/profile.yaml"):
        text = path.read_text()
        assert isinstance(yaml.safe_load(text), dict), path
        assert text.startswith("#"), path


def test_the_page_says_what_is_asked_for():
    page = (CLONE / "docs/gpus.md").read_text()
    weights = 1_700

    def row(rule: str, loaded: int = 0) -> str:
        asked = [resources.of(rule, n, lambda _: 2 * loaded)["mem_mb"] for n in (64, 256, 512)]
        return "".join(f" {memory(NOTHING, 1):,} |" for memory in asked)

    assert f"| `thumbs`, `mem_mb` |{row('thumbs')}" in page
    assert f"(1.7 GB of weights) |{row('embed', weights)}" in page
    assert f"| `score`, `record`, `sidecars` |{row('score')}" in page
    assert row("score") == row("record") == row("sidecars")
