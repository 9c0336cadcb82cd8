"""kill -9 at any moment: every sidecar is old or new, the next one finishes, and undo is exact."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from phototagger import applying, undoing, xmp
from phototagger.changeset import latest, unfinished
from phototagger.errors import UserError
from publishing.library import Work, human_xmp, make_photos, snapshot

FORK = multiprocessing.get_context("fork")
ROUNDS = 3
KILLS = 7  # in a round
PHOTOS = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(5)]
HUMAN = ["a/0.jpg", "b/3.jpg"]  # with a sidecar of their own
WITHDRAWN = ["a/1.jpg", "b/4.jpg"]  # with one of ours that is to be removed
# What reaches the disk: between two of these, nothing does. (`replace` of strings is another.)
CALLS = {"pwrite", "ftruncate", "fsync", "write", "replace", "link", "unlink", "fchmod", "utime"}


class Killed:
    """Runs functions in a process of their own that is killed at a random moment."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self.count = 0

    def run(self, work: Callable[[], object], calls: int, seconds: float | None = None) -> bool:
        """Whether it was killed: before or after one of its first `calls` calls, or in time."""
        last = self._random.randint(1, calls)
        process = FORK.Process(target=_run, args=(work, None if seconds else last))
        process.start()
        if seconds:
            time.sleep(self._random.uniform(0, seconds))
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        self.count += process.exitcode != 0
        return process.exitcode != 0


def _run(work: Callable[[], object], last: int | None) -> None:
    done = 0

    def count(_frame: object, event: str, called: object) -> None:
        nonlocal done
        if event not in ("c_call", "c_return") or isinstance(called.__self__, str):
            return
        if called.__name__ in CALLS:
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)

    if last is not None:
        threading.setprofile(count)
        sys.setprofile(count)
    work()
    sys.setprofile(None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Work, dict, dict]:
    """Photos before an apply, the work directory, and both states of the folders."""
    base = tmp_path_factory.mktemp("kill")
    photos = make_photos(base / "photos", *PHOTOS)
    for name in HUMAN:
        (photos / f"{name}.xmp").write_bytes(human_xmp("mine"))
    work = Work(base / "work", photos).propose({name: ["withdrawn"] for name in WITHDRAWN})
    work.apply()
    work.propose({name: [] if name in WITHDRAWN else ["sea"] for name in PHOTOS})
    shutil.rmtree(work.results / "changes")
    shutil.copytree(photos, base / "before")
    old = snapshot(photos)
    work.apply()
    return base, work, old, snapshot(photos)


@pytest.fixture
def start(prepared, monkeypatch, tmp_path):
    base, work, old, new = prepared
    shutil.rmtree(base / "photos")
    shutil.copytree(base / "before", base / "photos")
    shutil.rmtree(work.results / "changes")
    monkeypatch.setattr(applying, "CHUNK", 4)
    monkeypatch.setattr(undoing, "CHUNK", 4)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # what a killed one leaves there
    return base / "photos", work, old, {name: content for name, (content, *_) in new.items()}


def _assert_old_or_new(photos: Path, old: dict, new: dict) -> None:
    allowed = {name: {new.get(name), old.get(name, (None,))[0]} for name in old | new}
    contents = {n: c for n, (c, *_) in snapshot(photos).items() if not n.endswith(".tmp")}
    for name in allowed | contents:
        assert contents.get(name) in allowed.get(name, ()), name
        if name.endswith(".xmp") and name in contents:
            xmp.parse(contents[name])


def _undo_all(work: Work) -> None:
    while latest(work.results):
        with suppress(UserError):  # killed before anything was changed: nothing to undo
            work.undo()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_applies_killed_again_and_again(start, seed):
    photos, work, old, new = start
    kill = Killed(seed)
    while kill.count < KILLS:
        seconds = 0.5 if kill.count == 2 else None  # once at any time, mostly in ExifTool's
        if not kill.run(work.apply, 70, seconds):
            _undo_all(work)  # it was faster: once more from the start
        _assert_old_or_new(photos, old, new)
    work.apply()
    assert {name: content for name, (content, *_) in snapshot(photos).items()} == new
    assert unfinished(work.results) == []
    _undo_all(work)
    assert snapshot(photos) == old


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_undos_killed_again_and_again(start, seed):
    photos, work, old, new = start
    work.apply()
    kill = Killed(seed)
    while kill.count < KILLS:
        if not (latest(work.results) and kill.run(work.undo, 40)):
            work.apply()
        _assert_old_or_new(photos, old, new)
    _undo_all(work)
    assert snapshot(photos) == old
    assert unfinished(work.results) == []


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_an_apply_that_was_killed_can_be_undone_at_once(start, seed):
    photos, work, old, new = start
    assert Killed(seed + 100).run(work.apply, 40)
    _assert_old_or_new(photos, old, new)
    _undo_all(work)
    assert {n: v for n, v in snapshot(photos).items() if n.endswith(".tmp")} == {}
    assert snapshot(photos) == old
