"""Real programs read what photo-tagger publishes, write on top of it, and lose nothing by it."""

import ctypes.util
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyexiv2
import pytest

from readers import rdf
from readers.darkroom import (
    CAPTION,
    DESCRIPTION,
    EMPTY,
    KEYWORDS,
    Darkroom,
    exiftool,
    exiv2,
)
from readers.test_emulations import DARKTABLE, LIGHTROOM, ODD, ODD_TEXT

MANY = tuple(f"keyword {n} ä" for n in range(5000))
LISTS = {
    "dc:subject": "Xmp.dc.subject",
    "lr:hierarchicalSubject": "Xmp.lr.hierarchicalSubject",
    "digiKam:TagsList": "Xmp.digiKam.TagsList",
}
needs_exiv2 = pytest.mark.skipif(not shutil.which("exiv2"), reason="exiv2 is not installed")
needs_darktable = pytest.mark.skipif(
    not shutil.which("darktable-cli"), reason="darktable-cli is not installed"
)
needs_exempi = pytest.mark.skipif(
    not ctypes.util.find_library("exempi"), reason="libexempi is not installed"
)


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Published sidecars of every kind of base; nobody changes them."""
    room = Darkroom(tmp_path_factory.mktemp("programs"))
    room.photo("new.jpg")
    exiftool(room.photo("odd.jpg").with_name("odd.jpg.xmp"), {"XMP-dc:Subject": ODD})
    exiftool(room.photos / "odd.jpg.xmp", {"XMP-dc:Description": ODD_TEXT})
    exiv2(room.photo("many.jpg").with_name("many.jpg.xmp"), {"Xmp.dc.subject": list(MANY)})
    room.photo("darktable.jpg").with_name("darktable.jpg.xmp").write_text(DARKTABLE)
    room.photo("raw.nef").with_name("raw.xmp").write_text(LIGHTROOM)
    room.propose()
    assert set(room.apply().values()) <= {"create", "update"}
    return {path.name: path for path in room.photos.glob("*.xmp")}


BASES = ("new.jpg.xmp", "odd.jpg.xmp", "many.jpg.xmp", "darktable.jpg.xmp", "raw.xmp")


@pytest.mark.parametrize("name", BASES)
def test_exiv2s_library_reads_the_same(sidecars: dict[str, Path], name: str) -> None:
    ours = rdf.properties(sidecars[name].read_bytes())
    with pyexiv2.Image(str(sidecars[name])) as image:
        theirs = image.read_xmp()
    assert {"dc:subject", "lr:hierarchicalSubject", "digiKam:TagsList"} <= set(ours)
    for ours_name, key in LISTS.items():
        assert theirs[key] == ours[ours_name]
    description = {f'lang="{lang}"': text for lang, text in ours["dc:description"].items()}
    assert theirs["Xmp.dc.description"] == description
    assert theirs["Xmp.photoshop.Headline"] == CAPTION


@needs_exempi
@pytest.mark.parametrize("name", BASES)
def test_adobes_toolkit_reads_the_same(sidecars: dict[str, Path], name: str) -> None:
    from libxmp import XMPMeta

    content = sidecars[name].read_bytes()
    ours = rdf.properties(content)
    meta = XMPMeta()
    meta.parse_from_str(content.decode())
    for field, namespace in (
        ("dc:subject", "http://purl.org/dc/elements/1.1/"),
        ("lr:hierarchicalSubject", "http://ns.adobe.com/lightroom/1.0/"),
        ("digiKam:TagsList", "http://www.digikam.org/ns/1.0/"),
    ):
        element = field.partition(":")[2]
        count = meta.count_array_items(namespace, element)
        found = [meta.get_array_item(namespace, element, n + 1) for n in range(count)]
        assert found == ours[field]
    dc = "http://purl.org/dc/elements/1.1/"
    text = meta.get_localized_text(dc, "description", "", "x-default")
    assert text == ours["dc:description"]["x-default"]


# ------------------------------------------------------------------------------- written on top


@pytest.fixture
def room(tmp_path: Path) -> Darkroom:
    room = Darkroom(tmp_path)
    room.photo("a.jpg", {"XMP-dc:Subject": "inside"})
    room.propose()
    assert room.apply() == {"a.jpg": "create"}
    return room


def lists(path: Path) -> Iterator[tuple[str, list[str]]]:
    found = rdf.properties(path.read_bytes())
    for name in LISTS:
        yield name, rdf.texts(found[name])


@needs_exiv2
def test_the_command_exiv2_writes_on_top(room: Darkroom) -> None:
    path = room.photos / "a.jpg.xmp"
    before = dict(lists(path))
    commands = (
        'set Xmp.dc.subject XmpBag "by hand"',
        "set Xmp.lr.hierarchicalSubject XmpBag Place|Rome",
        "set Xmp.xmp.Rating XmpText 3",
        "set Xmp.dc.description LangAlt Written by hand",
    )
    command = ["exiv2", *(f"-M{line}" for line in commands), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    by_hand = dict(lists(path))
    assert "by hand" in by_hand["dc:subject"]
    assert set(before["dc:subject"]) <= set(by_hand["dc:subject"])

    room.propose()
    assert room.apply() == {"a.jpg": "update"}
    for name, values in lists(path):
        assert {"inside", "by hand"} <= set(values), name
        assert set(before[name]) <= set(values), name
    after = rdf.properties(path.read_bytes())
    assert {"Place|Rome"} <= set(after["lr:hierarchicalSubject"])
    assert {"Place/Rome"} <= set(after["digiKam:TagsList"])
    assert "Rome" in after["dc:subject"]
    assert rdf.texts(after["dc:description"]) == ["Written by hand"]
    assert rdf.texts(after["tiff:ImageDescription"]) == ["Written by hand"]
    assert after["xmp:Rating"] == "3"
    output = subprocess.run(["exiv2", "-PXt", path], check=True, capture_output=True, text=True)
    assert "by hand" in output.stdout
    assert room.apply() == {"a.jpg": "keep"}


def test_a_keyword_that_exiv2_takes_out_stays_out(room: Darkroom) -> None:
    path = room.photos / "a.jpg.xmp"
    before = rdf.properties(path.read_bytes())
    gone = {"dc:subject": "Harbour", "lr:hierarchicalSubject": "Place|Harbour"}
    gone["digiKam:TagsList"] = "Place/Harbour"
    left = {LISTS[k]: [v for v in before[k] if v != gone[k]] for k in gone}
    with pyexiv2.Image(str(path)) as image:
        image.modify_xmp(dict.fromkeys(left))  # Exiv2 adds to a list that is there
        image.modify_xmp(left)
    room.apply()
    after = rdf.properties(path.read_bytes())
    for name, value in gone.items():
        assert value not in after[name]
        assert {"inside", "red boat"} <= set(after[name])


def test_texts_of_a_program_that_keeps_only_what_it_knows(room: Darkroom) -> None:
    """Our namespace is gone: everything counts as a person's, and nothing stands twice."""
    path = room.photos / "a.jpg.xmp"
    before = dict(lists(path))
    with pyexiv2.Image(str(path)) as image:
        known = image.read_xmp()
    path.write_text(EMPTY)
    exiv2(path, {key: v for key, v in known.items() if ".phototagger." not in key})
    room.apply()
    assert {name: sorted(values) for name, values in lists(path)} == {
        name: sorted(values) for name, values in before.items()
    }
    assert rdf.texts(rdf.properties(path.read_bytes())["dc:description"]) == [DESCRIPTION]


