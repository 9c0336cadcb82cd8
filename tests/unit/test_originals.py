"""Embedding with the real ExifTool: what is written, what stays, and what is refused."""

import hashlib
import json
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from odd_photos import encoded, exif, noisy, picture, with_segment
from PIL import Image, ImageSequence

from phototagger import containers, iptc, originals
from phototagger.originals import Embedding, NotEmbeddableError
from phototagger.xmp import Marks, NotXmpError, Packet, Values, text_digest

TEXT = 'A red car, "parked" <b> & 東京 🚗\nsecond line; עברית'
VALUES: Values = {
    "XMP-dc:Subject": ["vehicle", "Überauto", "東京"],
    "XMP-lr:HierarchicalSubject": ["vehicle|Überauto", "東京"],
    "XMP-digiKam:TagsList": ["vehicle/Überauto", "東京"],
    "XMP-dc:Description": [TEXT],
    "XMP-tiff:ImageDescription": [TEXT],
    "XMP-photoshop:Headline": ["A car"],
    "XMP-photoshop:CaptionWriter": ["photo-tagger"],
}
LISTS = ("XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList")
MARKS = Marks(
    written={tag: tuple(VALUES[tag]) for tag in LISTS},
    digests={tag: text_digest(text[0]) for tag, text in VALUES.items() if tag not in LISTS},
)


def exiftool(*arguments: str | Path) -> str:
    command = ["exiftool", "-config", "", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def tags(path: Path, *wanted: str) -> dict:
    return json.loads(exiftool("-j", "-G1", "-a", *wanted, path))[0]


def tagged(folder: Path, *assignments: str, data: bytes | None = None, suffix: str = "jpg") -> Path:
    path = folder / f"photo.{suffix}"
    path.write_bytes(data or encoded(picture(), "TIFF" if suffix == "tif" else "JPEG"))
    if assignments:
        exiftool("-q", "-overwrite_original", *assignments, path)
    return path


def attempt(
    photo: Path, values: Values = VALUES, marks: Marks = MARKS, *, iptc: str = "present"
) -> tuple[Path, str | None]:
    temporary = photo.parent / ".photo-tagger-0123456789abcdef.tmp"
    temporary.unlink(missing_ok=True)
    item = Embedding(photo, temporary, values, marks, originals.current(photo))
    (message,) = originals.write([item], iptc=iptc)
    return temporary, message


def embed(photo: Path, values: Values = VALUES, marks: Marks = MARKS, **options: str) -> Path:
    """The photo, replaced by what was embedded; the original was not touched until then."""
    before = (photo.read_bytes(), photo.stat())
    written, message = attempt(photo, values, marks, **options)
    assert message is None
    after = photo.stat()
    assert photo.read_bytes() == before[0]
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before[1].st_mtime_ns, before[1].st_ctime_ns)
    os.replace(written, photo)
    return photo


def frames(data: bytes) -> list[tuple[str, tuple[int, int], bytes]]:
    with Image.open(BytesIO(data)) as image:
        return [(f.mode, f.size, f.tobytes()) for f in ImageSequence.Iterator(image)]


# --------------------------------------------------------------------------------- the same else


def several(kind: str, **options: object) -> bytes:
    return encoded(picture(), kind, save_all=True, append_images=[noisy(60, 40)], **options)


def camera_file() -> bytes:
    """Canon's maker note, whose offsets count from the start of EXIF; GPS; thumbnail; ICC."""
    made = exif(6, make="Canon", model="Canon EOS R5")
    note = (
        struct.pack("<HHHLL", 1, 6, 2, 32, 0x4F464653)
        + bytes(4)
        + b"the camera's own text".ljust(32)
    )
    made.get_ifd(0x8769).update({0x927C: note, 0x9003: "2024:05:01 12:34:56"})
    made.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 0.0, 0.0)})
    data = encoded(picture(), exif=made.tobytes(), icc_profile=b"any profile" * 50)
    start = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    order = "<" if data[start : start + 2] == b"II" else ">"
    at = data.index(note) - start
    fixed = struct.pack(order + "HHHLL", 1, 6, 2, 32, at + 18) + note[14:]
    data = data.replace(note, fixed)
    for marker, payload in ((0xE5, b"nobody knows this"), (0xFE, b"a comment"), (0xEC, b"Ducky?")):
        data = with_segment(data, marker, payload)
    return data + b"trailer of a motion photo" * 300


