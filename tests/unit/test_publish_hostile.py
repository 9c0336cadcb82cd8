"""What goes away, hangs or is misnamed between or during an apply and its undo."""

import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image
from publishing.library import Work, human_xmp, make_photos, snapshot

from phototagger import exiftool, originals, replacing, undoing
from phototagger.changeset import JournalError, latest, open_changeset, unfinished
from phototagger.errors import UserError
from phototagger.locks import folder_locks
from phototagger.publish import Refused


def refusals(told):
    return {t.rel_path: t.kind for t in told if isinstance(t, Refused)}


@pytest.fixture
def work(tmp_path):
    photos = make_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    (photos / "b.jpg.xmp").write_bytes(human_xmp("mine"))
    work = Work(tmp_path / "work", photos)
    work.photos = photos
    return work.propose({"a.jpg": ["sea"], "b.jpg": ["sky"]})


@pytest.fixture
def pictures(tmp_path):
    photos = tmp_path / "pictures"
    photos.mkdir()
    Image.new("RGB", (64, 48), "teal").save(photos / "a.jpg")
    work = Work(tmp_path / "work", photos)
    work.photos = photos
    return work


# ------------------------------------------------------------------------------- photos are away


@pytest.mark.parametrize("mount_point", [True, False])
def test_undo_while_the_photos_are_away_forgets_nothing(work, tmp_path, mount_point):
    before = snapshot(work.photos)
    work.apply()
    work.photos.rename(tmp_path / "away")
    if mount_point:
        work.photos.mkdir()
    outcome, told = work.undo()
    assert outcome.counts == {"failed": 2}
    assert set(refusals(told).values()) == {"photo_missing"}
    if mount_point:
        work.photos.rmdir()
    (tmp_path / "away").rename(work.photos)
    assert work.undo()[0].counts == {"removed": 1, "restored": 1}
    assert snapshot(work.photos) == before


def cut_off(work, monkeypatch):
    """An apply that ends as if killed just after the first file is in its place."""

    def killed(*args):
        place(*args)
        raise KeyboardInterrupt

    place = replacing.place
    with monkeypatch.context() as patched:
        patched.setattr(replacing, "place", killed)
        patched.setattr("phototagger.applying.recover", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            work.apply()


def test_cut_off_then_away_then_back(work, tmp_path, monkeypatch):
    before = snapshot(work.photos)
    cut_off(work, monkeypatch)
    work.photos.rename(tmp_path / "away")
    work.photos.mkdir()  # where a disk is not mounted
    assert work.undo()[0].counts == {"failed": 2}
    work.photos.rmdir()
    (tmp_path / "away").rename(work.photos)
    work.undo()
    assert snapshot(work.photos) == before
    assert unfinished(work.results) == []


def test_an_apply_between_does_not_close_what_is_away(tmp_path, monkeypatch):
    roots = [make_photos(tmp_path / name, "1.jpg") for name in ("here", "there")]
    before = snapshot(*roots)
    work = Work(tmp_path / "work", *roots).propose({"here/1.jpg": ["sea"], "there/1.jpg": ["sea"]})
    cut_off(work, monkeypatch)
    (name,) = (changeset.id for changeset in unfinished(work.results))
    roots[1].rename(tmp_path / "away")
    work.undo(name, roots[0])
    work.apply()
    (tmp_path / "away").rename(roots[1])
    while latest(work.results):
        work.undo()
    assert snapshot(*roots) == before
    assert open_changeset(work.results, name).of("intent") == []


# --------------------------------------------------------------------------------- wrong places


def test_a_link_to_another_photos_sidecar_even_if_only_it_is_asked_for(work):
    (work.photos / "a.jpg.xmp").symlink_to("b.jpg.xmp")
    assert refusals(work.apply(paths=(work.photos / "a.jpg",))[1]) == {"a.jpg": "shared_stem"}
    assert (work.photos / "b.jpg.xmp").read_bytes() == human_xmp("mine")


def test_two_names_of_one_photo_have_one_writer(pictures, tmp_path):
    (pictures.photos / "b.jpg").symlink_to("a.jpg")
    pictures.propose({"a.jpg": ["sea"], "b.jpg": ["sky"]})
    for action in ("update", "keep"):
        outcome, told = pictures.apply(mode="embed", backup=tmp_path / "copies")
        assert refusals(told) == {"b.jpg": "shared_stem"}
        assert outcome.counts == {action: 1, "failed": 1}


def test_a_file_in_its_place_counts_although_its_temporary_name_stays(work, monkeypatch):
    unlink = Path.unlink

    def refusing(path, missing_ok=False):
        if path.name.startswith(replacing.TEMPORARY):
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refusing)
        assert work.apply(paths=(work.photos / "a.jpg",))[0].counts == {"create": 1}
    work.undo()
    assert not (work.photos / "a.jpg.xmp").exists()