# ------------------------------------------------------------------------------------ darktable


def darktable(photo: Path, folder: Path, *, writes: str = "never") -> tuple[set[str], set[str]]:
    """Import a photo; the tags and the texts of it that are in darktable's database then."""
    library, config = folder / "library.db", folder / "config"
    (folder / "out.jpg").unlink(missing_ok=True)
    command = ["darktable-cli", photo, folder / "out.jpg", "--core", "--configdir", config]
    command += ["--library", library, "--conf", f"write_sidecar_files={writes}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with sqlite3.connect(library) as pictures:
        pictures.execute("ATTACH DATABASE ? AS data", [str(config / "data.db")])
        tags = pictures.execute(
            "SELECT name FROM tagged_images JOIN data.tags ON tagid = id WHERE name NOT LIKE ?",
            ["darktable|%"],
        )
        texts = pictures.execute("SELECT value FROM meta_data")
        return {name for (name,) in tags}, {text for (text,) in texts}


@needs_darktable
def test_darktable_imports_all_keywords(tmp_path: Path) -> None:
    room = Darkroom(tmp_path)
    photo = room.photo("a.jpg", {"XMP-dc:Subject": "inside"})
    values = {"XMP-dc:Subject": ODD, "XMP-lr:HierarchicalSubject": "Place|Rome"}
    exiftool(photo.with_name("a.jpg.xmp"), values)
    room.propose()
    room.apply()
    tags, texts = darktable(photo, tmp_path)
    words = {word.partition(",")[0] for word in ODD}  # darktable ends a keyword there
    assert {"inside", *words, "Place|Rome", "Place|Harbour", "Place|港", "red boat"} <= tags
    assert DESCRIPTION in texts


@needs_darktable
def test_nothing_is_lost_when_darktable_writes_the_sidecar_in_turn(tmp_path: Path) -> None:
    room = Darkroom(tmp_path)
    photo = room.photo("a.jpg", {"XMP-dc:Subject": ("inside", "garden")})
    darktable(photo, tmp_path / "first", writes="on import")
    path = photo.with_name("a.jpg.xmp")
    assert "darktable:xmp_version" in rdf.properties(path.read_bytes())
    room.propose()
    assert room.apply() == {"a.jpg": "update"}
    before = rdf.properties(path.read_bytes())
    assert "darktable:xmp_version" in before
    tags, texts = darktable(photo, tmp_path / "second", writes="on import")
    assert {"inside", "garden", "Place|Harbour", "red boat"} <= tags
    assert DESCRIPTION in texts
    room.apply()
    after = rdf.properties(path.read_bytes())
    for name in LISTS:
        assert set(before[name]) <= set(after[name]), name
    assert set(KEYWORDS) <= set(after["dc:subject"])
    assert rdf.texts(after["dc:description"]) == [DESCRIPTION]
    assert room.apply() == {"a.jpg": "keep"}
