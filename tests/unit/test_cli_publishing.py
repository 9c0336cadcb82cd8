"""`diff`, `apply` and `undo`: what is shown of changes, and what is asked before they are made."""

import hashlib
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from phototagger.cli import main
from phototagger.cli.difference import (
    Painter,
    Tally,
    edits,
    json_line,
    json_tally,
    one_line,
    summary_lines,
    text_lines,
)
from phototagger.cli.difference_page import write_page
from phototagger.cli.terminal import tell_refused
from phototagger.files import write_atomic
from phototagger.machine import Machine
from phototagger.manifest import Proposed, sidecar_path, write_manifest
from phototagger.merge import Change, Merged
from phototagger.plan import Root, Roots, Shard, sort_key, write_index
from phototagger.publish import Planned, Refused
from phototagger.xmp import Item, Marks, Packet, parse, write_xmp

SUBJECT, PATHS, TAGS = "XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList"
TEXT, TWIN, HEADLINE = "XMP-dc:Description", "XMP-tiff:ImageDescription", "XMP-photoshop:Headline"
ESCAPES = "\x1b]0;owned\x07\x9b31m\u202egpj.exe\u2069\x00"
HTML = "<script>alert(1)</script>\"'&"


def planned(
    rel_path: str = "2024/a.jpg",
    *changes: Change,
    action: str = "create",
    before: Packet | None = None,
    written: dict[str, tuple[str, ...]] | None = None,
    declined: tuple[str, ...] = (),
    embed: bool = False,
) -> Planned:
    path = Path("/photos", rel_path if embed else f"{rel_path}.xmp")
    after = Merged({}, Marks(written=written or {}), declined)
    return Planned(rel_path, path, action, before, after, embed, changes)


def keyword_changes(**values: tuple[str, ...]) -> list[Change]:
    """The same change in the lists with bars and with slashes."""
    slashes = {name: tuple(v.replace("|", "/") for v in vs) for name, vs in values.items()}
    both = ((PATHS, values), (TAGS, slashes))
    return [Change(tag, vs.get("added", ()), vs.get("removed", ()), None, None) for tag, vs in both]


def refused(rel_path: str, kind: str = "conflict", failure: bool = True) -> Refused:
    return Refused(rel_path, None, kind, f"it is a {kind}; mend it", failure)


def text(*items: Planned | Refused) -> list[str]:
    return list(text_lines(items, Tally(), Painter(False)))


# ---------------------------------------------------------------------------------- safe to show


def test_what_a_terminal_would_obey_is_shown_as_escapes():
    shown = one_line(ESCAPES + "\n\t")
    assert shown == r"\x1b]0;owned\x07\x9b31m\u202egpj.exe\u2069\x00\n\t"


@pytest.mark.parametrize("kept", ["中文キーワード", "naïve café", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "می‌خواهم"])
def test_what_people_write_is_shown_as_it_is(kept):
    assert kept in one_line(kept)


def test_right_to_left_text_keeps_its_direction_to_itself():
    assert one_line("שלום") == "\u2068שלום\u2069"
    assert one_line("hello") == "hello"


def test_what_is_very_long_is_cut():
    shown = one_line("x" * 5000)
    assert len(shown) < 500 and shown.endswith("… (5,000 characters)")
    values = tuple(f"keyword {n}" for n in range(5000))
    lines = text(planned("a.jpg", Change(SUBJECT, values, (), None, None)))
    assert any(
        line.endswith("keyword 19 and 4,980 more  (yours, from elsewhere)") for line in lines
    )


@pytest.mark.parametrize("where", ["name", "added", "removed", "before", "after", "message"])
def test_no_line_of_text_has_a_control_character(where):
    bad = {name: ESCAPES + "\n" if name == where else "x" for name in _PLACES}
    lines = text(
        planned(
            bad["name"],
            Change(SUBJECT, (bad["added"],), (bad["removed"],), None, None),
            Change(TEXT, (), (), bad["before"], bad["after"]),
            declined=(bad["after"],),
        ),
        Refused("b.jpg", None, "not_xmp", bad["message"], True),
    )
    assert not [line for line in lines if not line.isprintable()]
    assert any("1b]0;owned" in line for line in lines)


