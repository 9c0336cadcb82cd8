"""What a cluster is asked for, by a stand-in for sbatch that refuses every job; no Slurm needed.

A refused job is tried again, so that one run shows what every attempt asks for.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers.conftest import tiny_vlm  # noqa: F401 - a fixture
from servers.test_pipeline import register, write_profile
from workflow.library import Library, make_library

from phototagger import resources

from .runs import OnSlurm

SETUP = "tiny"
SHARD = 8  # photos
ATTEMPTS = 3
REFUSES = """\
#!/bin/sh
echo "$*" | tr '\\n' ' ' | cut -c1-2000 >> "$TOLD"
exit 1
"""
CLIENTS = ("squeue", "sinfo", "scontrol", "scancel", "sacct", "sacctmgr", "srun")
MINUTES, MEGABYTES, CPUS = r"(?:-t|--time) (\d+)", r"--mem (\d+)", r"--cpus-per-task[= ](\d+)"


@dataclass(frozen=True)
class Asked:
    """One job's requests, by attempt."""

    minutes: list[int]
    mem_mb: list[int]
    cpus: list[int]
    gpus: list[str]
    partitions: list[str]


@pytest.fixture(scope="module")
def planned(wiring, tiny_vlm, tmp_path_factory) -> Library:  # noqa: F811
    """Sixteen photos in two shards; those of the first have thumbnails."""
    folder = tmp_path_factory.mktemp("planned")
    settings = {
        **wiring,
        "PHOTO_TAGGER__SERVERS__GPU_MODEL": "h100",
        "PHOTO_TAGGER__PLAN__SHARD_SIZE": str(SHARD),
        "PHOTO_TAGGER__DESCRIBE__SETUP": SETUP,
        "PHOTO_TAGGER__DESCRIBE__PROFILE": "tiny",
        "PHOTO_TAGGER_MODELS": str(tiny_vlm),
    }
    library = Library(folder / "work", make_library(folder / "photos", 16, 8), settings)
    register(library, SETUP, 24182, gpus=2)
    write_profile(library)
    library.snakemake("thumbs_all")
    _, second = (library.results / "thumbs").glob("*.parquet")
    second.unlink()
    return library


def refused(profile: str, planned: Library, kind: str, tmp_path: Path) -> dict[str, Asked]:
    """What the jobs of a rule asked for, by rule. `kind` is that of CLIP's GPU."""
    shutil.copytree(planned.work, tmp_path / "work")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", *CLIENTS):
        program = tmp_path / "bin" / name
        program.write_text(REFUSES if name == "sbatch" else "#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    told = tmp_path / "told"
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(told)}
    settings = planned.settings | ({"PHOTO_TAGGER__CLIP__GPU_MODEL": kind} if kind else {})
    work = tmp_path / "work"
    library = OnSlurm(work, planned.photos, settings, profile=profile, environ=environ)
    each = ("--group-components", "describe=1")  # or it would wait for the other shard
    failed = library.snakemake("embed_all", "describe_all", *each, check=False)
    assert failed.returncode and told.exists(), failed.stdout + failed.stderr
    print(failed.stdout, failed.stderr)
    lines = told.read_text().splitlines()
    rules = ("thumbs", "embed", "describe")
    return {rule: _asked([line for line in lines if _rule(line) == rule]) for rule in rules}


def _rule(line: str) -> str:
    """Of the executor's comment, or of the job's name in plain sbatch."""
    return re.search(r"(?:--comment rule_|--job-name )(thumbs|embed|describe)", line)[1]


def _asked(lines: list[str]) -> Asked:
    def found(pattern: str) -> list[str]:
        return [match[1] for line in lines if (match := re.search(pattern, line))]

    return Asked(
        *([int(number) for number in found(pattern)] for pattern in (MINUTES, MEGABYTES, CPUS)),
        found(r"--gpus[= ](\S+)"),
        found(r"(?:-p|--partition) '?(\w+)"),
    )


@pytest.mark.parametrize(("profile", "kind"), [("slurm", "a100"), ("slurm-generic", "")])
def test_every_attempt_asks_for_more_and_for_the_kind_of_gpu(profile, kind, planned, tmp_path):
    asked = refused(profile, planned, kind, tmp_path)
    clip = f"{kind}:1".lstrip(":")
    for rule, gpus in {"thumbs": "", "embed": clip, "describe": "h100:2"}.items():
        declared, request = resources.of(rule, SHARD), asked[rule]
        tried = range(1, ATTEMPTS + 1)
        assert request.minutes == [declared["runtime"](None, n) for n in tried], rule
        extra = 2 * resources.SERVER_PER_GPU if rule == "describe" else 0
        for n, megabytes in zip(tried, request.mem_mb, strict=True):
            assert 0 <= megabytes - declared["mem_mb"](None, n) - n * extra <= 20, rule
        assert request.cpus == [resources.NEEDS[rule].threads] * ATTEMPTS, rule
        assert [g for g in request.gpus if g != "0"] == [gpus] * ATTEMPTS * bool(gpus), rule
        assert request.partitions == ["gpu" if gpus else "cpu"] * ATTEMPTS, rule
