"""Several work directories publish beside the same photos at the same time.

Whatever the timing, each sidecar has to be what one after the other would have left, byte for byte.
"""

import itertools
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from phototagger import applying, changeset, publish, xmp
from publishing.library import Work, human_xmp, make_photos, snapshot

FORK = multiprocessing.get_context("fork")
ROUNDS = 10  # of four cases: 40 trials
HUMAN = {"shared/0.jpg": "mine", "shared/deep/2.jpg": "yours"}  # photos with a sidecar
SHARED = ["shared/0.jpg", "shared/1.jpg", "shared/deep/2.jpg", "shared/deep/3.jpg"]
OWN = ["a/4.jpg", "b/5.jpg", "c/6.jpg"]  # of one work directory each


class Case:
    """Work directories with overlapping roots, and every outcome that an order of theirs has."""

    def __init__(self, base: Path, count: int, equal: bool):
        self.photos = make_photos(base / "photos", *SHARED, *OWN)
        for name, keyword in HUMAN.items():
            (self.photos / f"{name}.xmp").write_bytes(human_xmp(keyword))
        self.start = base / "start"
        shutil.copytree(self.photos, self.start)
        # one has everything as root, the others parts of it
        tops = [["."], ["shared", "b"], ["shared/deep", "c", "shared"]]
        self.works = []
        for number in range(count):
            roots = [self.photos / top for top in tops[number]]
            work = Work(base / f"work{number}", *roots, run_id=f"run{number}")
            said = {
                name: ["sea"] if equal and name in SHARED else ["sea", f"only|by{number}"]
                for name in [*SHARED, *OWN]
                if (name in SHARED or name == OWN[number])
            }
            work.propose(dict(filter(None, (_named(work, self.photos, s) for s in said.items()))))
            self.works.append(work)
        self.serial: dict[str, set[bytes]] = {}
        for order in itertools.permutations(self.works):
            self.restore()
            for work in order:
                work.apply()
            for name, (content, *_) in self.sidecars().items():
                self.serial.setdefault(name, set()).add(content)

    def restore(self) -> None:
        shutil.rmtree(self.photos)
        shutil.copytree(self.start, self.photos)
        for work in self.works:
            shutil.rmtree(work.results / "changes", ignore_errors=True)

    def sidecars(self) -> dict:
        return {n: v for n, v in snapshot(self.photos).items() if n.endswith(".xmp")}


def _named(work: Work, photos: Path, said: tuple[str, list]) -> tuple[str, list] | None:
    """A photo as this work directory calls it; None if it is below none of its roots."""
    name = work.roots.rel_path(photos / said[0])
    return (name, said[1]) if name else None


def _apply(work: Work, start, answer) -> None:
    start.wait()
    try:
        outcome, told = work.apply()
        refused = [repr(t) for t in told if isinstance(t, publish.Refused)]
        answer.send((outcome.changeset, refused))
    except BaseException as error:
        answer.send((None, [repr(error)]))
        raise


@pytest.fixture(
    scope="module",
    params=[(2, True), (2, False), (3, True), (3, False)],
    ids=["two-equal", "two-different", "three-equal", "three-different"],
)
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("race"), *request.param)


@pytest.mark.parametrize("trial", range(ROUNDS))
def test_concurrent_applies_lose_nothing(case, trial, monkeypatch):
    if trial % 5 == 0:  # they take turns within an apply, too
        monkeypatch.setattr(applying, "CHUNK", 4)
    case.restore()
    start = FORK.Barrier(len(case.works))
    pipes = [FORK.Pipe(duplex=False) for _ in case.works]
    processes = [
        FORK.Process(target=_apply, args=(work, start, pipe[1]))
        for work, pipe in zip(case.works, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    answers = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join()
    assert [refused for _, refused in answers] == [[] for _ in case.works]

    found = case.sidecars()
    assert found.keys() == case.serial.keys()  # none vanished
    for name, (content, *_) in found.items():
        assert content in case.serial[name], f"{name}: no order of the applies leads to this"
    for name, keyword in HUMAN.items():
        packet = xmp.parse((case.photos / f"{name}.xmp").read_bytes())
        assert keyword in packet.theirs["XMP-dc:Subject"]
        assert packet.rest
    for number, name in enumerate(OWN[: len(case.works)]):
        packet = xmp.parse((case.photos / f"{name}.xmp").read_bytes())
        assert f"by{number}" in packet.values["XMP-dc:Subject"]
    everything = [name for _, _, names in os.walk(case.photos) for name in names]
    assert not [name for name in everything if name.startswith(".")]
    _assert_journals_are_right(case)


def _assert_journals_are_right(case: Case) -> None:
    """Undone in the reverse of the order in which each file was written, all of it goes back."""
    for _ in case.works:
        for work in case.works:
            if changeset.latest(work.results):
                work.undo()
    start = {
        name.replace(str(case.start), str(case.photos), 1): value
        for name, value in snapshot(case.start).items()
    }
    assert snapshot(case.photos) == start