_PLACES = ("name", "added", "removed", "before", "after", "message")


# ----------------------------------------------------------------------------------------- text


def test_fields_have_the_prefixes_that_other_programs_show():
    changes = [
        Change(tag, (), (), None, "x")
        for tag in ("XMP-iptcCore:AltTextAccessibility", "XMP-tiff:ImageDescription")
    ]
    shown = "\n".join(text(planned("a.jpg", *changes)))
    assert "Iptc4xmpCore:AltTextAccessibility, tiff:ImageDescription" in shown
    shown = "\n".join(
        text(planned("a.jpg", Change("XMP-microsoft:LastKeywordXMP", ("x",), (), None, None)))
    )
    assert "MicrosoftPhoto:LastKeywordXMP" in shown


def test_a_keyword_with_a_comma_does_not_look_like_two():
    shown = "\n".join(text(planned("a.jpg", Change(SUBJECT, ("Jo, Jr", "Mum"), (), None, None))))
    assert '+ "Jo, Jr", Mum' in shown


def test_a_new_sidecar_folder_by_folder():
    changes = [
        Change(SUBJECT, ("Mum", "animal", "cat"), (), None, None),
        *keyword_changes(added=("animal|cat", "Mum")),
        Change(TEXT, (), (), None, "A cat."),
        Change(TWIN, (), (), None, "A cat."),
    ]
    written = {SUBJECT: ("animal", "cat"), PATHS: ("animal|cat",), TAGS: ("animal/cat",)}
    tally = Tally()
    items = [
        planned("2023/x.jpg", action="keep"),
        planned("2024/a.jpg", *changes, written=written),
        refused("2024/b.jpg"),
        planned("2024/Lisbon/c.jpg", Change(HEADLINE, (), (), "old", "new"), action="update"),
    ]
    lines = list(text_lines(items, tally, Painter(False)))
    assert lines == [
        "2024",
        "  + a.jpg.xmp (new)",
        "      dc:subject",
        "        + animal, cat",
        "        + Mum  (yours, from elsewhere)",
        "      lr:hierarchicalSubject, digiKam:TagsList",
        "        + animal|cat",
        "        + Mum  (yours, from elsewhere)",
        "      dc:description, tiff:ImageDescription",
        "        + A cat.",
        "  ! b.jpg: not written (conflict)",
        "      it is a conflict; mend it",
        "",
        "2024/Lisbon",
        "  ~ c.jpg.xmp (changed)",
        "      photoshop:Headline",
        "        - old",
        "        + new",
    ]
    assert tally.sentence() == (
        "sidecars: 1 new, 1 changed; 1 unchanged; not written: 1 (conflict 1)"
    )
    assert (tally.writes, tally.failures) == (2, 1)


def test_a_removal_and_a_change_of_our_notes_alone():
    lines = text(
        planned("a.jpg", Change(SUBJECT, (), ("cat",), None, None), action="remove"),
        planned("b.jpg", action="update", declined=("animal|dog",)),
    )
    assert lines == [
        ".",
        "  - a.jpg.xmp (removed: nothing is left to say)",
        "      dc:subject",
        "        - cat",
        "  ~ b.jpg.xmp (changed)",
        "      only photo-tagger's own notes (namespace phototagger)",
        "      stays out, as you removed it: animal|dog",
    ]


def test_what_was_asked_to_be_left_out_is_only_counted():
    tally = Tally()
    items = [refused("a.jpg", "unapproved", failure=False)]
    assert not list(text_lines(items, tally, Painter(False)))
    assert tally.sentence() == "sidecars: none; not written: 1 (unapproved 1)"
    assert not tally.failures


def test_summary_counts_by_folder():
    tally = Tally()
    items = [planned("a/1.jpg"), refused("a/2.jpg"), planned("b/1.jpg", action="keep")]
    assert list(summary_lines(items, tally, Painter(False))) == [
        "a  sidecars: 1 new; not written: 1 (conflict 1)",
        "b  sidecars: none; 1 unchanged",
    ]
    assert tally.actions.total() == 2


