"""What a job leaves behind: its counts, however it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from phototagger import runtoken
from phototagger.errors import TransientError, UserError
from phototagger.job import Stats, job, read_counts

# A job that says when it is at work, and then waits to be stopped.
SLEEPER = """
import sys, time
from types import SimpleNamespace
from phototagger.job import job
snakemake = SimpleNamespace(log=["results/logs/embed/aa.log"], rule="embed")
with job(snakemake) as stats:
    stats.photos, stats.computed = 9, 4
    stats.write()
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    # `job` is for a process of its own; ours gets back what it changes
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def a_job(attempt: int | None = None) -> SimpleNamespace:
    resources = SimpleNamespace() if attempt is None else SimpleNamespace(attempt=attempt)
    return SimpleNamespace(log=["results/logs/embed/aa.log"], rule="embed", resources=resources)


def counts() -> dict:
    return read_counts(Path("results/logs/embed/aa.json"))


def fail(error: Exception, attempt: int | None = None) -> dict:
    with pytest.raises(SystemExit) as ended, job(a_job(attempt)):
        raise error
    assert ended.value.code == 1
    return counts()


def test_counts_say_where_when_and_in_which_run(here, monkeypatch):
    runtoken.publish("abc")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu1")
    with job(a_job(2)) as stats:
        begun = counts()
        stats.photos = 3
    assert begun["run"] == "abc" and not begun["finished"] and begun["error"] is None
    ended = counts()
    assert ended["finished"] and ended["photos"] == 3
    assert (ended["job"], ended["node"], ended["attempt"]) == ("slurm-77", "gpu1", 2)
    assert ended["host"] == os.uname().nodename and ended["started"] > 1e9


def test_outside_of_a_batch_system_there_is_no_job_id(here):
    with job(a_job()):
        pass
    assert (counts()["job"], counts()["node"], counts()["attempt"]) == (None, None, 1)


@pytest.mark.parametrize(
    ("error", "message", "final"),
    [
        (UserError("the lens cap is on; take it off"), "the lens cap is on; take it off", True),
        (TransientError("the server is gone"), "the server is gone", False),
        (MemoryError("too little"), "MemoryError: too little", False),
    ],
)
def test_failures_say_whether_to_try_again(error, message, final, here):
    left = fail(error)
    assert (left["error"], left["final"], left["finished"]) == (message, final, False)


def test_what_cannot_help_is_not_tried_again(here, capfd):
    runtoken.publish("abc")
    fail(UserError("the lens cap is on"), attempt=1)
    tried = []
    for attempt in (2, 3):
        with pytest.raises(SystemExit), job(a_job(attempt)):
            tried.append(attempt)
        assert counts()["error"] == "the lens cap is on" and counts()["final"]
        assert "ERROR the lens cap is on" in Path("results/logs/embed/aa.log").read_text()
    assert tried == []
    assert capfd.readouterr().err.count("embed: the lens cap is on") == 3


@pytest.mark.parametrize("ended", ["transient", "another run", "same attempt"])
def test_the_rest_is_tried_again(ended, here):
    runtoken.publish("abc")
    error = TransientError("gone") if ended == "transient" else UserError("the lens cap is on")
    fail(error, attempt=2 if ended == "same attempt" else 1)
    if ended == "another run":
        runtoken.publish("def")
    with job(a_job(2)) as stats:
        stats.computed = 1
    assert counts()["finished"] and counts()["error"] is None


def stopped_by(number: int) -> tuple[int, dict]:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    return process.wait(20), counts()


def test_a_time_limit_leaves_its_reason_and_the_photos_done(here):
    status, left = stopped_by(signal.SIGTERM)
    assert status == 143
    assert left["error"] == "stopped by SIGTERM (time limit, preemption or a person)"
    assert not left["final"] and left["computed"] == 4


def test_a_second_sigterm_does_not_interrupt_the_first(here):
    """Slurm sends it twice."""
    cleaned = False
    with pytest.raises(SystemExit) as ended, job(a_job()):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned = True
    assert cleaned and ended.value.code == 143
    assert counts()["error"].startswith("stopped by SIGTERM")
    # what is started meanwhile can be ended
    waiting = subprocess.Popen(["sleep", "60"])
    waiting.terminate()
    assert waiting.wait(20) == -signal.SIGTERM


def test_a_killed_job_leaves_counts_without_an_end(here):
    status, left = stopped_by(signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not left["finished"] and left["error"] is None and left["computed"] == 4


def test_a_full_disk_hides_no_error(here, monkeypatch):
    real = Stats.write

    def write(stats: Stats) -> None:
        if stats.error:
            raise OSError(28, "No space left on device")
        real(stats)

    monkeypatch.setattr(Stats, "write", write)
    with pytest.raises(SystemExit), job(a_job()):
        raise UserError("the lens cap is on")
    assert "ERROR the lens cap is on" in Path("results/logs/embed/aa.log").read_text()


def test_a_token_is_rewritten_in_place(here):
    runtoken.publish("a" * 40)
    inode = runtoken.PATH.stat().st_ino
    runtoken.publish("b")
    assert runtoken.current() == "b" and runtoken.PATH.stat().st_ino == inode


def test_the_command_line_chooses_the_token(monkeypatch):
    monkeypatch.setenv(runtoken.VARIABLE, "chosen")
    assert runtoken.new() == "chosen"


@pytest.mark.parametrize("broken", ["", "[]", "{}", "half"])
def test_no_token_is_none(broken, here):
    assert runtoken.current() is None
    runtoken.PATH.parent.mkdir(parents=True)
    runtoken.PATH.write_text(broken)
    assert runtoken.current() is None


def test_clocks_do_not_decide_where_tokens_are():
    assert runtoken.belongs({"run": "a"}, written=0.0, token="a", started=3600.0)
    assert not runtoken.belongs({"run": "b"}, written=7200.0, token="a", started=3600.0)
    assert runtoken.belongs({}, written=7200.0, token="a", started=3600.0)
    assert not runtoken.belongs({"run": "b"}, written=0.0, token=None, started=3600.0)
    assert json.loads("{}") == read_counts(Path("nothing.json"))
