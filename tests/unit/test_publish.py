"""Comparing, applying and undoing, in one process; races and kills are in tests/publishing."""

import errno
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from publishing.library import Work, human_xmp, make_photos, snapshot

from phototagger import applying, changeset, merge, originals, replacing, xmp
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.manifest import read_manifest, write_manifest
from phototagger.names import encode
from phototagger.publish import Planned, Refused, Restored, pending

ODD = ["new\nline.jpg", os.fsdecode(b"not utf8 \xff.jpg"), "-leading.jpg", "日本 #@.jpg"]


def subject(path):
    return xmp.parse(path.read_bytes()).values.get("XMP-dc:Subject", [])


def refusals(told):
    return {t.rel_path: t.kind for t in told if isinstance(t, Refused)}


def actions(told):
    return {t.rel_path: t.action for t in told if not isinstance(t, Refused)}


SAID = {"a.jpg": ["animal|cat"], "b.jpg": ["dog"], "sub/c.jpg": ["sea"], "d.jpg": []}


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    base = tmp_path_factory.mktemp("proposed")
    return Work(base / "work", make_photos(base / "photos", *SAID)).propose(SAID)


@pytest.fixture
def work(tmp_path, proposed):
    photos = make_photos(tmp_path / "photos", *SAID)
    (photos / "b.jpg.xmp").write_bytes(human_xmp("mine", "yours"))
    os.chmod(photos / "b.jpg.xmp", 0o640)
    os.utime(photos / "b.jpg.xmp", ns=(10**18 + 7, 10**18 + 7))
    work = proposed.copy(tmp_path / "work", photos)
    work.photos = photos
    return work


# -------------------------------------------------------------------------------------- compare


def test_compare_writes_nothing_and_says_what_apply_does(work):
    before = snapshot(work.photos, work.results)
    planned = work.compare()
    assert snapshot(work.photos, work.results) == before
    assert [(p.rel_path, p.action) for p in planned] == [
        ("a.jpg", "create"),
        ("b.jpg", "update"),
        ("sub/c.jpg", "create"),
    ]
    assert planned[1].path == work.photos / "b.jpg.xmp"
    assert planned[1].before.values["XMP-dc:Subject"] == ["mine", "yours"]
    changed = {c.tag: c.added for c in planned[1].changes}
    assert changed["XMP-dc:Subject"] == ("dog",)
    _, told = work.apply()
    assert [(t.rel_path, t.action) for t in told] == [(p.rel_path, p.action) for p in planned]


def test_only_some_paths(work):
    def found(*paths):
        return [p.rel_path for p in work.compare(paths=paths)]

    assert found(work.photos / "sub") == ["sub/c.jpg"]
    assert found(work.photos / "a.jpg", work.photos / "sub/c.jpg") == ["a.jpg", "sub/c.jpg"]
    assert found(work.photos / "b.jpg.xmp") == ["b.jpg"]
    assert found(work.photos) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    with pytest.raises(UserError, match="not in a folder of this work directory"):
        found(work.folder)


def test_nothing_proposed_is_an_error(tmp_path):
    with pytest.raises(UserError, match="run `photo-tagger run` first"):
        Work(tmp_path / "work").library  # noqa: B018


def test_photos_that_changed_or_went_since_the_run(work):
    (work.photos / "a.jpg").write_bytes(b"edited")
    (work.photos / "sub/c.jpg").unlink()
    os.utime(work.photos / "b.jpg")  # touched, with the same content
    found = work.compare()
    assert refusals(found) == {"a.jpg": "photo_changed", "sub/c.jpg": "photo_missing"}
    assert actions(found) == {"b.jpg": "update"}
    shutil.rmtree(work.photos)
    assert set(refusals(work.compare()).values()) == {"photo_missing"}


def test_a_proposal_that_is_not_what_was_made(work):
    (work.results / "sidecars/a.jpg.xmp").write_bytes(human_xmp("forged"))
    (work.results / "sidecars/b.jpg.xmp").unlink()
    expected = dict.fromkeys(["a.jpg", "b.jpg"], "proposal_changed")
    assert refusals(work.compare()) == expected