def test_a_copy_that_was_cut_off_is_no_copy(pictures, tmp_path, monkeypatch):
    pictures.propose({"a.jpg": ["sea"]})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(replacing, "settle", full)
        _, told = pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert refusals(told) == {"a.jpg": "no_space"}
    assert [path for path in (tmp_path / "copies").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can give files away")
def test_the_group_is_kept_where_the_owner_cannot_be(tmp_path, monkeypatch):
    like, new = tmp_path / "like", tmp_path / "new"
    like.touch(mode=0o640)
    new.touch()
    given = []

    def ordinary_user(_, owner, group):
        if owner != -1:
            raise PermissionError(1, "Operation not permitted")
        given.append(group)

    os.chown(like, 7, 4321)
    monkeypatch.setattr(os, "fchown", ordinary_user)
    replacing.settle(new, like)
    assert given == [4321]


# ------------------------------------------------------------------------- ExifTool and the system


def program(folder, text, monkeypatch):
    path = folder / "bin/exiftool"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_exiftool_that_is_killed_within_a_command_is_started_anew(tmp_path):
    with exiftool.ExifTool() as tool:
        tool.start()
        pid = tool._process._process.pid
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(exiftool.ExifToolCrashError):
            tool.execute("-ver")
        assert tool.execute("-ver").strip()


def test_exiftool_that_does_not_answer_costs_the_photo_only(pictures, tmp_path, monkeypatch):
    pictures.propose({"a.jpg": ["sea"]})
    before = snapshot(pictures.photos)
    survey = originals._survey

    def stopped(tool, link):
        tool.start()
        os.kill(tool._process._process.pid, signal.SIGSTOP)
        return survey(tool, link)

    monkeypatch.setattr(exiftool, "PATIENCE", 0.3)
    monkeypatch.setattr(originals, "_survey", stopped)
    _, told = pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert refusals(told) == {"a.jpg": "would_lose"}
    assert snapshot(pictures.photos) == before


def test_exiftool_that_hangs_or_cannot_be_run_ends_the_apply(work, tmp_path, monkeypatch):
    before = snapshot(work.photos)
    monkeypatch.setattr(exiftool, "PATIENCE", 0.3)
    monkeypatch.setattr(exiftool, "_PER_COMMAND", 0.0)
    program(tmp_path, "#!/bin/sh\nexec sleep 60\n", monkeypatch)
    with pytest.raises(UserError, match="no answer"):
        work.apply()
    program(tmp_path, "\0", monkeypatch)
    with pytest.raises(UserError, match="cannot be run"):
        work.apply()
    assert snapshot(work.photos) == before


def test_no_place_for_temporary_files_or_a_journal_or_locks(work, monkeypatch, tmp_path):
    before = snapshot(work.photos)
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="TMPDIR"):
            work.apply()
    (work.results / "changes").rmdir()
    (work.results / "changes").touch()
    with pytest.raises(JournalError, match="changes"):
        work.apply()
    (work.results / "changes").unlink()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/", os.O_RDONLY) for _ in range(8)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, limits[1]))
    try:
        with pytest.raises(UserError, match="ulimit"), folder_locks([work.photos]):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)
    assert snapshot(work.photos) == before


def test_an_undo_does_not_hold_the_bytes_of_all_files(work, monkeypatch):
    work.apply()
    plan, steps = undoing._Undo._plan, []

    def noted(self, entries):
        steps.append(plan(self, entries))
        return steps[-1]

    monkeypatch.setattr(undoing._Undo, "_plan", noted)
    work.undo()
    assert [step.seen.content for step in steps] == [b"", b""]


def test_a_cache_that_cannot_be_written_costs_time_only(work, monkeypatch):
    monkeypatch.setattr("phototagger.statcache._INTERVAL", 0.0)
    (work.machine.cache / "stat").parent.mkdir(exist_ok=True)
    (work.machine.cache / "stat").touch()  # a file in its place
    assert work.apply()[0].counts == {"create": 1, "update": 1}
    assert work.undo()[0].counts == {"removed": 1, "restored": 1}
