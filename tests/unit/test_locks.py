import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import time

import pytest

from phototagger import locks
from phototagger.locks import folder_locks

FORK = multiprocessing.get_context("fork")


def count(folders, counter, rounds):
    """Add one `rounds` times to a number in a file, in a way that loses updates unless locked."""
    for _ in range(rounds):
        with folder_locks(folders):
            value = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(value + 1))


def run(*workers):
    processes = [FORK.Process(target=count, args=args) for args in workers]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, "they wait for each other"


@pytest.fixture
def folders(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "counter").write_text("0")
    return tmp_path


def test_one_at_a_time_by_whatever_path_and_order(folders):
    a, b, c, link = (folders / name for name in ("a", "b", "c", "link"))
    counter = folders / "counter"
    run(([a, b], counter, 30), ([c, b, link], counter, 30), ([folders / "b/../a"], counter, 30))
    assert counter.read_text() == "90"
    assert sorted(os.listdir(folders)) == ["a", "b", "c", "counter", "link"]
    assert os.listdir(folders / "a") == []


def test_a_stand_in_where_the_file_system_has_no_locks(folders, monkeypatch, tmp_path):
    real = fcntl.flock

    def flock(descriptor, how):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOLCK, "no locks")
        real(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(locks.tempfile, "tempdir", None)
    counter = folders / "counter"
    run(([folders / "a"], counter, 30), ([folders / "link"], counter, 30))
    assert counter.read_text() == "60"
    assert os.listdir(folders / "a") == []


def test_the_same_folder_twice_is_no_deadlock_and_a_missing_one_is_left_out(folders):
    with folder_locks([folders / "a", folders / "link", folders / "a", folders / "gone"]):
        pass


def test_a_killed_holder_holds_nothing(folders):
    ready, holds = FORK.Pipe(duplex=False)

    def hold():
        with folder_locks([folders / "a"]):
            holds.send("held")
            time.sleep(60)

    process = FORK.Process(target=hold)
    process.start()
    assert ready.recv() == "held"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    count([folders / "a"], folders / "counter", 1)


def test_says_what_it_waits_for(folders, monkeypatch, caplog):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    ready, holds = FORK.Pipe(duplex=False)

    def hold():
        with folder_locks([folders / "a"]):
            holds.send("held")
            time.sleep(0.4)

    process = FORK.Process(target=hold)
    process.start()
    ready.recv()
    with caplog.at_level(logging.WARNING), folder_locks([folders / "a"]):
        pass
    process.join()
    assert f"{folders / 'a'}: another process writes here" in caplog.text