PHOTOS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "camera": ("jpg", camera_file),
    "two pictures": ("jpg", lambda: several("MPO", quality=90)),
    "progressive cmyk": ("jpg", lambda: encoded(picture().convert("CMYK"), progressive=True)),
    "pages lzw": ("tif", lambda: several("TIFF", compression="tiff_lzw")),
    "big": ("tif", lambda: encoded(noisy(300, 200), "TIFF", compression="jpeg")),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_everything_else_stays(tmp_path: Path, name: str) -> None:
    suffix, make = PHOTOS[name]
    path = tagged(tmp_path, data=make(), suffix=suffix)
    before, known = path.read_bytes(), tags(path, "-all", "-u", "-b", "--File:all", "--System:all")
    embed(path, iptc="always")
    assert frames(path.read_bytes()) == frames(before)
    after = tags(path, "-all", "-u", "-b", "--File:all", "--System:all")
    gone = {
        tag
        for tag in known
        if known[tag] != after.get(tag) and not tag.endswith(("Offset", "Start", "Offsets"))
    }
    assert gone <= {"ExifTool:Warning", "IFD0:ImageDescription"}
    found = originals.current(path)
    assert (found.values, found.marks) == (VALUES, MARKS.normal())
    if name == "camera":
        assert b"a comment" in path.read_bytes() and b"nobody knows this" in path.read_bytes()
        assert path.read_bytes().endswith(b"trailer of a motion photo" * 300)
        assert known["Canon:CanonImageType"] == after["Canon:CanonImageType"]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_every_reader_gets_the_values(tmp_path: Path, suffix: str) -> None:
    path = embed(tagged(tmp_path, suffix=suffix), iptc="always")
    read = tags(path, "-use", "MWG", "-MWG:all", "-IPTC:all", "-IFD0:ImageDescription", "-XMP:all")
    assert read["MWG:Keywords"] == read["IPTC:Keywords"] == VALUES["XMP-dc:Subject"]
    assert read["MWG:Description"] == read["IPTC:Caption-Abstract"] == TEXT
    assert read["IFD0:ImageDescription"] == read["XMP-tiff:ImageDescription"] == TEXT
    assert read["XMP-lr:HierarchicalSubject"] == VALUES["XMP-lr:HierarchicalSubject"]
    assert read["XMP-digiKam:TagsList"] == VALUES["XMP-digiKam:TagsList"]
    assert (read["IPTC:Headline"], read["IPTC:Writer-Editor"]) == ("A car", "photo-tagger")
    assert read["IPTC:CodedCharacterSet"] == "UTF8"
    assert not [tag for tag in read if "Rating" in tag or "Date" in tag or "GPS" in tag]
    shown = subprocess.run(["exiv2", "-PEIXt", path], capture_output=True, check=False).stdout
    for text in ("Überauto", "東京", "vehicle/Überauto", "A car"):
        assert text.encode() in shown


def test_nothing_left_is_nothing_left(tmp_path: Path) -> None:
    path = tagged(tmp_path, "-IPTC:City=Rom", "-XMP-dc:Creator=me")
    embed(path)
    embed(path, {}, Marks())
    assert originals.current(path).values == {}
    left = tags(path, "-IPTC:all", "-IFD0:ImageDescription", "-XMP-dc:all", "-XMP-phototagger:all")
    assert left["IPTC:City"] == "Rom" and left["XMP-dc:Creator"] == "me"
    assert not {"IPTC:Keywords", "IPTC:Caption-Abstract", "IFD0:ImageDescription"} & left.keys()
    assert not [tag for tag in left if "phototagger" in tag]


# ------------------------------------------------------------------------------------------ IPTC