def test_photos_that_are_written_into_are_counted_apart():
    tally = Tally()
    for item in (planned("a.jpg", action="update", embed=True), planned("b.cr3")):
        tally.add(item)
    assert tally.sentence() == "photos: 1 written into; sidecars: 1 new"


def test_colours_only_when_asked_for():
    (heading, *_) = text_lines([planned()], Tally(), Painter(True))
    assert heading == "\x1b[1m2024\x1b[0m"


def test_lists_that_differ_are_shown_apart():
    same = edits(planned("a.jpg", *keyword_changes(added=("a|b",))))
    assert [edit.fields for edit in same] == [("lr:hierarchicalSubject", "digiKam:TagsList")]
    one, two = keyword_changes(added=("a|b",))
    other = Change(two.tag, (*two.added, "c"), (), None, None)
    assert len(edits(planned("a.jpg", one, other))) == 2


# ----------------------------------------------------------------------------------------- JSON


def test_json_is_one_ascii_object_per_line():
    change = Change(SUBJECT, ("Mum", ESCAPES), ("x\x7f",), None, None)
    line = json_line(
        planned(
            "a.jpg", change, Change(TEXT, (), (), None, "שלום\n"), written={SUBJECT: (ESCAPES,)}
        )
    )
    assert line.isascii() and line.isprintable()
    assert json.loads(line) == {
        "photo": "a.jpg",
        "file": "/photos/a.jpg.xmp",
        "action": "create",
        "embed": False,
        "changes": [
            {"tag": SUBJECT, "added": ["Mum", ESCAPES], "copied": ["Mum"], "removed": ["x\x7f"]},
            {"tag": TEXT, "before": None, "after": "שלום\n"},
        ],
        "declined": [],
    }
    assert json_line(planned(action="keep")) is None
    assert json.loads(json_line(refused("a.jpg"))) == {
        "photo": "a.jpg",
        "file": None,
        "action": "refused",
        "kind": "conflict",
        "message": "it is a conflict; mend it",
        "failure": True,
    }


def test_json_summary():
    tally = Tally()
    for item in (planned(), planned(action="keep"), refused("a.jpg")):
        tally.add(item)
    counts = {"create": 1, "update": 0, "remove": 0, "embed": 0, "keep": 1}
    assert json.loads(json_tally(tally)) == counts | {"refused": {"conflict": 1}, "failures": 1}


# ----------------------------------------------------------------------------------------- page


