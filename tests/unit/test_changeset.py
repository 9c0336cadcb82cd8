import errno
import hashlib
import itertools
import json
import multiprocessing
import os

import pytest

from phototagger import changeset as journal
from phototagger.changeset import Before, Entry, JournalError
from phototagger.errors import UserError

ODD = "not utf8 \\xff\\n.jpg"  # as `names` encodes it


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def entry(number, before=b"old", name=ODD):
    old = Before(hashlib.sha256(before).hexdigest(), 0o640, 17) if before is not None else None
    path = f"/photos/{name}"
    return Entry(number, name, path, f"{path}.xmp", f".photo-tagger-{number}.tmp", old, "new")


def made(results, count=3):
    changeset = journal.create(results, "run1")
    changeset.keep([b"old"])
    changeset.intend([entry(number) for number in range(count)])
    changeset.mark("done", [entry(0)])
    changeset.mark("void", [entry(1)])
    return changeset


def test_read_back_as_written(results):
    written = made(results)
    read = journal.open_changeset(results, written.id)
    assert read.entries == written.entries == [entry(0), entry(1), entry(2)]
    assert read.states == written.states == ["done", "void", "intent"]
    assert (read.run_id, read.closed) == ("run1", False)
    assert read.entries[0].target == type(results)(os.fsdecode(b"/photos/not utf8 \xff\n.jpg.xmp"))
    assert read.before_bytes(entry(0).before) == b"old"
    written.close()
    assert journal.open_changeset(results, written.id).closed


def test_cut_off_anywhere(results):
    whole = made(results)
    whole.close()
    path = whole.folder / "journal.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    ends = set(itertools.accumulate(map(len, lines[:-1])))
    for size in sorted({*range(0, len(content), 7), *ends, *(end - 1 for end in ends)}):
        path.write_bytes(content[:size])
        cut = journal.Changeset(whole.folder)
        kept = content[: content[:size].rfind(b"\n") + 1]
        assert len(cut.entries) == sum(b'"intent"' in line for line in kept.splitlines())
        assert not cut.closed
        assert [c.id for c in journal.unfinished(results)] == [whole.id]
        if cut.entries:
            cut.mark("done", cut.entries[:1])
            again = path.read_bytes().splitlines(keepends=True)
            assert again[:-1] == lines[: len(again) - 1]
            assert json.loads(again[-1]) == {"op": "done", "numbers": [0]}
    path.write_bytes(content)
    assert journal.unfinished(results) == []


def test_damage_is_named(results):
    changeset = made(results)
    path = changeset.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"{}\n", b"\xff\n", b'{"op": "what"}\n', b'{"op": "done", "numbers": [9]}\n'):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[2:]]))
        with pytest.raises(UserError, match=r"journal\.jsonl, line 3: damaged"):
            journal.Changeset(changeset.folder)


def test_previous_bytes_that_are_not_what_they_were(results):
    changeset = made(results)
    (changeset.folder / "before" / entry(0).before.sha256).write_bytes(b"other")
    with pytest.raises(ValueError, match="not the bytes"):
        changeset.before_bytes(entry(0).before)
    changeset.keep([b"old"])  # as of a kill while it was written
    assert changeset.before_bytes(entry(0).before) == b"old"


def test_ids_grow_whatever_the_clock_says(results, monkeypatch):
    times = iter(["20260102-000000"] * 12 + ["20260101-000000", "20260103-000000"])
    monkeypatch.setattr(journal.time, "strftime", lambda _: next(times))
    made_ids = [journal.create(results, "r").id for _ in range(14)]
    assert made_ids[:2] == ["20260102-000000", "20260102-000000-2"]
    assert made_ids[-2:] == ["20260102-000000-13", "20260103-000000"]
    assert journal.changesets(results) == made_ids


def test_latest_is_the_last_with_something_to_undo(results):
    assert journal.latest(results) is None
    assert journal.changesets(results) == []
    first, second = made(results), made(results)
    second.mark("undone", [entry(0), entry(2)])
    assert journal.latest(results).id == first.id
    with pytest.raises(UserError, match=f"valid are: {first.id}, {second.id}"):
        journal.open_changeset(results, "20000101-000000")


def test_undoing_is_remembered_until_it_is_done(results):
    changeset = made(results)
    changeset.close()
    changeset.append([{"op": "undoing", "number": 0, "temporary": "t"}])
    read = journal.Changeset(changeset.folder)
    assert (read.undoing, read.closed, read.is_being_undone) == ({0: "t"}, False, True)
    changeset.mark("undone", [entry(0)])
    read = journal.Changeset(changeset.folder)
    assert (read.undoing, read.of("undone")) == ({}, [entry(0)])


def test_a_full_disk_leaves_the_journal_as_it_was(results, monkeypatch):
    changeset = made(results)
    path = changeset.folder / "journal.jsonl"
    content, real = path.read_bytes(), os.pwrite

    def full(descriptor, view, offset):
        if len(view) > 10:
            return real(descriptor, view[:10], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(JournalError, match="free some space"):
            changeset.intend([entry(3)])
    assert path.read_bytes() == content
    assert len(changeset.entries) == 3
    changeset.intend([entry(3)])
    assert journal.Changeset(changeset.folder).entries == changeset.entries


def test_one_at_a_time(results):
    def other(answer):
        try:
            with journal.exclusive(results):
                answer.send("mine")
        except UserError as error:
            answer.send(str(error))

    context = multiprocessing.get_context("fork")

    def ask():
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=other, args=(send,))
        process.start()
        answer = receive.recv()
        process.join()
        return answer

    with journal.exclusive(results):
        assert "another apply or undo is under way" in ask()
    assert ask() == "mine"
    assert os.listdir(results / "changes") == []
