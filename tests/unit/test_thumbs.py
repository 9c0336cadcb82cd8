import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from odd_photos import CORNERS, encoded, make_odd_photos, picture
from PIL import Image
from test_beside import bag, sidecar
from thumbs import thumbs

from phototagger import names
from phototagger.job import Stats
from phototagger.machine import Machine
from phototagger.plan import Photo, ScanOptions, format_listing, resolve_roots, scan
from phototagger.problems import KINDS
from phototagger.tables import THUMBS, read_table
from phototagger.tokencache import TokenCache

KINDS_OF_FILES = "jpg jpeg png tif tiff webp heic dng cr2 cr3 nef arw rw2 orf"
EXTENSIONS = tuple(f".{kind}" for kind in KINDS_OF_FILES.split(" "))
LIMITS = {"size": 512, "quality": 85, "max_pixels": 500_000_000, "max_bytes": 2_000_000_000}


class Library:
    """A folder of photos and a work directory."""

    def __init__(self, tmp: Path, name: str = "work"):
        self.photos = tmp / "photos"
        self.photos.mkdir(exist_ok=True)
        self.work = tmp / name
        roots = resolve_roots([self.photos], tmp)
        self.machine = Machine(
            roots, self.work / "cache", self.work / "none", self.work / "none", "cpu", 8
        )
        self.table = self.work / "thumbs.parquet"

    def listing(self, photos: list[Photo] | None = None) -> Path:
        path = self.work / "shard.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        if photos is None:
            photos = scan(self.machine.roots, ScanOptions(EXTENSIONS))
        path.write_bytes(format_listing(photos))
        return path

    def run(self, listing: Path | None = None, **options) -> tuple[Stats, list[dict]]:
        stats = Stats()
        options = LIMITS | {"threads": 2, "stats": stats} | options
        thumbs(listing or self.listing(), self.table, machine=self.machine, **options)
        return stats, read_table(self.table).to_pylist()

    def thumbnails(self) -> dict[str, bytes]:
        folder = self.machine.cache / "thumbs"
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


def state(folder: Path) -> dict[str, tuple]:
    """Everything a photographer would mind."""
    found = {}
    for path in sorted(folder.iterdir()):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path.name] = (info.st_mtime_ns, info.st_mode, hashlib.sha256(content).hexdigest())
    return found


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory):
    library = Library(tmp_path_factory.mktemp("odd"))
    shutil.rmtree(library.photos)
    expected = make_odd_photos(library.photos)
    before = state(library.photos)
    # all of them, also what a scan would leave out: it may have been a file when it was planned
    photos = [Photo(names.encode(name), 7, 7) for name in sorted(expected)]
    stats, rows = library.run(library.listing(photos))
    return library, expected, before, stats, rows


def test_every_odd_photo_is_a_row_or_a_named_problem(odd) -> None:
    _, expected, _, _, rows = odd
    assert len(expected) >= 40
    assert [row["rel_path"] for row in rows] == [names.encode(name) for name in sorted(expected)]
    wrong = {}
    for row in rows:
        want = expected[names.decode(row["rel_path"])]
        if row["status"] != want.status:
            wrong[row["rel_path"]] = row["status"], row["problem_kind"], row["problem"]
        elif want.status == "problem":
            known = row["problem_kind"] in want.kinds and row["problem_kind"] in KINDS
            blank = [row[c] for c in ("width", "height", "orientation", "format", "thumb")]
            if not known or not row["problem"] or any(v is not None for v in blank):
                wrong[row["rel_path"]] = row
        else:
            seen = (row["width"], row["height"]), row["format"], row["orientation"]
            if seen != (want.size, want.format, want.orientation):
                wrong[row["rel_path"]] = seen
    assert wrong == {}