class Elements(HTMLParser):
    """What a browser would see: elements with their attributes, and text outside of styles."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._hidden = "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and kind in (a.get("class") or "").split(" ")]


@pytest.fixture
def page(tmp_path):
    """Writes the page of some items; photos a.jpg and b.jpg have a thumbnail."""
    (tmp_path / "cache/thumbs").mkdir(parents=True)
    lines = ""
    for name in ("2024/a.jpg", "2024/b.jpg"):
        Image.new("RGB", (60, 40), "teal").save(tmp_path / "cache/thumbs" / name[-5:])
        lines += json.dumps({"rel_path": name, "thumb": name[-5:]}) + "\n"
    (tmp_path / "records.jsonl").write_text(lines)
    machine = Machine(Roots([]), tmp_path / "cache", tmp_path, tmp_path, "cpu", None)

    def write(*items: Planned | Refused, max_photos: int = 400) -> Elements:
        write_page(
            items,
            tmp_path / "diff.html",
            Tally(),
            results=tmp_path,
            machine=machine,
            size=512,
            quality=85,
            max_photos=max_photos,
        )
        return Elements((tmp_path / "diff.html").read_text("utf-8"))

    return write


def test_a_page_shows_before_and_after_with_the_picture(page):
    before = Packet({SUBJECT: ["Mum", "dog"], TEXT: ["A dog."]})
    found = page(
        planned(
            "2024/a.jpg",
            Change(SUBJECT, ("animal", "Dad"), ("dog",), None, None),
            Change(TEXT, (), (), "A dog.", "A cat."),
            action="update",
            before=before,
            written={SUBJECT: ("animal",)},
        ),
        refused("2024/c.jpg"),
    )
    assert "1 file would be written" in found.text
    (image,) = found.all("img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    body = found.text.partition("Changes")[2]
    order = ("Mum", "dog", "animal", "Dad", "A dog.", "A cat.", "it is a conflict; mend it")
    places = [body.index(word) for word in order]
    assert places == sorted(places)
    chips = [chip["class"] for chip in found.all("li", "chip")][4:]  # after the legend
    assert chips == ["chip kept", "chip removed", "chip added", "chip added copied"]
    assert len(found.all("del")) == len(found.all("ins")) == 1


def test_a_page_refers_to_nothing_outside_and_runs_nothing(page):
    bad = HTML + ESCAPES
    change = Change(SUBJECT, (bad,), (bad,), None, None)
    items = [planned(f"{bad}/x.jpg", change, Change(TEXT, (), (), bad, bad), declined=(bad,))]
    found = page(*items, Refused(f"{bad}/y.jpg", None, "not_xmp", bad, True))
    assert not found.all("script") and not found.all("link")
    assert found.text.count("<script>alert(1)</script>") >= 6
    assert not set(found.text) & {"\x1b", "\x07", "\x00", "\x9b", "\u202e", "\u2069"}
    outside = [a for _, attrs in found.found for a in attrs.items() if a[0] in ("src", "href")]
    assert all(value.startswith(("#", "data:image/jpeg")) for _, value in outside)


def test_a_page_of_many_changes_shows_the_first_and_counts_all(page):
    items = [planned(f"2024/{n}.jpg") for n in range(7)] + [planned("2025/x.jpg")]
    items += [refused(f"2025/{n}.jpg") for n in range(500)]
    found = page(*items, max_photos=5)
    assert len(found.all("li", "entry")) == 5
    assert "8 files would be written" in found.text and "shows the first 5" in found.text
    assert "sidecars: 7 new; 5 shown" in found.text
    assert "400 of 500 are listed" in found.text


def test_a_photo_without_a_record_is_shown_without_a_picture(page):
    assert "no picture" in page(planned("2024/gone.jpg")).text
    assert "Nothing would be written" in page().text


def test_very_long_values_do_not_fill_the_page(page):
    many = tuple(f"keyword {n}" for n in range(5000))
    changes = [Change(SUBJECT, many, (), None, None), Change(TEXT, (), (), None, "x" * 1_000_000)]
    found = page(planned("2024/a.jpg", *changes, written={SUBJECT: many}))
    assert "and 4,800 more" in found.text and "(1,000,000 characters)" in found.text
    assert len(found.text) < 20_000


# -------------------------------------------------------- the commands, with real files


KEYWORDS = {SUBJECT: ["animal", "cat"], PATHS: ["animal|cat"], TAGS: ["animal/cat"]}
NAMES = ["a.jpg", "b.jpg", "Lisbon/c.jpg", f"Lisbon/{HTML.replace('/', '')}.jpg"]


@pytest.fixture(scope="module")
def proposal() -> bytes:
    written = {tag: tuple(values) for tag, values in KEYWORDS.items()}
    (content,) = write_xmp([Item("a.jpg", None, KEYWORDS, Marks(written=written))])
    assert isinstance(content, bytes)
    return content


@pytest.fixture
def work(tmp_path, proposal, monkeypatch) -> Path:
    """A work directory whose run has proposed the same keywords for every photo."""
    photos, results = tmp_path / "photos", tmp_path / "work/results"
    rows, records = [], ""
    for number, name in enumerate(sorted(NAMES, key=sort_key)):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (number * 20, 90, 90)).save(path, "JPEG")
        sidecar = sidecar_path(results / "sidecars", name)
        write_atomic(sidecar, proposal)
        digests = (hashlib.sha256(c).hexdigest() for c in (path.read_bytes(), proposal))
        photo, own = digests
        rows.append(Proposed(name, photo, name, own))
        thumb = f"{number}.jpg"
        (tmp_path / "cache/thumbs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache/thumbs" / thumb).write_bytes(path.read_bytes())
        records += json.dumps({"rel_path": name, "thumb": thumb}) + "\n"
    write_manifest(results / "sidecars-manifest/0000000001.tsv", rows)
    write_index(results / "plan/index.json", [Shard("0000000001", "d", len(rows))], "the-run")
    (results / "records.jsonl").write_text(records)
    config = {"run_id": "the-run", "config": {"photos": {"extensions": [".jpg"]}}}
    write_atomic(results / "audit/config.json", json.dumps(config))
    roots = Roots([Root("photos", str(photos))])
    Machine(roots, tmp_path / "cache", tmp_path, tmp_path, "cpu", None).write(
        results / "plan/machine.json"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "work"


def photo_tagger(*arguments: str | Path, code: int = 0) -> None:
    here = os.getcwd()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--workdir", str(Path(here, "work"))])
    os.chdir(here)
    assert (ended.value.code or 0) == code


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def last_run(work: Path) -> str:
    return sorted(path.name for path in (work / "results/changes").iterdir())[-1]


def test_diff_apply_and_undo(work, capsys):
    photos = work.parent / "photos"
    theirs = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="%s"><rdf:Description %s>%s'
    theirs %= (
        "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        'xmlns:dc="http://purl.org/dc/elements/1.1/"',
        "<dc:subject><rdf:Bag><rdf:li>Mum</rdf:li></rdf:Bag></dc:subject></rdf:Description>"
        "</rdf:RDF></x:xmpmeta>",
    )
    (photos / "b.xmp").write_text(theirs)
    before = tree(photos)

    photo_tagger("diff")
    shown = capsys.readouterr().out
    assert "  + a.jpg.xmp (new)\n" in shown and "  ~ b.xmp (changed)\n" in shown
    assert "        + Mum  (yours, from elsewhere)" in shown
    assert shown.endswith("\nsidecars: 3 new, 1 changed\n")
    photo_tagger("apply", "--dry-run")
    assert capsys.readouterr().out == "would write sidecars: 3 new, 1 changed\n"
    assert tree(photos) == before

    photo_tagger("apply", "--yes")
    shown = capsys.readouterr().out
    assert "written sidecars: 3 new, 1 changed\n" in shown
    assert f"take it back: photo-tagger undo {last_run(work)} --workdir" in shown
    assert parse((photos / "a.jpg.xmp").read_bytes()).values == KEYWORDS
    assert parse((photos / "b.xmp").read_bytes()).values[TAGS] == ["Mum", "animal/cat"]
    photo_tagger("diff")
    assert capsys.readouterr().out == "sidecars: none; 4 unchanged\n"

    photo_tagger("undo", "--list")
    assert "  3 new, 1 changed\n" in capsys.readouterr().out
    photo_tagger("undo", "--yes")
    assert capsys.readouterr().out == "as before: 1 restored, 3 new ones removed\n"
    assert tree(photos) == before
    photo_tagger("undo", "--list")
    assert "  4 taken back\n" in capsys.readouterr().out
    photo_tagger("undo", "--yes", code=2)
    assert "nothing was applied that could be undone" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["Lisbon", "Lisbon/c.jpg", "Lisbon/c.jpg.xmp"])
def test_only_what_is_named(place, work, capsys):
    photos = work.parent / "photos"
    photo_tagger("apply", "--yes", "photos/Lisbon")
    capsys.readouterr()
    first = last_run(work)
    photo_tagger("diff", f"photos/{place}", "--json", "--replace-human")
    assert not capsys.readouterr().out
    photo_tagger("undo", first, f"photos/{place}", "--yes")
    assert not (photos / "Lisbon/c.jpg.xmp").exists()
    left = len(list(photos.rglob("*.xmp")))
    assert left == (0 if place == "Lisbon" else 1)
    photo_tagger("undo", "20010101-000000", "--yes", code=2)
    assert f"unknown '20010101-000000'; valid are: {first}" in capsys.readouterr().err


def test_json_and_summary(work, capsys):
    photo_tagger("diff", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["photo"] for line in lines] == sorted(NAMES, key=sort_key)
    assert {line["action"] for line in lines} == {"create"}
    assert lines[0]["changes"][0]["added"] == ["animal", "cat"]
    photo_tagger("diff", "--json", "--summary", "photos/Lisbon")
    assert json.loads(capsys.readouterr().out)["create"] == 2
    photo_tagger("diff", "--summary")
    assert capsys.readouterr().out.splitlines()[0].endswith("sidecars: 2 new")


def test_only_what_was_approved(work, proposal, capsys):
    photo = hashlib.sha256((work.parent / "photos/a.jpg").read_bytes()).hexdigest()
    line = {"sha256": photo, "decision": "approved"}
    line["proposal"] = hashlib.sha256(proposal).hexdigest()
    write_atomic(work / "results/review/decisions.jsonl", json.dumps(line) + "\n")
    photo_tagger("apply", "--yes", "--only-approved")
    shown = capsys.readouterr().out
    assert "written sidecars: 1 new; not written: 3 (unapproved 3)\n" in shown
    assert [path.name for path in (work.parent / "photos").rglob("*.xmp")] == ["a.jpg.xmp"]


def test_a_page_is_written_where_it_is_said(work, capsys):
    photo_tagger("diff", "--html", "photos/Lisbon")
    page = work / "results/diff.html"
    assert capsys.readouterr().out == f"sidecars: 2 new\npage: {page}\n"
    assert len(Elements(page.read_text("utf-8")).all("img")) == 2
    photo_tagger("diff", "--html", "mine.html", "photos/Lisbon")
    assert (work.parent / "mine.html").read_text() == page.read_text()
    photo_tagger("diff", "--html", "--json", code=2)
    photo_tagger("diff", "--html", "mine.html/below.html", code=1)
    assert "mine.html/below.html: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("photo", ["photos/a.jpg", "photos/new.png", "page"])
def test_a_photo_is_never_taken_for_the_page(photo, work, capsys):
    before = tree(work.parent)
    photo_tagger("diff", f"--html={photo}", code=2)
    assert f"--html={photo}: is no name of a page" in capsys.readouterr().err
    assert tree(work.parent) == before


def test_what_follows_two_dashes_are_paths(work, capsys):
    photos = work.parent / "photos"
    (photos / "-n.txt").touch()
    here = os.getcwd()
    for names, said in ((["-n.txt"], "sidecars: none\n"), (["a.jpg"], "sidecars: 1 new\n")):
        os.chdir(photos)
        with pytest.raises(SystemExit) as ended:
            main(["apply", "--yes", "--workdir", str(work), "--", *names])
        os.chdir(here)
        assert not ended.value.code
        assert said in capsys.readouterr().out
    assert [path.name for path in photos.rglob("*.xmp")] == ["a.jpg.xmp"]


def test_paths_without_a_proposal_are_said_to_have_none(work, capsys):
    (work.parent / "photos/new.jpg").touch()
    photo_tagger("diff", "photos/new.jpg")
    assert "nothing is proposed for these paths" in capsys.readouterr().out
    photo_tagger("diff", "photos")
    assert "nothing is proposed" not in capsys.readouterr().out


def test_what_cannot_be_written_is_named_and_fails(work, capsys):
    photos = work.parent / "photos"
    (photos / "b.jpg.xmp").write_text("not XML")
    (photos / "a.jpg").write_bytes(b"another photo")
    photo_tagger("diff")
    assert "  ! b.jpg: not written (not_xmp)" in capsys.readouterr().out
    photo_tagger("apply", "--yes", code=1)
    told = capsys.readouterr()
    assert "written sidecars: 2 new; not written: 2 (not_xmp 1, photo_changed 1)" in told.out
    assert "  not written: b.jpg (b.jpg.xmp): not_xmp: not XMP" in told.out
    assert "2 could not be written, see above" in told.err
    assert (photos / "b.jpg.xmp").read_text() == "not XML"


def test_many_that_cannot_be_written_are_in_a_file(tmp_path, capsys):
    items = [refused(f"{n:02}.jpg", failure=n == 29) for n in range(30)]
    tell_refused(items, tmp_path / "refused.txt")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and lines[0] == "  not written: 29.jpg: conflict: " + items[0].message
    assert lines[-1] == f"  and 10 more, all in {tmp_path / 'refused.txt'}"
    assert len((tmp_path / "refused.txt").read_text().splitlines()) == 30


def test_undo_names_what_was_edited_since(work, capsys):
    photo_tagger("apply", "--yes")
    edited = work.parent / "photos/a.jpg.xmp"
    edited.write_bytes(edited.read_bytes() + b" ")
    photo_tagger("undo", "--yes", code=1)
    told = capsys.readouterr()
    assert "as before: 0 restored, 3 new ones removed\n" in told.out
    assert "  left as it is: a.jpg (a.jpg.xmp): changed_meanwhile: edited since" in told.out
    assert "1 not taken back" in told.err
    assert [p.name for p in edited.parent.rglob("*.xmp")] == ["a.jpg.xmp"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["apply"], "apply: asks before it writes, and there is no terminal"),
        (["diff", "/tmp"], "/tmp: not in a folder of this work directory"),
        (["undo", "/tmp", "--yes"], "/tmp: not below the photos of this work directory"),
        (["diff", "photos/gone.jpg"], "photos/gone.jpg: no such photo, sidecar or folder"),
        (["diff", "photos/nobody.xmp"], "photos/nobody.xmp: belongs to no photo here"),
        (["apply", "--yes", "--naming", "x"], "metadata.naming: 'x' is not one of"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(command, complaint, work, capsys):
    (work.parent / "photos/nobody.xmp").touch()
    before = tree(work.parent / "photos")
    if command[0] == "undo":
        photo_tagger("apply", "--yes")
        before = tree(work.parent / "photos")
    photo_tagger(*command, code=2)
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert tree(work.parent / "photos") == before


def test_embedding_needs_a_folder_for_copies(work, capsys, monkeypatch):
    monkeypatch.setenv("PHOTO_TAGGER__METADATA__MODE", "embed")
    photo_tagger("apply", "--yes", code=2)
    assert "--backup DIR" in capsys.readouterr().err
    photo_tagger("apply", "--dry-run")
    assert capsys.readouterr().out == "would write photos: 4 written into\n"


@pytest.mark.parametrize("backup", ["file", "file/below", "photos/copies"])
def test_a_folder_for_copies_that_cannot_be_is_told_before_anything_is_written(
    backup, work, capsys
):
    (work.parent / "file").touch()
    before = tree(work.parent / "photos")
    photo_tagger("apply", "--yes", "--backup", backup, code=2)
    error = capsys.readouterr().err
    assert f"{backup}: " in error and "name" in error and error.count("\n") == 1
    assert tree(work.parent / "photos") == before
    assert not (work.parent / "photos/copies").exists()


def test_nothing_proposed_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo_tagger("diff", code=2)
    (tmp_path / "work").mkdir()
    photo_tagger("diff", code=2)
    assert "nothing is proposed yet" in capsys.readouterr().err
    photo_tagger("undo", "--list")
    assert capsys.readouterr().out == "no runs: apply has written nothing here yet\n"


# ----------------------------------------------------------------------- asking on a terminal


def on_a_terminal(work: Path, *arguments: str, answers: str) -> tuple[int, str]:
    """Exit status and output of a command whose person types these answers."""
    ours, theirs = pty.openpty()
    os.write(ours, answers.encode())
    command = [sys.executable, "-m", "phototagger.cli", *arguments, "--workdir", str(work)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 10_000):
                shown += part
    os.close(ours)
    return process.returncode, shown.decode()


def test_apply_asks_and_a_replacement_twice(work):
    photos = work.parent / "photos"
    before = tree(photos)
    code, shown = on_a_terminal(work, "apply", answers="n\n")
    assert code == 1 and "would write sidecars: 4 new" in shown and f"below {photos}" in shown
    assert "Write this? [y/N]" in shown and "nothing was written" in shown
    code, shown = on_a_terminal(work, "apply", "--replace-human", answers="y\nn\n")
    assert code == 1 and "Really replace what people wrote? [y/N]" in shown
    assert tree(photos) == before
    code, shown = on_a_terminal(work, "apply", answers="y\n")
    assert code == 0 and "written sidecars: 4 new" in shown
    code, shown = on_a_terminal(work, "undo", answers="y\n")
    assert code == 0 and "Give these 4 files back as before? [y/N]" in shown
    assert tree(photos) == before