def test_one_whose_proposal_could_not_be_written_is_left_as_it_is(work):
    work.apply()
    manifest = work.results / "sidecars-manifest/s1.tsv"
    rows = [
        replace(row, sidecar_sha256=None, failed=True) if row.rel_path == "b.jpg" else row
        for row in read_manifest(manifest)
    ]
    write_manifest(manifest, rows)
    before = (work.photos / "b.jpg.xmp").read_bytes()
    _, told = work.apply()
    assert refusals(told) == {"b.jpg": "no_proposal"}
    assert not any(t.failure for t in told if isinstance(t, Refused))
    assert (work.photos / "b.jpg.xmp").read_bytes() == before


def test_a_caption_alone_spreads_a_persons_keywords_and_description(work):
    work.propose({"a.jpg": []}, caption={"a.jpg": "A cat."})
    values = {"XMP-dc:Subject": ["Tom"], "XMP-dc:Description": ["At sea"]}
    (content,) = xmp.write_xmp([xmp.Item("a.jpg", None, values, xmp.Marks())])
    (work.photos / "a.jpg.xmp").write_bytes(content)
    work.apply()
    after = xmp.parse((work.photos / "a.jpg.xmp").read_bytes()).values
    assert after["XMP-digiKam:TagsList"] == ["Tom"]
    assert after["XMP-tiff:ImageDescription"] == ["At sea"]


def test_decisions(work):
    rows = {row.rel_path: row for row in work.library.rows()}

    def decide(name, decision, proposal):
        row = rows[name]
        return json.dumps({"sha256": row.photo_sha256, "decision": decision, "proposal": proposal})

    (work.results / "review").mkdir()
    (work.results / "review/decisions.jsonl").write_text(
        "\n".join(
            [
                decide("a.jpg", "approved", rows["a.jpg"].sidecar_sha256),
                decide("b.jpg", "rejected", None),
                decide("sub/c.jpg", "approved", "0" * 64),
            ]
        )
    )
    found = work.compare()
    assert refusals(found) == {"b.jpg": "rejected"}
    assert actions(found) == {"a.jpg": "create", "sub/c.jpg": "create"}
    found = work.compare(only_approved=True)
    assert actions(found) == {"a.jpg": "create"}
    assert refusals(found) == {"b.jpg": "rejected", "sub/c.jpg": "unapproved"}
    assert not any(f.failure for f in found if isinstance(f, Refused))


# ------------------------------------------------------------------------------- apply and undo


def test_apply_then_undo_gives_back_the_same_bytes_modes_and_times(work):
    before = snapshot(work.photos)
    outcome, _ = work.apply()
    assert outcome.counts == {"create": 2, "update": 1}
    assert subject(work.photos / "a.jpg.xmp") == ["animal", "cat"]
    found = xmp.parse((work.photos / "b.jpg.xmp").read_bytes())
    assert found.values["XMP-dc:Subject"] == ["mine", "yours", "dog"]
    assert found.values["XMP-digiKam:TagsList"] == ["mine", "yours", "dog"]
    assert found.marks.run_id == "run1"
    assert found.rest  # crs:Exposure2012
    assert (work.photos / "b.jpg.xmp").stat().st_mode & 0o777 == 0o640
    undone, told = work.undo()
    assert undone.changeset == outcome.changeset
    assert {(t.path.name, t.action) for t in told} == {
        ("a.jpg.xmp", "removed"),
        ("b.jpg.xmp", "restored"),
        ("c.jpg.xmp", "removed"),
    }
    assert snapshot(work.photos) == before
    with pytest.raises(UserError, match="nothing was applied that could be undone"):
        work.undo()


def test_again_touches_nothing_whichever_run_it_is(work):
    work.apply()
    before = snapshot(work.photos)
    outcome, told = work.apply()
    assert (outcome.changeset, outcome.counts) == (None, {"keep": 3})
    assert all(isinstance(t, Planned) for t in told)
    (work.results / "audit/config.json").write_text(
        (work.results / "audit/config.json").read_text().replace("run1", "run2")
    )
    assert work.apply()[0].counts == {"keep": 3}
    assert snapshot(work.photos) == before
    assert len(changeset.changesets(work.results)) == 1


