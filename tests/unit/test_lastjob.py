"""Which describe job is the last one of an allocation, by Snakemake's command lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phototagger import lastjob, processes
from phototagger.allocation import Allocation
from phototagger.lastjob import Shard, is_last, planned_here, shards_here

PLACE = Allocation("slurm-7", "n1", processes.Process(1, ""))
A, B, C = (Shard("s", name) for name in "abc")


def line(*jobs: str, head: tuple[str, ...] = ("python", "-m", "snakemake")) -> list[str]:
    return [
        *head,
        "--snakefile",
        "Snakefile",
        "--target-jobs",
        *jobs,
        "--allowed-rules",
        "describe",
    ]


def job(shard: Shard) -> str:
    return f"describe:setup={shard.setup},shard={shard.shard}"


def test_a_job_of_its_own():
    assert planned_here(A, [line(job(A))]) == {A}
    assert planned_here(A, []) == {A}


def test_a_group():
    """On a node, one Snakemake starts another for each member."""
    lines = [line(job(A)), line(job(A), "thumbs:shard=a", job(B), job(C))]
    assert planned_here(A, lines) == {A, B, C}


def test_a_job_array_whose_first_task_is_on_all_command_lines():
    assert planned_here(B, [line(job(B)), line(job(A))]) == {B}


def test_the_whole_run_is_here():
    assert planned_here(A, [line(job(A)), ["snakemake", "--cores", "8"]]) is None


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["/env/bin/python3.11", "-m", "snakemake", "--cores", "2"], True),
        (["/env/bin/python", "/env/bin/snakemake", "--cores", "2"], True),
        (["/bin/sh", "-c", "exec python -m snakemake --cores 2"], False),
        (["vim", "Snakefile"], False),
        ([], False),
    ],
)
def test_what_snakemake_looks_like(words: list[str], is_one: bool):
    assert lastjob._is_snakemake(words) is is_one


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of the job a, in an allocation for a and b."""
    monkeypatch.setattr(lastjob, "_snakemakes", lambda place: [line(job(A), job(B), "x:y=z")])
    path = tmp_path / "results/describe/s/a.jsonl"
    path.parent.mkdir(parents=True)
    return path


def failed(output: Path, shard: str, **counts: object) -> None:
    path = output.parents[2] / f"logs/describe/s/{shard}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(counts))


def test_the_last_one_is_when_all_others_have_ended(output: Path):
    assert not is_last(output, PLACE)
    output.touch()
    assert not is_last(output, PLACE)  # its own does not count
    output.with_name("b.jsonl").touch()
    assert is_last(output, PLACE)


def test_others_that_failed_here_have_ended(output: Path):
    failed(output, "b", job="slurm-6", error="killed")  # an attempt before
    assert not is_last(output, PLACE)
    failed(output, "b", job="slurm-7", error=None)  # running
    assert not is_last(output, PLACE)
    failed(output, "b", job="slurm-7", error="refused")
    assert is_last(output, PLACE)


def test_jobs_of_other_setups_have_their_own_server(output: Path, monkeypatch: pytest.MonkeyPatch):
    other = Shard("t", "b")
    monkeypatch.setattr(lastjob, "_snakemakes", lambda place: [line(job(A), job(other))])
    assert is_last(output, PLACE)


def test_never_the_last_where_the_whole_run_is(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lastjob, "_snakemakes", lambda place: [["snakemake", "all"]])
    assert not is_last(output, PLACE)


@pytest.mark.parametrize(
    ("lines", "has"),
    [
        ([["snakemake", "all"]], True),
        ([line(job(A)), ["snakemake", "all"]], True),
        ([line(job(A)), line(job(A), job(B))], False),
        ([], False),
    ],
)
def test_the_whole_run_is_in_the_allocation(lines, has, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lastjob, "_snakemakes", lambda place: lines)
    assert lastjob.has_whole_run(PLACE) is has
    assert lastjob.has_whole_run(None)


def test_whose_shards_may_be_asked_ahead(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lastjob.allocation, "current", lambda: None)
    assert shards_here(output) is None
    monkeypatch.setattr(lastjob.allocation, "current", lambda: PLACE)
    assert shards_here(output) == {"a", "b"}


def test_command_lines_are_read_up_to_the_owner(tmp_path: Path):
    """sh (owner) > snakemake > python; what is above the owner is not of this allocation."""
    program = tmp_path / "snakemake"
    program.write_text("import subprocess, sys; sys.exit(subprocess.call(['python', 'tell.py']))")
    (tmp_path / "tell.py").write_text(
        "from phototagger import allocation, lastjob\n"
        "print(lastjob._snakemakes(allocation.current()))"
    )
    scripts = str(Path(lastjob.__file__).parents[1])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    said = subprocess.run(
        ["sh", "-c", f"python snakemake --target-jobs {job(A)} --x; exit $?"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": scripts, "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.count("'snakemake'") == 1
    assert job(A) in said
