"""GPUs: which there are, and that no two jobs, servers or killed ones have the same."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phototagger import gpus
from phototagger.machine import Servers
from phototagger.runfolder import scope

HOLD = """
import os, sys
from phototagger.gpus import lease
from phototagger.machine import Servers
with lease(int(sys.argv[2]), Servers(run_dir=sys.argv[1])) as names:
    print(",".join(names), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_batch_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", gpus.VISIBLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(run_dir=str(tmp_path / "run"))


@contextmanager
def holder(servers: Servers, count: int = 1, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that takes a lease, and holds it until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, servers.run_dir, str(count)],
        env={**os.environ, "PYTHONPATH": str(Path(gpus.__file__).parents[1]), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------------------------- which


def test_what_the_environment_names(tmp_path: Path):
    assert gpus.visible({gpus.VISIBLE: "2, 0,2"}) == ["2", "0"]
    assert gpus.visible({gpus.VISIBLE: "GPU-8932f937,MIG-GPU-1/2/0"}) == [
        "GPU-8932f937",
        "MIG-GPU-1/2/0",
    ]
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    assert gpus.visible({gpus.VISIBLE: ""}, tmp_path) == []
    assert gpus.visible({gpus.VISIBLE: "1,-1,0"}, tmp_path) == ["1"]  # as CUDA reads it


def test_what_the_driver_shows(tmp_path: Path):
    for name in ("nvidia3", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus.visible({}, tmp_path) == ["0", "1"]  # CUDA counts what it finds
    assert gpus.visible({}, tmp_path / "none") == []


def test_a_job_of_slurm_has_what_slurm_gave_it(tmp_path: Path):
    (tmp_path / "nvidia0").touch()
    assert gpus.visible({"SLURM_JOB_ID": "7"}, tmp_path) == []
    assert gpus.visible({"SLURM_JOB_ID": "7", gpus.VISIBLE: "1"}, tmp_path) == ["1"]


def test_limits():
    assert gpus.limits({gpus.VISIBLE: "0,1"}) == {"gpu": 2, "asking": 2}
    assert gpus.limits({gpus.VISIBLE: ""}) == {"asking": 1}


# ------------------------------------------------------------------------------------- leases


def test_one_each_and_the_environment_says_so(servers: Servers):
    env = {gpus.VISIBLE: "4,GPU-5"}
    with gpus.lease(1, servers, env) as first:
        assert env[gpus.VISIBLE] == "4"
        other = {gpus.VISIBLE: "4,GPU-5"}
        with gpus.lease(1, servers, other) as second:
            assert other[gpus.VISIBLE] == "GPU-5"
    assert (first, second) == (("4",), ("GPU-5",))
    assert env[gpus.VISIBLE] == "4,GPU-5"  # as it was


def test_several_at_once(servers: Servers):
    env = {gpus.VISIBLE: "0,1,2"}
    with gpus.lease(2, servers, env) as names:
        assert names == ("0", "1")
        assert env[gpus.VISIBLE] == "0,1"


def test_more_than_there_are(servers: Servers, caplog: pytest.LogCaptureFixture):
    with gpus.lease(4, servers, {gpus.VISIBLE: "0,1"}) as names:
        assert names == ("0", "1")
    assert "4 GPUs wanted, there are 2" in caplog.text


def test_without_a_gpu_nothing_is_locked(servers: Servers, tmp_path: Path):
    env = {gpus.VISIBLE: ""}
    with gpus.lease(1, servers, env) as names, gpus.lease(1, servers, env):
        assert names == ()
    assert not (tmp_path / "run").exists()


def test_a_batch_job_without_a_gpu_is_shown_none(servers: Servers):
    env = {"SLURM_JOB_ID": "7"}
    with gpus.lease(0, servers, env):
        assert env[gpus.VISIBLE] == ""
    env = {}
    with gpus.lease(0, servers, env):
        assert env == {}


def test_a_second_job_waits_for_the_first(servers: Servers):
    with (
        holder(servers, CUDA_VISIBLE_DEVICES="0") as first,
        holder(servers, CUDA_VISIBLE_DEVICES="0") as second,
    ):
        lines = {first: "", second: ""}
        told = _first_to_speak(first, second)
        lines[told] = told.stdout.readline()
        waiting = second if told is first else first
        time.sleep(1.2)
        assert not _has_spoken(waiting)
        told.stdin.close()
        assert waiting.stdout.readline() == "0 0\n"
        assert lines[told] == "0 0\n"


def test_a_killed_job_frees_its_gpus(servers: Servers):
    with holder(servers, 2, CUDA_VISIBLE_DEVICES="0,1") as process:
        assert process.stdout.readline() == "0,1 0,1\n"
        process.kill()
        process.wait()
        with gpus.lease(2, servers, {gpus.VISIBLE: "0,1"}) as names:
            assert names == ("0", "1")


def test_a_child_that_inherits_the_lease_holds_it(servers: Servers, tmp_path: Path):
    """As a model server's supervisor does."""
    env = {gpus.VISIBLE: "0"}
    lease = gpus.wait_for(1, servers, env)
    child = subprocess.Popen(["sleep", "60"], pass_fds=lease.descriptors)
    lease.close()
    try:
        assert gpus._take(tmp_path / "run", scope(None), ["0"], 1) is None
    finally:
        child.kill()
        child.wait()
    with gpus.lease(1, servers, env) as names:
        assert names == ("0",)


def test_allocations_do_not_share_numbers(servers: Servers):
    """Slurm may call each job's own GPU 0."""
    one, two = ({gpus.VISIBLE: "0", "SLURM_JOB_ID": number} for number in ("7", "8"))
    with gpus.lease(1, servers, one), gpus.lease(1, servers, two) as names:
        assert names == ("0",)


def test_an_idle_model_server_makes_way(servers: Servers, monkeypatch: pytest.MonkeyPatch):
    env = {gpus.VISIBLE: "0"}
    held = gpus.wait_for(1, servers, env)
    asked = []
    monkeypatch.setattr(
        "phototagger.server.make_way", lambda servers: (asked.append(servers), held.close())
    )
    with gpus.lease(1, servers, env) as names:
        assert names == ("0",)
    assert asked == [servers]


def _has_spoken(process: "subprocess.Popen[str]") -> bool:
    return bool(select.select([process.stdout], [], [], 0)[0])


def _first_to_speak(*processes: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in processes:
            if _has_spoken(process):
                return process
        time.sleep(0.05)
    raise AssertionError("nobody has a GPU")