def test_two_applies_undone_in_turn(work):
    start = snapshot(work.photos)
    work.apply()
    first = snapshot(work.photos)
    work.propose({"a.jpg": ["fox"], "b.jpg": [], "sub/c.jpg": ["sea"], "d.jpg": ["new"]})
    outcome, _ = work.apply()
    assert outcome.counts == {"create": 1, "update": 2, "keep": 1}
    assert subject(work.photos / "a.jpg.xmp") == ["fox"]
    assert "dog" not in subject(work.photos / "b.jpg.xmp")
    work.undo()
    assert snapshot(work.photos) == first
    work.undo()
    assert snapshot(work.photos) == start


def test_what_is_no_longer_proposed_is_withdrawn(work):
    work.apply()
    work.propose({"a.jpg": [], "b.jpg": ["dog"], "sub/c.jpg": ["sea"], "d.jpg": []})
    before = snapshot(work.photos)
    outcome, _ = work.apply()
    assert outcome.counts == {"remove": 1, "keep": 2}
    assert not (work.photos / "a.jpg.xmp").exists()
    work.undo()
    assert snapshot(work.photos) == before


def test_undo_leaves_alone_what_was_edited_since(work):
    before = snapshot(work.photos)
    work.apply()
    edited = human_xmp("edited")
    (work.photos / "a.jpg.xmp").write_bytes(edited)
    (work.photos / "b.jpg.xmp").unlink()
    outcome, told = work.undo()
    assert outcome.counts == {"failed": 2, "removed": 1}
    assert refusals(told) == {"a.jpg": "changed_meanwhile", "b.jpg": "changed_meanwhile"}
    previous = next(t.message for t in told if t.rel_path == "b.jpg").rpartition(" ")[2]
    assert Path(previous).read_bytes() == human_xmp("mine", "yours")
    assert (work.photos / "a.jpg.xmp").read_bytes() == edited
    # brought back to what apply wrote, or deleted by hand: the rest can be undone
    (work.photos / "a.jpg.xmp").unlink()
    (work.photos / "b.jpg.xmp").write_bytes(human_xmp("mine", "yours"))
    outcome, _ = work.undo()
    assert outcome.counts == {"removed": 1, "restored": 1}
    assert snapshot(work.photos).keys() == before.keys()


def test_undo_of_an_older_changeset_spares_what_a_newer_one_wrote(work):
    older, _ = work.apply()
    work.propose({"a.jpg": ["fox"], "b.jpg": ["dog"], "sub/c.jpg": ["sea"], "d.jpg": []})
    work.apply()
    _, told = work.undo(older.changeset)
    assert refusals(told) == {"a.jpg": "changed_meanwhile"}
    assert subject(work.photos / "a.jpg.xmp") == ["fox"]


def test_undo_of_some_paths(work):
    work.apply()
    with pytest.raises(UserError, match="none of it concerns"):
        work.undo(None, work.photos / "d.jpg")
    _, told = work.undo(None, work.photos / "a.jpg", work.photos / "sub")
    assert [t.rel_path for t in told] == ["a.jpg", "sub/c.jpg"]
    _, told = work.undo(None, work.photos / "b.jpg.xmp")
    assert [t.rel_path for t in told] == ["b.jpg"]


def test_undo_of_no_such_changeset(work):
    outcome, _ = work.apply()
    with pytest.raises(UserError, match=f"valid are: {outcome.changeset}"):
        work.undo("nonsense")


# --------------------------------------------------------------------------------- odd sidecars


def test_not_xml_is_named_and_left_alone(work):
    for name, junk in (("a.jpg.xmp", b"\0junk"), ("b.jpg.xmp", b"")):
        (work.photos / name).write_bytes(junk)
    before = snapshot(work.photos)
    outcome, told = work.apply()
    assert refusals(told) == {"a.jpg": "not_xmp", "b.jpg": "not_xmp"}
    assert outcome.counts == {"create": 1, "failed": 2}
    assert snapshot(work.photos).items() >= before.items()


def test_a_folder_a_pipe_or_a_dangling_link_in_its_place(work):
    (work.photos / "a.jpg.xmp").mkdir()
    (work.photos / "b.jpg.xmp").unlink()
    os.mkfifo(work.photos / "b.jpg.xmp")
    (work.photos / "sub/c.jpg.xmp").symlink_to("nowhere")
    _, told = work.apply()
    kinds = refusals(told)
    assert kinds.pop("sub/c.jpg") == "unreadable"
    assert set(kinds) == {"a.jpg", "b.jpg"}
    assert set(kinds.values()) <= {"not_xmp", "unreadable"}


