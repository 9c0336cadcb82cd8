"""The profiles agree with each other and with the rules; what needs no cluster."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from phototagger import CLONE, resources

RULES = set(re.findall(r"^rule (\w+):", (CLONE / "Snakefile").read_text(), re.M))
CLUSTER = ("slurm", "slurm-generic")
STATUS = CLONE / "profiles/slurm-generic/status.sh"


def profile(name: str) -> dict:
    return yaml.safe_load((CLONE / f"profiles/{name}/profile.yaml").read_text())


@pytest.mark.parametrize("name", CLUSTER)
def test_a_profile_names_rules_that_there_are(name: str):
    found = profile(name)
    assert found["groups"].keys() | found["set-resources"].keys() <= RULES
    assert set(found["group-components"]) <= set(found["groups"].values())
    assert max(need.threads for need in resources.NEEDS.values()) <= found["cores"]


@pytest.mark.parametrize("name", CLUSTER)
def test_a_profile_of_a_cluster_can_stand_alone(name: str):
    """With --workflow-profile it takes the place of profiles/default."""
    repeated = profile("default")
    for key in [key for key in repeated if key.startswith(("__", "?")) or key == "resources"]:
        del repeated[key]
    assert repeated.items() <= profile(name).items()


def test_the_two_differ_only_in_how_jobs_are_submitted():
    one, other = (profile(name) for name in CLUSTER)
    own = re.compile(r"executor$|slurm-|cluster-generic-|seconds-between|__|default-resources$")
    assert {k: v for k, v in one.items() if not own.match(k)} == {
        k: v for k, v in other.items() if not own.match(k)
    }
    assert one["default-resources"].items() <= other["default-resources"].items()


def status(folder: Path, squeue: str, sacct: str = "exit 1") -> str:
    """What status.sh says where these are the programs."""
    for name, text in {"squeue": squeue, "sacct": sacct}.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    result = subprocess.run(
        [STATUS, "7"], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("PENDING", "running"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("REQUEUED", "running"),
        ("COMPLETED", "success"),
        ("FAILED", "failed"),
        ("TIMEOUT", "failed"),
        ("CANCELLED", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("NODE_FAIL", "failed"),
        ("PREEMPTED", "failed"),
    ],
)
def test_states_of_plain_sbatch(tmp_path: Path, state: str, said: str):
    assert status(tmp_path, f"echo {state}") == said


def test_a_job_that_the_controller_has_forgotten(tmp_path: Path):
    forgotten = "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1"
    assert status(tmp_path, forgotten, "echo COMPLETED") == "success"
    assert status(tmp_path, forgotten, "echo 'CANCELLED by 0'") == "failed"
    assert status(tmp_path, forgotten) == "failed"  # no accounting: done again, from the cache
    assert status(tmp_path, "exit 0", "echo COMPLETED") == "success"


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path):
    silent = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    assert status(tmp_path, silent) == "running"
