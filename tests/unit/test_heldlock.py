"""The lock of a work directory, also on file systems whose locks bind one computer or nobody."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phototagger import heldlock
from phototagger.heldlock import TakenError, hold, holder

HOLDER = """
import sys, time
from pathlib import Path
from phototagger import heldlock
heldlock.BEAT, heldlock.STALE, heldlock.ENDING = 0.1, 0.8, 0.2
if sys.argv[2:]:
    heldlock._computer = lambda: sys.argv[2]
def lost(owner):
    print("lost", flush=True)
with heldlock.hold(Path(sys.argv[1]), print, lost):
    print("held", flush=True)
    time.sleep(60)
"""
# What flock does on some file systems that several computers share.
FLOCK = {
    "binds nobody": "lambda *_: None",
    "not there": "lambda *_: (_ for _ in ()).throw(OSError(37, 'No locks available'))",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldlock, "BEAT", 0.1)
    monkeypatch.setattr(heldlock, "STALE", 0.8)
    monkeypatch.setattr(heldlock, "ENDING", 0.2)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds the lock, on a computer of the given name, with such an flock."""
    started: list[subprocess.Popen[str]] = []

    def start(lock: Path, computer: str = "", flock: str = "") -> subprocess.Popen[str]:
        folder = tmp_path / f"site{len(started)}"
        folder.mkdir()
        patch = f"import fcntl; fcntl.flock = {FLOCK[flock]}" if flock else ""
        (folder / "sitecustomize.py").write_text(patch)
        path = os.pathsep.join([str(folder), str(Path(heldlock.__file__).parents[1])])
        command = [sys.executable, "-c", HOLDER, str(lock), *filter(None, [computer])]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def broken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fcntl, "flock", eval(FLOCK[kind]))


def test_one_at_a_time_and_free_afterwards(tmp_path, start):
    lock = tmp_path / "lock"
    process = start(lock)
    with pytest.raises(TakenError, match=f"process {process.pid} on"), hold(lock):
        pass
    assert holder(lock)["pid"] == process.pid
    process.kill()
    process.wait()
    assert holder(lock) is None
    with hold(lock, pytest.fail):
        assert holder(lock)["pid"] == os.getpid()
    assert holder(lock) is None


def test_who_only_looks_does_not_hold_it(tmp_path):
    lock = tmp_path / "lock"
    with lock.open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with hold(lock, pytest.fail):
            assert holder(lock)["pid"] == os.getpid()


def test_an_unsigned_lock_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(heldlock, "SIGNING", 0.2)
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TakenError, match=r"process \? on \?"), hold(lock):
            pass


@pytest.mark.parametrize("kind", FLOCK)
def test_one_at_a_time_where_flock(tmp_path, start, monkeypatch, kind):
    lock = tmp_path / "lock"
    process = start(lock, flock=kind)
    broken(monkeypatch, kind)
    assert holder(lock)["pid"] == process.pid
    with pytest.raises(TakenError), hold(lock):
        pass
    process.kill()
    process.wait()
    assert holder(lock) is None
    heard: list[str] = []
    with hold(lock, heard.append):
        assert "the last run was killed" in heard[0]


@pytest.mark.parametrize("kind", FLOCK)
def test_another_computer_is_recognised_by_its_touches(tmp_path, start, monkeypatch, kind):
    lock = tmp_path / "lock"
    process = start(lock, "node17", kind)
    broken(monkeypatch, kind)
    heard: list[str] = []
    with pytest.raises(TakenError), hold(lock, heard.append):
        pass
    assert "to see whether the run of process" in heard[0]
    assert holder(lock)["pid"] == process.pid
    process.kill()
    process.wait()
    with hold(lock, heard.append):
        assert heard[-1] == f"{lock}: no sign of life; taken over"
    time.sleep(1)
    assert holder(lock) is None


def test_clocks_do_not_matter(tmp_path, start, monkeypatch):
    """The times of files are an hour behind ours: the other one is alive all the same."""
    lock = tmp_path / "lock"
    start(lock, "node17", "binds nobody")
    broken(monkeypatch, "binds nobody")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert holder(lock)
    with pytest.raises(TakenError), hold(lock, lambda _: None):
        pass


def test_who_was_taken_for_dead_is_told(tmp_path, start):
    """A computer that slept: somebody else runs there now."""
    lock = tmp_path / "lock"
    process = start(lock, flock="binds nobody")
    owner = json.loads(lock.read_text()) | {"token": "another"}
    lock.write_text(json.dumps(owner))
    assert process.stdout.readline() == "lost\n"
    assert json.loads(lock.read_text())["token"] == "another"


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path, monkeypatch):
    def open_(*_: object) -> int:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "open", open_)
    with pytest.raises(OSError, match="read-only"), hold(tmp_path / "lock"):
        pass