def digests(path: Path) -> tuple[str | None, str | None]:
    found = tags(path, "-CurrentIPTCDigest", "-IPTCDigest")
    return found.get("File:CurrentIPTCDigest"), found.get("Photoshop:IPTCDigest")


@pytest.mark.parametrize(
    ("suffix", "mode", "there"),
    [
        *(("jpg", mode, there) for mode in ("present", "never") for there in (True, False)),
        ("tif", "present", True),
        ("tif", "never", True),
    ],
)
def test_iptc_only_where_wanted(tmp_path: Path, suffix: str, mode: str, there: bool) -> None:
    given = ["-IPTC:City=Rom"] if there else []
    path = tagged(tmp_path, *given, suffix=suffix)
    before = containers.read(path).iptc
    embed(path, iptc=mode)
    if mode == "never" or (mode == "present" and not there):
        assert containers.read(path).iptc == before
    else:
        now, stored = digests(path)
        assert now == stored is not None
        assert tags(path, "-IPTC:Keywords")["IPTC:Keywords"] == VALUES["XMP-dc:Subject"]
    assert tags(path, "-use", "MWG", "-MWG:Keywords")["MWG:Keywords"] == VALUES["XMP-dc:Subject"]


OLD = ("-IPTC:City=Zürich", "-IPTC:By-line=Jürg ‘Œuvre’", "-IPTC:Keywords=Mühle")


@pytest.mark.parametrize(
    ("charset", "suffix"),
    [
        ("latin", "jpg"),
        ("latin", "tif"),
        ("utf8 without saying so", "jpg"),
        ("utf8", "jpg"),
        ("both", "tif"),
    ],
)
def test_what_iptc_had_survives_in_utf8(tmp_path: Path, charset: str, suffix: str) -> None:
    if charset == "both":
        datasets = [
            (25, "Mühle".encode()),
            (80, "Jürg ‘Œuvre’".encode("cp1252")),
            (90, b"Z\xfcrich"),
        ]
        block = iptc.build([iptc.Dataset(2, *item) for item in datasets])
        (tmp_path / "block").write_bytes(block)
        path = tagged(tmp_path, f"-IPTC<={tmp_path / 'block'}", suffix=suffix)
    else:
        options = {"latin": [], "utf8": ["-IPTC:CodedCharacterSet=UTF8"]}
        given = options.get(charset, ["-charset", "iptc=utf8"])
        path = tagged(tmp_path, *given, *OLD, suffix=suffix)
    found = originals.current(path)
    assert found.theirs == {"XMP-dc:Subject": ["Mühle"]}
    values = VALUES | {"XMP-dc:Subject": ["Mühle", *VALUES["XMP-dc:Subject"]]}
    embed(path, values)
    read = tags(path, "-IPTC:all")
    assert read["IPTC:Keywords"] == values["XMP-dc:Subject"]
    assert (read["IPTC:City"], read["IPTC:By-line"]) == ("Zürich", "Jürg ‘Œuvre’")
    assert originals.current(path).theirs == {"XMP-dc:Subject": ["Mühle"]}


def test_copies_are_cut_at_characters_and_xmp_is_not(tmp_path: Path) -> None:
    values: Values = {
        "XMP-dc:Subject": ["x" * 63 + "é", "東" * 30, "y" * 70 + "1", "y" * 70 + "2"],
        "XMP-dc:Title": ["ü" * 40],
        "XMP-dc:Description": ["é" * 1500],
        "XMP-photoshop:Headline": ["h\n" + "ö" * 200],
        "XMP-photoshop:CaptionWriter": ["a" + "ß" * 20],
    }
    path = embed(tagged(tmp_path), values, Marks(), iptc="always")
    read = tags(path, "-IPTC:all", "-IFD0:ImageDescription")
    assert read["IPTC:Keywords"] == ["x" * 63, "東" * 21, "y" * 64]
    assert read["IPTC:ObjectName"] == "ü" * 32
    assert read["IPTC:Caption-Abstract"] == "é" * 1000
    assert read["IPTC:Headline"] == "h " + "ö" * 127
    assert read["IPTC:Writer-Editor"] == "a" + "ß" * 15
    assert read["IFD0:ImageDescription"] == "é" * 1500
    assert originals.current(path).values == values  # no cut copy counts as one more keyword


