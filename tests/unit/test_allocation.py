"""Which allocation of a batch system a process is in, by its environment and its ancestors."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phototagger import allocation, processes
from phototagger.allocation import current

SCRIPTS = Path(allocation.__file__).parents[1]

TELL = """
import os
from phototagger.allocation import current
found = current()
print(os.getppid(), found.id, found.node, found.owner.pid, found.ends)
"""


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment of no batch system, whatever the tests run in."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "PBS_", "LSB_", "SGE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    return monkeypatch


def squeue(folder: Path, script: str) -> None:
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_no_batch_system():
    assert current({}) is None
    assert current({"JOB_ID": "3"}) is None  # anybody's
    assert current({"SLURM_JOB_ID": ""}) is None


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"SLURM_JOB_ID": "17"}, "slurm-17"),
        ({"PBS_JOBID": "17[3].host/x"}, "pbs-17_3_.host_x"),
        ({"LSB_JOBID": "17"}, "lsf-17"),
        ({"JOB_ID": "17", "SGE_TASK_ID": "undefined"}, "sge-17"),
    ],
)
def test_its_name_is_fit_for_files(env: dict[str, str], name: str):
    found = current(env)
    assert found.id == name
    assert found.node == os.uname().nodename


def test_slurm_tells_node_and_end():
    env = {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n1", "SLURM_JOB_END_TIME": "1900000000"}
    found = current(env)
    assert (found.node, found.ends) == ("n1", 1900000000.0)


def test_the_end_is_asked_for_once(outside: pytest.MonkeyPatch, tmp_path: Path):
    squeue(tmp_path, f'echo "$@" >> {tmp_path}/asked; [ "$SLURM_TIME_FORMAT" = %s ] && echo 1900')
    outside.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = current({"SLURM_JOB_ID": "17"})
    assert not (tmp_path / "asked").exists()
    assert found.ends == found.ends == 1900.0
    assert (tmp_path / "asked").read_text() == "-h -j 17 -o %e\n"


@pytest.mark.parametrize("script", ["echo N/A", "exit 1", "echo Invalid job id >&2; exit 1"])
def test_an_end_that_nobody_knows(outside: pytest.MonkeyPatch, tmp_path: Path, script: str):
    squeue(tmp_path, script)
    outside.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert current({"SLURM_JOB_ID": "17"}).ends is None


def test_a_controller_that_does_not_answer(outside: pytest.MonkeyPatch, tmp_path: Path):
    squeue(tmp_path, "exec sleep 60")
    outside.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    outside.setattr(allocation, "ANSWER", 0.2)
    began = time.monotonic()
    assert current({"SLURM_JOB_ID": "17"}).ends is None
    assert time.monotonic() - began < 5


def test_without_slurm_s_programs(outside: pytest.MonkeyPatch, tmp_path: Path):
    outside.setenv("PATH", str(tmp_path))
    assert current({"SLURM_JOB_ID": "17"}).ends is None


def test_the_owner_is_the_outermost_process_of_the_job(outside: pytest.MonkeyPatch, tmp_path: Path):
    """sh (the owner) > sh > python, the job's id being set outside of all."""
    (tmp_path / "tell.py").write_text(TELL)
    inner = f"{sys.executable} {tmp_path}/tell.py; exit 0"
    command = ["sh", "-c", f"echo $$; sh -c '{inner}'; exit 0"]
    env = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "5"}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    outermost, rest = said.splitlines()
    parent, name, _, owner, ends = rest.split()
    assert (name, owner, ends) == ("slurm-17", outermost, "5.0")
    assert parent != outermost


def test_another_job_s_process_is_no_owner(outside: pytest.MonkeyPatch, tmp_path: Path):
    """A run that itself is a job of the batch system and starts a step of another one."""
    (tmp_path / "tell.py").write_text(TELL)
    inner = f"SLURM_JOB_ID=18 sh -c '{sys.executable} {tmp_path}/tell.py; exit 0'"
    env = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "5"}
    command = ["sh", "-c", f"echo $$; {inner}; exit 0"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    outer, rest = said.splitlines()
    parent, name, _, owner, _ = rest.split()
    assert (name, owner) == ("slurm-18", parent)
    assert owner != outer


def test_the_starter_is_known_by_name(monkeypatch: pytest.MonkeyPatch):
    """Where environments cannot be read: 30 (slurmstepd) > 20 > 10 > us."""
    us = os.getpid()
    chain = {us: 10, 10: 20, 20: 30, 30: 1, 1: 0}
    monkeypatch.setattr(allocation, "_parent", chain.__getitem__)
    monkeypatch.setattr(allocation, "_name", lambda pid: "slurmstepd" if pid == 30 else "sh")
    monkeypatch.setattr(allocation, "_variable", lambda *_: None)
    monkeypatch.setattr(allocation, "_identify", lambda pid: processes.Process(pid, "then"))
    assert current({"SLURM_JOB_ID": "17"}).owner.pid == 20
    monkeypatch.setattr(allocation, "_name", lambda pid: None if pid == 30 else "sh")
    assert current({"SLURM_JOB_ID": "17"}).owner.pid == 20  # hidden from us


def test_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(allocation, "_PROC", tmp_path)
    found = current({"SLURM_JOB_ID": "17"})
    assert found.owner.pid == os.getpid()
    assert processes.alive(found.owner)


def test_a_step_s_owner_is_the_batch_script(monkeypatch: pytest.MonkeyPatch):
    """Steps come and go while it lives; where it is on another node, the step has to do."""
    monkeypatch.setattr(allocation, "_pids", lambda: [40, 41, 42])
    monkeypatch.setattr(allocation, "_name", lambda pid: "slurm_script" if pid > 40 else "sh")
    monkeypatch.setattr(allocation, "_variable", lambda pid, _: "17" if pid == 42 else "16")
    monkeypatch.setattr(allocation, "_identify", lambda pid: processes.Process(pid, "then"))
    env = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
    assert current(env).owner.pid == 42
    monkeypatch.setattr(allocation, "_pids", lambda: [40, 41])
    assert current(env).owner.pid == os.getpid()


def test_all_processes_of_an_allocation_are_found(outside: pytest.MonkeyPatch):
    ours = {**os.environ, "SLURM_JOB_ID": "17"}
    with (
        subprocess.Popen(["sleep", "60"], env=ours) as member,
        subprocess.Popen(["sleep", "60"], env={**ours, "SLURM_JOB_ID": "18"}) as other,
    ):
        outside.setenv("SLURM_JOB_ID", "17")
        found = allocation.members(current())
        member.kill()
        other.kill()
    assert member.pid in found
    assert other.pid not in found