def test_a_symlinked_sidecar_is_written_where_it_leads(work, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.xmp").write_bytes(human_xmp("mine"))
    (work.photos / "a.jpg.xmp").symlink_to(elsewhere / "real.xmp")
    before = snapshot(work.photos, elsewhere)
    work.apply()
    assert (work.photos / "a.jpg.xmp").is_symlink()
    assert subject(elsewhere / "real.xmp") == ["mine", "animal", "cat"]
    work.undo()
    assert snapshot(work.photos, elsewhere) == before


def test_members_of_a_capture_and_strangers_of_one_name(tmp_path):
    said = ["b.CR3", "b.jpg", "b.tif", "c.jpg", "c.png", "d.jpg", "d.png"]
    photos = make_photos(tmp_path / "photos", *said)
    (photos / "d.xmp").write_bytes(human_xmp("whose"))
    work = Work(tmp_path / "work", photos)
    inherited = dict.fromkeys(["b.CR3", "b.tif"], "b.jpg")
    work.propose({name: ["sea"] for name in said}, inherited_from=inherited)
    before = snapshot(photos)
    for naming, raws in (("ext", ["b.CR3"]), ("stem", ["b"]), ("both", ["b.CR3", "b"])):
        _, told = work.apply(naming=naming)
        found = refusals(told)
        assert {found.pop(name) for name in ("d.jpg", "d.png")} == {"shared_stem"}
        assert set(found.values()) <= {"no_sidecar"}
        others = [] if naming == "stem" else ["b.jpg", "b.tif", "c.jpg", "c.png"]
        after = snapshot(photos)
        assert after.keys() - before.keys() == {f"{photos}/{n}.xmp" for n in raws + others}
        assert before.items() <= after.items()  # d.xmp, and the photos with their times
        for name in raws + others:
            marks = xmp.parse((photos / f"{name}.xmp").read_bytes()).marks
            member = name.startswith("b") and name != "b.jpg"
            assert marks.inherited_from == ("b.jpg" if member else None)
        work.undo()


def test_two_names_of_one_file_have_one_writer(work):
    (work.photos / "a.jpg.xmp").symlink_to("b.jpg.xmp")
    found = work.compare()  # the one that it is named after
    assert refusals(found) == {"a.jpg": "shared_stem"}
    assert actions(found)["b.jpg"] == "update"


def test_odd_names(tmp_path):
    photos = make_photos(tmp_path / "photos", *ODD)
    (photos / f"{ODD[1]}.xmp").write_bytes(human_xmp("mine"))
    work = Work(tmp_path / "work", photos).propose({name: ["sea"] for name in ODD})
    before = snapshot(photos)
    outcome, _ = work.apply()
    assert outcome.counts == {"create": 3, "update": 1}
    for name in ODD:
        assert "sea" in subject(photos / f"{name}.xmp")
    _, told = work.undo(None, photos / ODD[0])
    assert [t.rel_path for t in told] == [encode(ODD[0])]
    work.undo()
    assert snapshot(photos) == before


def test_a_name_too_long(tmp_path):
    long = "x" * 247 + ".jpg"  # 251 bytes: no room for .xmp
    photos = make_photos(tmp_path / "photos", "a.jpg", long)
    work = Work(tmp_path / "work", photos).propose({"a.jpg": ["sea"]})
    manifest = work.results / "sidecars-manifest/s1.tsv"
    manifest.write_text(manifest.read_text().replace("a.jpg\t", f"{long}\t"))
    stored = work.results / "sidecars" / "a.jpg.xmp"
    assert stored.exists()
    assert refusals(work.compare()).keys() == {long}


def test_two_that_differ_are_a_conflict(tmp_path):
    photos = make_photos(tmp_path / "photos", "a.cr3", "b.cr3")
    for name, *keywords in (
        ("a.cr3.xmp", "one"),
        ("a.xmp", "two"),
        ("b.cr3.xmp", "same"),
        ("b.xmp", "same"),
    ):
        (photos / name).write_bytes(human_xmp(*keywords))
    work = Work(tmp_path / "work", photos).propose({"a.cr3": ["sea"], "b.cr3": ["sea"]})
    outcome, told = work.apply()
    assert refusals(told) == {"a.cr3": "conflict"}
    assert outcome.counts == {"update": 2, "failed": 1}
    assert subject(photos / "b.xmp") == subject(photos / "b.cr3.xmp") == ["same", "sea"]
    outcome, _ = work.apply(both=True)
    assert outcome.counts == {"update": 2, "keep": 2}
    assert subject(photos / "a.xmp") == ["two", "one", "sea"]
    assert subject(photos / "a.cr3.xmp") == ["one", "two", "sea"]
    assert work.apply()[0].counts == {"keep": 4}  # now they agree


def test_naming_both_makes_two_alike(tmp_path):
    photos = make_photos(tmp_path / "photos", "a.cr3")
    work = Work(tmp_path / "work", photos).propose({"a.cr3": ["sea"]})
    assert work.apply(naming="both")[0].counts == {"create": 2}
    assert (photos / "a.xmp").read_bytes() == (photos / "a.cr3.xmp").read_bytes()
    assert work.apply()[0].counts == {"keep": 2}


def test_too_large(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    (photos / "b.jpg.xmp").write_bytes(human_xmp("mine") + b" " * 5000)
    monkeypatch.setattr(applying, "LARGEST_WRITTEN", 1000)
    work = Work(tmp_path / "work", photos).propose({"a.jpg": ["sea"], "b.jpg": ["sea"]})
    _, told = work.apply()
    assert refusals(told) == {"a.jpg": "too_large"}  # the other was larger before
    assert actions(told) == {"b.jpg": "update"}


def test_a_writer_that_would_lose_something(work, monkeypatch):
    real = xmp.write_xmp

    def losing(items):
        results = real(items)
        return [xmp.WriteFailure("a.jpg: ExifTool would not keep x:y"), *results[1:]]

    monkeypatch.setattr(xmp, "write_xmp", losing)
    outcome, told = work.apply()
    assert refusals(told) == {"a.jpg": "would_lose"}
    assert outcome.counts == {"create": 1, "update": 1, "failed": 1}
    assert not (work.photos / "a.jpg.xmp").exists()


# ------------------------------------------------------------------------------------ embedding


@pytest.fixture
def pictures(tmp_path):
    photos = make_photos(tmp_path / "photos", "raw.cr3")
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (64, 48), "teal").save(photos / name)
        os.utime(photos / name, ns=(10**18 + 7, 10**18 + 7))
    work = Work(tmp_path / "work", photos)
    work.photos = photos
    return work.propose({"a.jpg": ["sea"], "b.jpg": ["sky"], "raw.cr3": ["sea"]})


def test_embedding_with_copies_and_back(pictures, tmp_path):
    before = snapshot(pictures.photos)
    with pytest.raises(UserError, match="--backup"):
        pictures.apply(mode="embed")
    copies = tmp_path / "copies"
    outcome, told = pictures.apply(mode="embed", backup=copies)
    assert actions(told) == {"a.jpg": "update", "b.jpg": "update", "raw.cr3": "create"}
    assert originals.current(pictures.photos / "a.jpg").values["XMP-dc:Subject"] == ["sea"]
    assert not (pictures.photos / "a.jpg.xmp").exists()
    copy = copies / outcome.changeset / "a.jpg"
    assert copy.read_bytes() == before[f"{pictures.photos}/a.jpg"][0]
    assert pictures.apply(mode="embed", backup=copies)[0].counts == {"keep": 3}
    pictures.undo()
    assert snapshot(pictures.photos) == before


def test_embedding_withdraws_what_stood_in_sidecars(pictures, tmp_path):
    before = snapshot(pictures.photos)
    (pictures.photos / "b.jpg.xmp").write_bytes(human_xmp("mine"))
    between = snapshot(pictures.photos)
    pictures.apply()
    assert subject(pictures.photos / "b.jpg.xmp") == ["mine", "sky"]
    outcome, _ = pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert outcome.counts == {"update": 3, "remove": 1, "keep": 1}
    assert not (pictures.photos / "a.jpg.xmp").exists()
    assert subject(pictures.photos / "b.jpg.xmp") == ["mine"]
    assert subject(pictures.photos / "raw.cr3.xmp") == ["sea"]
    assert pictures.apply(mode="embed", backup=tmp_path / "copies")[0].changeset is None
    pictures.undo()
    pictures.undo()
    assert snapshot(pictures.photos) == between
    assert before.items() <= between.items()


def test_a_decision_is_about_the_picture_however_often_it_is_written_into(pictures, tmp_path):
    rows = {row.rel_path: row for row in pictures.library.rows()}
    path = pictures.results / "review/decisions.jsonl"
    path.parent.mkdir()

    def decide(photo, decision):
        line = {"sha256": photo, "decision": decision, "proposal": rows["a.jpg"].sidecar_sha256}
        path.write_text(json.dumps(line) + "\n")

    before = rows["a.jpg"].photo_sha256
    pictures.apply(mode="embed", backup=tmp_path / "copies")
    after = sha256_file(pictures.photos / "a.jpg")
    assert after != before
    for photo in (before, after):
        decide(photo, "rejected")
        assert refusals(pictures.compare())["a.jpg"] == "rejected"
        decide(photo, "approved")
        assert "a.jpg" not in refusals(pictures.compare(only_approved=True))


def test_embedding_that_is_cut_off_leaves_nothing(pictures, tmp_path, monkeypatch):
    before = snapshot(pictures.photos)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(replacing, "place", killed)
        with pytest.raises(KeyboardInterrupt):
            pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert snapshot(pictures.photos) == before
    outcome, _ = pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert outcome.counts == {"update": 2, "create": 1}
    pictures.undo()
    assert snapshot(pictures.photos) == before


def test_asking_what_could_be_undone_clears_up_after_an_apply_that_was_killed(
    pictures, tmp_path, monkeypatch
):
    before = snapshot(pictures.photos)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(replacing, "place", killed)
        patched.setattr(applying, "recover", lambda _: {})  # as after kill -9
        with pytest.raises(KeyboardInterrupt):
            pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert len(snapshot(pictures.photos)) == len(before) + 3  # temporary files
    with pytest.raises(UserError, match="nothing was applied"):
        pending(pictures.results)
    assert snapshot(pictures.photos) == before


def test_what_cannot_be_embedded_in_costs_no_other(pictures, tmp_path):
    (pictures.photos / "a.jpg").write_bytes(b"no picture")
    pictures.propose({"a.jpg": ["sea"], "b.jpg": ["sky"]})
    outcome, told = pictures.apply(mode="embed", backup=tmp_path / "copies")
    assert refusals(told) == {"a.jpg": "not_xmp"}
    assert outcome.counts == {"update": 1, "failed": 1}


# -------------------------------------------------------------------------------- hostile disks


@contextmanager
def immutable(*paths):
    for path in paths:
        result = subprocess.run(["chattr", "+i", path], capture_output=True, check=False)
        if result.returncode:
            pytest.skip(f"chattr +i does not work here: {result.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *paths], check=True)


@contextmanager
def small_disk(folder, size):
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "photo-tagger-test", folder]
    try:
        result = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if result.returncode:
        pytest.skip(f"mount does not work here: {result.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_or_file_that_cannot_be_written_costs_no_other(work):
    before = snapshot(work.photos)
    with immutable(work.photos / "sub", work.photos / "b.jpg.xmp"):
        outcome, told = work.apply()
        assert refusals(told) == {"sub/c.jpg": "unwritable", "b.jpg": "unwritable"}
        assert outcome.counts == {"create": 1, "failed": 2}
    assert snapshot(work.photos).keys() - before.keys() == {f"{work.photos}/a.jpg.xmp"}
    assert work.apply()[0].counts == {"create": 1, "update": 1, "keep": 1}
    with immutable(work.photos / "b.jpg.xmp"):
        assert refusals(work.undo()[1]) == {"b.jpg": "unwritable"}
    work.undo()  # what is left of that one
    work.undo()
    assert snapshot(work.photos) == before


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        photos = make_photos(disk, *(f"{n}.jpg" for n in range(20)))
        (photos / "3.jpg.xmp").write_bytes(human_xmp("mine"))
        work = Work(tmp_path / "work", photos).propose({f"{n}.jpg": ["sea"] for n in range(20)})
        before = snapshot(photos)
        filler = photos / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        os.truncate(filler, filler.stat().st_size - 5 * 4096)
        outcome, told = work.apply()
        assert 0 < outcome.counts["failed"] < 20
        assert set(refusals(told).values()) == {"no_space"}
        assert all("free some space" in t.message for t in told if isinstance(t, Refused))
        assert not [name for name in os.listdir(photos) if name.endswith(".tmp")]
        for path in photos.glob("*.xmp"):
            assert path.read_bytes() == human_xmp("mine") or "sea" in subject(path)
        filler.unlink()
        outcome, _ = work.apply()
        assert outcome.counts["failed"] == 0
        work.undo()
        work.undo()
        assert snapshot(photos) == before


def test_a_full_disk_below_the_journal_ends_the_run_with_nothing_half_done(work, monkeypatch):
    before = snapshot(work.photos)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(changeset.JournalError, match="free some space"):
            work.apply()
        assert snapshot(work.photos) == before
    real, calls = os.pwrite, []

    def full_later(*args):
        calls.append(args)
        return full() if len(calls) > 3 else real(*args)  # lock, begin, intents, no more

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_later)
        with pytest.raises(changeset.JournalError):
            work.apply()
    assert not list(work.photos.rglob("*.tmp"))
    work.undo()
    assert snapshot(work.photos) == before


def test_another_program_writes_at_the_same_time(work, monkeypatch):
    real, edits = replacing.settle, iter([human_xmp("theirs"), human_xmp("theirs", "more")])

    def settle(temporary, like, *args):
        if like == work.photos / "b.jpg.xmp" and (edit := next(edits, None)):
            like.write_bytes(edit)
        real(temporary, like, *args)

    monkeypatch.setattr(replacing, "settle", settle)
    outcome, told = work.apply()
    assert refusals(told) == {"b.jpg": "changed_meanwhile"}
    assert outcome.counts == {"create": 2, "failed": 1}
    assert (work.photos / "b.jpg.xmp").read_bytes() == human_xmp("theirs", "more")
    assert work.apply()[0].counts == {"update": 1, "keep": 2}
    assert subject(work.photos / "b.jpg.xmp") == ["theirs", "more", "dog"]


def test_a_file_made_meanwhile_is_never_replaced(work, monkeypatch):
    real = replacing.place

    def place(temporary, target, seen):
        if target.name == "a.jpg.xmp" and not target.exists():
            real_require(target, seen)
            target.write_bytes(human_xmp("theirs"))
            monkeypatch.setattr(replacing, "require", lambda *_: None)
        try:
            real(temporary, target, seen)
        finally:
            monkeypatch.setattr(replacing, "require", real_require)

    real_require = replacing.require
    monkeypatch.setattr(replacing, "place", place)
    work.apply()
    assert subject(work.photos / "a.jpg.xmp") == ["theirs", "animal", "cat"]
    work.undo()
    assert (work.photos / "a.jpg.xmp").read_bytes() == human_xmp("theirs")


def test_more_photos_and_folders_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(applying, "CHUNK", 5)
    monkeypatch.setattr(applying, "_FOLDERS", 2)
    listed = [f"{folder}/{n}.jpg" for folder in "abcd" for n in range(2)]
    photos = make_photos(tmp_path / "photos", *listed)
    work = Work(tmp_path / "work", photos).propose({name: ["sea"] for name in listed})
    before = snapshot(photos)
    assert work.apply()[0].counts == {"create": 8}
    assert work.undo()[0].counts == {"removed": 8}
    assert snapshot(photos) == before


def test_copies_of_what_is_replaced(work, tmp_path):
    with pytest.raises(UserError, match="outside"):
        work.apply(backup=work.photos / "copies")
    outcome, _ = work.apply(backup=tmp_path / "copies")
    copy = tmp_path / "copies" / outcome.changeset / "b.jpg.xmp"
    assert copy.read_bytes() == human_xmp("mine", "yours")
    assert copy.stat().st_mtime_ns == 10**18 + 7


def test_overwrite_is_handed_on(work):
    work.apply()
    path = work.photos / "sub/c.jpg.xmp"
    fields, namespace, marks = path.read_bytes().partition(b"xmlns:phototagger=")
    path.write_bytes(fields.replace(b"sea", b"my") + namespace + marks)
    work.apply()
    assert "sea" not in subject(path)
    work.apply(merge=merge.Options(overwrite=True))
    assert subject(path) == ["my", "sea"]
    assert isinstance(work.undo()[1][0], Restored)