def test_a_stale_digest(tmp_path: Path) -> None:
    """Somebody wrote IPTC only: readers prefer it, until both agree again."""
    path = embed(tagged(tmp_path), iptc="always")
    exiftool("-q", "-overwrite_original", "-IPTC:Keywords+=später", path)
    now, stored = digests(path)
    assert now != stored
    found = originals.current(path)
    assert found.theirs == {"XMP-dc:Subject": ["später"]}
    values = VALUES | {"XMP-dc:Subject": ["später", *VALUES["XMP-dc:Subject"]]}
    embed(path, values)
    now, stored = digests(path)
    assert now == stored
    read = tags(path, "-use", "MWG", "-MWG:Keywords", "-IPTC:Keywords")
    assert read["MWG:Keywords"] == read["IPTC:Keywords"] == values["XMP-dc:Subject"]


def test_two_persons_who_differ_are_both_kept(tmp_path: Path) -> None:
    given = ("-XMP-dc:Description=hers", "-IPTC:Caption-Abstract=his", "-ImageDescription=theirs")
    path = tagged(tmp_path, *given)
    assert originals.current(path).values["XMP-dc:Description"] == ["hers"]
    values = {"XMP-dc:Subject": ["car"], "XMP-dc:Description": ["hers"]}
    embed(path, values, Marks(written={"XMP-dc:Subject": ("car",)}))
    read = tags(path, "-XMP-dc:all", "-IPTC:all", "-IFD0:ImageDescription")
    assert read["XMP-dc:Description"] == "hers" and read["IPTC:Keywords"] == "car"
    assert (read["IPTC:Caption-Abstract"], read["IFD0:ImageDescription"]) == ("his", "theirs")
    ours = {"XMP-dc:Description": ["ours"]}  # asked for: replace what persons wrote
    embed(path, ours, Marks(digests={"XMP-dc:Description": text_digest("ours")}))
    read = tags(path, "-IPTC:Caption-Abstract", "-IFD0:ImageDescription")
    assert (read["IPTC:Caption-Abstract"], read["IFD0:ImageDescription"]) == ("ours", "ours")


@pytest.mark.parametrize("mode", ["present", "never"])
def test_a_newer_caption_in_iptc_is_not_hidden(tmp_path: Path, mode: str) -> None:
    given = ("-IPTC:Caption-Abstract=old", "-XMP-dc:Description=old", "-Photoshop:IPTCDigest=new")
    path = tagged(tmp_path, *given)
    exiftool("-q", "-overwrite_original", "-IPTC:Caption-Abstract=newer", path)
    assert tags(path, "-use", "MWG", "-MWG:Description")["MWG:Description"] == "newer"
    values = {"XMP-dc:Subject": ["car"], "XMP-dc:Description": ["old"]}
    embed(path, values, Marks(written={"XMP-dc:Subject": ("car",)}), iptc=mode)
    assert tags(path, "-use", "MWG", "-MWG:Description")["MWG:Description"] == "newer"


# --------------------------------------------------------------------------------- whose it is


def test_a_description_of_exif_or_iptc_is_a_persons(tmp_path: Path) -> None:
    path = tagged(tmp_path, "-ImageDescription=Großmutter", "-IPTC:Headline=Garten")
    assert originals.current(path) == Packet(
        {"XMP-dc:Description": ["Großmutter"], "XMP-photoshop:Headline": ["Garten"]}
    )


def test_what_the_camera_wrote_is_replaced(tmp_path: Path) -> None:
    path = tagged(tmp_path, "-ImageDescription=OLYMPUS DIGITAL CAMERA")
    assert originals.current(path) == Packet()
    embed(path)
    read = tags(path, "-use", "MWG", "-MWG:Description", "-IFD0:ImageDescription")
    assert read["MWG:Description"] == read["IFD0:ImageDescription"] == TEXT