def test_thumbnails_show_the_photo(odd) -> None:
    library, expected, _, _, rows = odd
    for row in rows:
        want = expected[names.decode(row["rel_path"])]
        if row["status"] != "ok":
            continue
        with Image.open(library.machine.cache / "thumbs" / row["thumb"]) as image:
            w, h = image.size
            assert (image.mode, image.format, max(w, h)) == (
                "RGB",
                "JPEG",
                min(512, max(want.size)),
            )
            if not want.coloured:
                continue
            for i, colour in enumerate(CORNERS):
                seen = image.getpixel((w * (1 + 2 * (i % 2)) // 4, h * (1 + i // 2 * 2) // 4))
                assert max(abs(a - b) for a, b in zip(seen, colour, strict=True)) <= 12, row


def test_ledger_adds_up(odd) -> None:
    _, expected, _, stats, rows = odd
    bad = sum(row["status"] == "problem" for row in rows)
    contents = {row["sha256"] for row in rows if row["status"] == "ok"}
    assert stats.photos == len(expected) == stats.computed + stats.cached + stats.problems
    assert (stats.problems, stats.computed) == (bad, len(contents))


def test_messages_name_no_place_of_this_machine(odd) -> None:
    library, _, _, _, rows = odd
    for row in rows:
        message = row["problem"] or ""
        assert "0x" not in message and "/tmp" not in message and "\n" not in message
        assert str(library.photos) not in message


def test_originals_are_untouched(odd) -> None:
    library, _, before, _, _ = odd
    assert state(library.photos) == before


def test_scan_plans_what_the_corpus_says(odd) -> None:
    library, expected, _, _, _ = odd
    planned = {photo.rel_path for photo in scan(library.machine.roots, ScanOptions(EXTENSIONS))}
    assert planned == {names.encode(name) for name, e in expected.items() if e.planned}


def test_same_bytes_again_and_with_other_threads(odd, tmp_path: Path) -> None:
    library, expected, _, _, rows = odd
    other = Library(tmp_path)
    other.machine = Machine(library.machine.roots, tmp_path / "cache", tmp_path, tmp_path, "cpu", 8)
    listing = other.listing([Photo(names.encode(name), 7, 7) for name in sorted(expected)])
    _, again = other.run(listing, threads=5)
    assert again == rows
    assert other.thumbnails() == library.thumbnails()
    assert other.table.read_bytes() == library.table.read_bytes()


def test_second_run_decodes_and_reads_nothing(odd, monkeypatch: pytest.MonkeyPatch) -> None:
    library, expected, _, first, rows = odd
    good = [name for name, e in sorted(expected.items()) if e.status == "ok"]
    listing = library.listing([Photo(names.encode(name), 7, 7) for name in good])
    monkeypatch.setattr("thumbs.read_photo", None)  # whoever reads, fails
    stats, again = library.run(listing)
    assert (stats.computed, stats.cached, stats.problems) == (0, len(good), 0)
    assert again == [row for row in rows if row["status"] == "ok"]
    assert first.computed > 0


def fill(library: Library, count: int = 6) -> None:
    for number in range(count):
        photo = encoded(picture(640, 480), comment=f"{number}".encode())
        (library.photos / f"{number}.jpg").write_bytes(photo)


def test_touch_rename_move_change_add_and_delete(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library)
    assert library.run()[0].computed == 6
    rows = library.run()[1]

    os.utime(library.photos / "1.jpg", ns=(1, 1))
    stats, again = library.run()
    assert (stats.computed, stats.cached, again) == (0, 6, rows)

    (library.photos / "2.jpg").rename(library.photos / "9.jpg")
    (library.photos / "trip").mkdir()
    (library.photos / "3.jpg").rename(library.photos / "trip" / "3.jpg")
    stats, again = library.run()
    assert (stats.computed, stats.cached) == (0, 6)
    assert {r["sha256"] for r in again} == {r["sha256"] for r in rows}

    (library.photos / "4.jpg").write_bytes(encoded(picture(320, 200)))
    (library.photos / "new.jpg").write_bytes(encoded(picture(333, 222)))
    (library.photos / "5.jpg").unlink()
    stats, _ = library.run()
    assert (stats.computed, stats.cached, stats.problems) == (2, 4, 0)


def test_photo_that_vanished_or_changed_since_the_plan(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library, 2)
    listing = library.listing()
    (library.photos / "0.jpg").unlink()
    (library.photos / "1.jpg").write_bytes(encoded(picture(50, 30)))
    stats, rows = library.run(listing)
    assert (stats.computed, stats.problems) == (1, 1)
    assert rows[0]["problem_kind"] == "missing"
    assert (rows[1]["width"], rows[1]["bytes"]) == (50, (library.photos / "1.jpg").stat().st_size)


def test_copies_are_decoded_once(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library, 1)
    for number in range(1, 8):
        shutil.copy(library.photos / "0.jpg", library.photos / f"{number}.jpg")
    stats, rows = library.run(threads=4)
    assert (stats.computed, stats.cached) == (1, 7)
    assert len({row["thumb"] for row in rows}) == 1


def test_limits_of_today_hold_for_what_is_known(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library, 1)
    assert library.run()[0].computed == 1
    _, (known,) = library.run(max_pixels=1000)
    shutil.rmtree(library.machine.cache)
    _, (fresh,) = library.run(max_pixels=1000)
    assert known["problem_kind"] == fresh["problem_kind"] == "too_many_pixels"
    assert known["problem"] == fresh["problem"]
    stats, rows = library.run(max_bytes=10)
    assert (stats.problems, rows[0]["problem_kind"]) == (1, "too_large_bytes")


def test_other_size_and_quality_are_other_thumbnails(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library, 1)
    library.run()
    stats, (row,) = library.run(size=64, quality=50)
    assert stats.computed == 1
    with Image.open(library.machine.cache / "thumbs" / row["thumb"]) as image:
        assert image.size == (64, 48)


def test_lost_cache_costs_only_time(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library)
    _, rows = library.run()
    pictures = library.thumbnails()
    for lost in ("thumbs", "stat"):
        shutil.rmtree(library.machine.cache / lost)
        stats, again = library.run()
        assert again == rows and library.thumbnails() == pictures
        assert stats.computed == (6 if lost == "thumbs" else 0)
    for path in (library.machine.cache / "stat").rglob("*.json"):
        path.write_text("[nonsense")
    assert library.run()[1] == rows


def test_digests_and_schema_are_in_the_table(tmp_path: Path) -> None:
    library = Library(tmp_path)
    fill(library, 1)
    library.run(digests={"listing": "abc"})
    schema = read_table(library.table).schema
    assert schema.remove_metadata() == THUMBS
    assert schema.metadata[b"phototagger.listing"] == b"abc"


def test_empty_shard(tmp_path: Path) -> None:
    stats, rows = Library(tmp_path).run()
    assert (stats.photos, rows) == (0, [])


# ------------------------------------------------------------------------ what persons say of them


def scanned(library: Library, by: tuple[str, ...] = ("person",)) -> Path:
    """The listing, with the tokens of sidecars."""
    roots = library.machine.roots
    tokens = TokenCache(library.machine.cache, roots, EXTENSIONS, by)
    return library.listing(scan(roots, ScanOptions(EXTENSIONS), (), tokens.of_folder))


OURS = bag("dc:subject", "Tom", "cat") + bag("phototagger:WrittenSubject", "cat")
PATHS = bag("lr:hierarchicalSubject", "people|Tom")
TITLE = "<dc:title>Tom</dc:title>"
CITY = '<p:City xmlns:p="http://ns.adobe.com/photoshop/1.0/">Ulm</p:City>'


def test_sidecars_count_like_what_is_embedded(tmp_path: Path) -> None:
    library = Library(tmp_path)
    packet = sidecar(bag("dc:subject", "wall", "Rex"), "<dc:title>inside</dc:title>", CITY)
    (library.photos / "a.jpg").write_bytes(encoded(picture(), xmp=packet))
    (library.photos / "b.jpg").write_bytes(encoded(picture(), xmp=packet))
    (library.photos / "a.jpg.xmp").write_bytes(
        sidecar(OURS, PATHS, TITLE, "<xmp:Rating>4</xmp:Rating>")
    )
    stats, (a, b) = library.run(scanned(library))
    assert (stats.computed, stats.cached, stats.problems) == (1, 1, 0)
    assert a["own_keywords"] == ["Tom", "wall", "Rex"]
    assert (a["own_title"], a["own_rating"], a["own_paths"]) == ("Tom", "4", [["people", "Tom"]])
    assert (b["own_title"], b["own_rating"], b["own_paths"]) == ("inside", None, [])
    assert b["own_keywords"] == ["wall", "Rex"]
    assert a["embedded"] == b["embedded"]
    embedded = {"XMP-dc:Subject": ["wall", "Rex"], "XMP-dc:Title": ["inside"]}
    assert json.loads(a["embedded"]) == embedded
    assert a["place"] == b["place"] == "Ulm"
    assert a["dhash"] == b["dhash"] and len(a["dhash"]) == 16
    assert not a["tagged"] and not b["tagged"]


def test_tagged_is_decided_here_by_whoever_counts(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (library.photos / name).write_bytes(encoded(picture()))
    (library.photos / "a.jpg.xmp").write_bytes(sidecar(OURS, TITLE))
    (library.photos / "b.jpg.xmp").write_bytes(sidecar(OURS.replace("Tom", "cat"), TITLE))
    packet = sidecar(bag("dc:subject", "Tom"), TITLE)
    (library.photos / "c.jpg").write_bytes(encoded(picture(), xmp=packet))

    def tagged(fields: tuple[str, ...], *by: str) -> list[bool]:
        _, rows = library.run(scanned(library, by), tagged_fields=fields, tagged_by=by)
        return [row["tagged"] for row in rows]

    assert tagged((), "person") == [False, False, False, False]
    assert tagged(("keywords", "title"), "person") == [True, False, True, False]
    assert tagged(("keywords", "title"), "person", "photo-tagger") == [True, True, True, False]
    assert tagged(("keywords",), "photo-tagger") == [True, True, False, False]
    assert tagged(("keywords", "rating"), "person") == [False, False, False, False]


def test_a_sidecar_that_broke_since_the_plan_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = Library(tmp_path)
    for number in range(3):
        (library.photos / f"{number}.jpg").write_bytes(encoded(picture()))
        (library.photos / f"{number}.jpg.xmp").write_bytes(sidecar(TITLE))
    listing = scanned(library)
    (library.photos / "0.jpg.xmp").write_bytes(b"\0" * 1000)
    (library.photos / "1.jpg.xmp").unlink()
    stats, rows = library.run(listing)
    assert stats.problems == 0
    assert [row["own_title"] for row in rows] == [None, None, "Tom"]
    assert "0.jpg: sidecar 0.jpg.xmp cannot be read; ignored" in caplog.text
    shutil.rmtree(library.photos)
    stats, rows = library.run(listing)
    assert [row["problem_kind"] for row in rows] == ["missing"] * 3


def test_names_of_any_bytes_have_sidecars(tmp_path: Path) -> None:
    library = Library(tmp_path)
    raw = [b"\xff.jpg", b"new\nline.JPG", "東京 🐈.jpg".encode(), b"-o.jpg"]
    for name in map(os.fsdecode, raw):
        (library.photos / name).write_bytes(encoded(picture()))
        (library.photos / f"{name.upper()}.XMP").write_bytes(sidecar(TITLE))
    _, rows = library.run(scanned(library))
    assert [row["own_title"] for row in rows] == ["Tom"] * 4