def test_copies_of_ours_are_ours(tmp_path: Path) -> None:
    path = embed(tagged(tmp_path), iptc="always")
    assert originals.current(path).theirs == {}
    # a person throws ours out of XMP; the copies do not bring it back
    exiftool("-q", "-overwrite_original", "-XMP-dc:Subject=mine", "-XMP-dc:Description=", path)
    found = originals.current(path)
    assert found.theirs == {"XMP-dc:Subject": ["mine"]}
    assert "XMP-dc:Description" not in found.values
    # and writes a description where only EXIF has one
    exiftool("-q", "-overwrite_original", "-ImageDescription=My car", path)
    assert originals.current(path).theirs["XMP-dc:Description"] == ["My car"]


def test_other_languages_and_unknown_namespaces_stay(tmp_path: Path) -> None:
    given = ("-XMP-dc:Description-de=Ein Auto", "-XMP-crs:Exposure2012=+1.0", "-XMP-xmp:Rating=4")
    path = tagged(tmp_path, *given)
    before = originals.current(path)
    embed(path, VALUES | {"XMP-xmp:Rating": ["4"]})
    after = originals.current(path)
    assert after.languages == before.languages | {"XMP-dc:Description": {"de": "Ein Auto"}}
    assert after.rest == before.rest and any("Exposure" in name for name in after.rest)
    assert after.values["XMP-xmp:Rating"] == ["4"]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_more_xmp_than_a_segment_holds(tmp_path: Path, suffix: str) -> None:
    many = [f"keyword {number}" for number in range(3000)]
    (tmp_path / "long").write_text("z" * 100_000)
    path = tagged(tmp_path, f"-XMP-dc:Source<={tmp_path / 'long'}", suffix=suffix)
    before = originals.current(path)
    embed(path, {"XMP-dc:Subject": many}, Marks(), iptc="always")
    after = originals.current(path)
    assert after.values == {"XMP-dc:Subject": many}
    assert after.rest == before.rest and "z" * 100_000 in "".join(after.rest.values())
    assert len(containers.read(path).xmp) == (2 if suffix == "jpg" else 1)


def test_one_exiftool_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = []
    for number in range(3):
        photo = tmp_path / f"{number}.jpg"
        photo.write_bytes(encoded(picture()))
        temporary = photo.with_suffix(".tmp")
        items.append(Embedding(photo, temporary, VALUES, MARKS, Packet()))
    started, start = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or start(*a, **k))
    assert originals.write(items, iptc="always") == [None] * 3
    assert len(started) == 1


# ------------------------------------------------------------------------------------- refusals


def test_not_a_jpeg_inside(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    for content in (encoded(picture(), "PNG"), b"", b"\xff\xd8\xff", b"II*\0\xff\xff\xff\xff"):
        photo.write_bytes(content)
        with pytest.raises(NotEmbeddableError):
            originals.current(photo)


def test_damaged_ones_cost_nothing(tmp_path: Path) -> None:
    """Each has its message, no temporary file is left, and the good one among them is written."""
    good, jpeg = encoded(picture()), encoded(picture(), exif=exif(1, make="Canon").tobytes())
    cut = jpeg.index(b"Exif\0\0") + 14
    contents = {
        "broken exif.jpg": jpeg[:cut] + b"\xff" * 20 + jpeg[cut + 20 :],
        "broken xmp.jpg": with_segment(good, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        "broken iptc.jpg": tagged(tmp_path, "-IPTC:City=Rom")
        .read_bytes()
        .replace(b"\x1c\x02Z\0\x03", b"\x1c\x02Z\0\xf3"),
        "gone.jpg": good,
        "in the way.jpg": good,
        "good.jpg": good,
    }
    items = []
    for number, (name, content) in enumerate(contents.items()):
        photo = tmp_path / name
        photo.write_bytes(content)
        temporary = tmp_path / f".photo-tagger-{number:016x}.tmp"
        items.append(Embedding(photo, temporary, VALUES, MARKS, Packet()))
    with pytest.raises(NotXmpError):
        originals.current(tmp_path / "broken xmp.jpg")
    (tmp_path / "gone.jpg").unlink()
    items[4] = replace(items[4], temporary=tmp_path / "no such folder" / "x.tmp")
    messages = originals.write(items, iptc="present")
    assert [message is None for message in messages] == [False] * 5 + [True]
    assert "XMP" in messages[1] and "IPTC" in messages[2] and "No such file" in messages[3]
    assert all(str(tmp_path) not in message and "\n" not in message for message in messages[:5])
    assert [item.temporary.exists() for item in items] == [False] * 5 + [True]
    for name in ("broken exif.jpg", "broken xmp.jpg", "in the way.jpg", "good.jpg"):
        assert (tmp_path / name).read_bytes() == contents[name]


def test_any_name_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"-line\nbreak \xff")
    folder.mkdir()
    photo = folder / os.fsdecode(b"#-o \xfe\n$(x).jpg ")
    photo.write_bytes(encoded(picture()))
    embed(photo)
    assert originals.current(photo).values == VALUES
    assert sorted(os.listdir(os.fsencode(folder))) == [os.fsencode(photo.name)]


def test_a_picture_that_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ExifTool does not do such a thing; whatever did, it would not get through."""
    photo = tagged(tmp_path)
    read = containers.read

    def wrong(path: Path, *, pictures: bool = False) -> containers.Contents:
        found = read(path, pictures=pictures)
        return replace(found, pictures="other") if path.suffix == ".tmp" else found

    monkeypatch.setattr(originals.containers, "read", wrong)
    temporary, message = attempt(photo)
    assert message is not None and "the pictures" in message and not temporary.exists()


# -------------------------------------------------------------------------- digest of pictures


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_digest_of_tiff_pictures(tmp_path: Path, order: str, big: bool) -> None:
    """Independent of where in the file they are, and dependent on every byte and tag of them."""

    def tiff(strip: bytes, *, at: int, width: int = 2, description: bytes = b"a") -> bytes:
        word, size = ("Q", 8) if big else ("L", 4)
        head = {"<": b"II", ">": b"MM"}[order]
        head += struct.pack(order + "HHH", 43, 8, 0) if big else struct.pack(order + "H", 42)
        head += struct.pack(order + word, at + 16)
        short, long = (lambda n, letter=letter: struct.pack(order + letter, n) for letter in "HL")
        rows = [
            (256, 3, short(width)),
            (257, 3, short(1)),
            (270, 2, description),
            (273, 4, long(at)),
            (279, 4, long(len(strip))),
        ]
        table = struct.pack(order + ("Q" if big else "H"), len(rows))
        for tag, kind, data in rows:
            table += struct.pack(order + "HH" + word, tag, kind, 1) + data.ljust(size, b"\0")
        return (head.ljust(at, b"\0") + strip).ljust(at + 16, b"\0") + table + bytes(size)

    def digest(content: bytes) -> str | None:
        path = tmp_path / "x.tif"
        path.write_bytes(content)
        return containers.read(path, pictures=True).pictures

    same = digest(tiff(b"\1\2", at=32))
    assert same == digest(tiff(b"\1\2", at=100, description=b"b"))
    assert len({same, digest(tiff(b"\1\3", at=32)), digest(tiff(b"\1\2", at=32, width=1))}) == 3


def test_digest_of_jpeg_pictures(tmp_path: Path) -> None:
    def digest(content: bytes) -> str | None:
        path = tmp_path / "x.jpg"
        path.write_bytes(content)
        return containers.read(path, pictures=True).pictures

    plain = encoded(picture())
    same = digest(plain)
    assert same == digest(with_segment(plain, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"))
    others = [plain + b"x", with_segment(plain, 0xE2, b"ICC_PROFILE\0"), encoded(noisy(60, 40))]
    assert same not in {digest(content) for content in others}
    assert same == digest(plain) and hashlib.sha256(plain).hexdigest() != same
