"""Against files whose metadata ExifTool wrote, and against what nobody should have to read."""

import subprocess
import time
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_photos import dng, encoded, heic, picture
from PIL import Image

from phototagger import images, own_metadata
from phototagger.own_metadata import OwnMetadata, columns
from phototagger.thumbnails import make_thumb
from phototagger.xmp import Item, Marks, text_digest, write_xmp

XMP = {
    "XMP-photoshop:Headline": "Überschrift 東京",
    "XMP-dc:Title": "a title",
    "XMP-dc:Description": "First line.\nSecond line.",
    "XMP-dc:Description-de": "Auf Deutsch.",
    "XMP-lr:HierarchicalSubject": ("animal|cat", "place|Überlingen"),
    "XMP-dc:Subject": ("Cat", "007", "true", "1e5"),
    "XMP-iptcCore:Location": "Harbour",
    "XMP-photoshop:City": "Überlingen",
    "XMP-photoshop:Country": "Germany",
}
FROM_XMP = OwnMetadata(
    {
        "XMP-dc:Subject": ["Cat", "007", "true", "1e5"],
        "XMP-lr:HierarchicalSubject": ["animal|cat", "place|Überlingen"],
        "XMP-dc:Title": ["a title"],
        "XMP-dc:Description": ["First line.\nSecond line."],
        "XMP-photoshop:Headline": ["Überschrift 東京"],
    },
    place="Harbour, Überlingen, Germany",
)
IPTC = {
    "IPTC:ObjectName": "Vor der Mühle",
    "IPTC:Caption-Abstract": "Ein Kätzchen",
    "IPTC:Keywords": ("Mühle", "CAT"),
    "IPTC:City": "Überlingen",
    "IPTC:Province-State": "Baden",
}
FROM_IPTC = OwnMetadata(
    {
        "XMP-dc:Subject": ["Mühle", "CAT"],
        "XMP-dc:Title": ["Vor der Mühle"],
        "XMP-dc:Description": ["Ein Kätzchen"],
    },
    place="Überlingen, Baden",
)
NO_COLUMNS = dict.fromkeys(
    ("own_title", "own_caption", "own_description", "own_alt_text", "own_rating")
) | {"own_keywords": [], "own_paths": []}
FORMATS = {
    "jpg": lambda: encoded(picture()),
    "png": lambda: encoded(picture(), "PNG"),
    "tif": lambda: encoded(picture(), "TIFF"),
    "webp": lambda: encoded(picture(), "WEBP"),
    "heic": lambda: heic(picture()),
    "dng": lambda: dng(encoded(picture(1500, 1000)), 3000, 2000),
}


def tagged(folder: Path, suffix: str, tags: dict, *options: str) -> bytes:
    """A photo into which ExifTool wrote tags."""
    path = folder / f"photo.{suffix}"
    path.write_bytes(FORMATS[suffix]())
    arguments = []
    for name, value in tags.items():
        arguments += [f"-{name}={v}" for v in (value if isinstance(value, tuple) else (value,))]
    command = ["exiftool", "-config", "", "-q", "-overwrite_original", *options, *arguments, path]
    subprocess.run(command, check=True)
    return path.read_bytes()


def headline(text: str, place: str | None = None) -> OwnMetadata:
    return OwnMetadata({"XMP-photoshop:Headline": [text]}, place=place)


def own(data: bytes) -> OwnMetadata:
    return images.decode(data, max_pixels=1 << 24, long_edge=200).own


@pytest.mark.parametrize("suffix", FORMATS)
def test_xmp_in_every_format(tmp_path: Path, suffix: str) -> None:
    assert own(FORMATS[suffix]()) == OwnMetadata()
    assert own(tagged(tmp_path, suffix, XMP)) == FROM_XMP


@pytest.mark.parametrize("suffix", ["jpg", "tif", "dng"])
@pytest.mark.parametrize("charset", ["latin", "utf8 without saying so", "utf8"])
def test_iptc_in_every_charset(tmp_path: Path, suffix: str, charset: str) -> None:
    options = ["-charset", "iptc=utf8"] if charset.startswith("utf8 ") else []
    marked = {"IPTC:CodedCharacterSet": "UTF8"} if charset == "utf8" else {}
    assert own(tagged(tmp_path, suffix, marked | IPTC, *options)) == FROM_IPTC


@pytest.mark.parametrize("suffix", ["jpg", "tif", "dng"])
def test_xmp_before_iptc_before_exif(tmp_path: Path, suffix: str) -> None:
    found = own(tagged(tmp_path, suffix, XMP | IPTC | {"IFD0:ImageDescription": "exif"}))
    more = {"XMP-dc:Subject": ["Cat", "007", "true", "1e5", "Mühle", "CAT"]}
    assert found.embedded == FROM_XMP.embedded | more
    assert columns(found.embedded) == NO_COLUMNS | {
        "own_title": "a title",
        "own_caption": "Überschrift 東京",
        "own_description": "First line.\nSecond line.",
        "own_keywords": ["Cat", "007", "true", "1e5", "Mühle", "Überlingen"],
        "own_paths": [["animal", "cat"], ["place", "Überlingen"]],
    }
    assert found.place == "Harbour, Überlingen, Baden, Germany"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "dng"])
def test_description_in_exif(tmp_path: Path, suffix: str) -> None:
    found = own(tagged(tmp_path, suffix, {"IFD0:ImageDescription": "Ein Kätzchen"}))
    assert found == OwnMetadata({"XMP-dc:Description": ["Ein Kätzchen"]})


@pytest.mark.parametrize(
    "default",
    [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "DCIM\\100MEDIA\\DJI_0001.JPG",
        "default",
        "DSC_0123",
        "IMG_20240501_123456.jpg",
        " \t ",
    ],
)
def test_what_cameras_write_is_no_description(tmp_path: Path, default: str) -> None:
    tags = {"XMP-dc:Title": default, "XMP-dc:Description": default, "ImageDescription": default}
    assert own(tagged(tmp_path, "jpg", tags)) == OwnMetadata()
    found = own(tagged(tmp_path, "jpg", tags | {"IPTC:Caption-Abstract": "In the harbour"}))
    assert found == OwnMetadata({"XMP-dc:Description": ["In the harbour"]})


@pytest.mark.parametrize("text", ["2024", "Digital cameras of 1999", "DSC meeting", "Dcimboat"])
def test_what_people_write_is_one(text: str) -> None:
    assert own_metadata.from_exiftool({"IPTC:Headline": text}) == headline(text)


# ---------------------------------------------------------------------------------------- packets

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">%s</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
HEADLINE = '<rdf:Description photoshop:Headline="by attribute" photoshop:City="Ulm"/>'


def jpeg_with(packet: bytes) -> bytes:
    buffer = BytesIO()
    picture().save(buffer, "JPEG", xmp=packet)
    return buffer.getvalue()


def test_properties_as_attributes_and_padding() -> None:
    packet = (PACKET % HEADLINE).encode() + b" " * 2000 + b"\0"
    assert own(jpeg_with(packet)) == headline("by attribute", "Ulm")


def test_descriptions_inside_of_a_value_do_not_count() -> None:
    inner = f"<photoshop:History>{HEADLINE}</photoshop:History>"
    packet = PACKET % f"<rdf:Description>{inner}</rdf:Description>"
    assert own(jpeg_with(packet.encode())) == OwnMetadata()


def test_default_language_wins_wherever_it_stands() -> None:
    items = '<rdf:li xml:lang="de">Hafen</rdf:li><rdf:li xml:lang="x-default">Harbour</rdf:li>'
    title = f"<rdf:Description><dc:title><rdf:Alt>{items}</rdf:Alt></dc:title></rdf:Description>"
    assert own(jpeg_with((PACKET % title).encode())) == OwnMetadata({"XMP-dc:Title": ["Harbour"]})


def bomb() -> str:
    levels = ["<!ENTITY a0 'lol'>"]
    levels += [f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12)]
    headline = HEADLINE.replace("by attribute", "&a11;")
    return f"<!DOCTYPE x [{''.join(levels)}]>" + (PACKET % headline).partition("?>")[2]


BAD = {
    "bomb": bomb().encode(),
    "external entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    + (PACKET % HEADLINE.replace("by attribute", "&e;")).partition("?>")[2].encode(),
    "one small entity": (
        '<!DOCTYPE x [<!ENTITY e "lol">]>' + (PACKET % HEADLINE).partition("?>")[2]
    )
    .replace("Ulm", "&e;")
    .encode(),
    "bomb in another encoding": bomb().encode("utf-16"),
    "cut off": (PACKET % HEADLINE).encode()[:300],
    "not UTF-8": (PACKET % HEADLINE).encode().replace(b"Ulm", b"K\xf6ln"),
    "zeros": bytes(1000),
    "empty": b" ",
    "deep": b"<a>" * 15_000,
    "text": b"hello",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_packet_is_no_metadata_and_no_problem(name: str) -> None:
    start = time.perf_counter()
    assert own(jpeg_with(BAD[name])) == OwnMetadata()
    assert time.perf_counter() - start < 2


def test_a_deep_or_huge_packet_costs_little() -> None:
    for packet in (b"<a>" * 600_000 + b"</a>" * 600_000, b"<a>" + b"x" * (5 << 20) + b"</a>"):
        image = Image.new("RGB", (4, 4))
        image.info["xmp"] = packet
        start = time.perf_counter()
        assert own_metadata.from_pillow(image, None) == OwnMetadata()
        assert time.perf_counter() - start < 2


def test_lengths_are_bounded() -> None:
    found = columns(
        {
            "XMP-dc:Title": ["t" * 5000],
            "XMP-dc:Description": ["d" * 50_000],
            "XMP-dc:Subject": [f"{n} " + "k" * 300 for n in range(3000)],
        }
    )
    assert (len(found["own_caption"]), len(found["own_description"])) == (1000, 10_000)
    assert len(found["own_keywords"]) == 1000
    assert max(map(len, found["own_keywords"])) == 200


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_never_raises(xmp: bytes, iptc: bytes) -> None:
    image = Image.open(BytesIO(encoded(picture())))
    image.info |= {"xmp": xmp, "photoshop": {0x0404: b"\x1c\x02" + iptc}}
    found = own_metadata.from_pillow(image, {0x010E: iptc, 0x02BC: xmp})
    assert isinstance(found, OwnMetadata)
    assert own_metadata.from_exif({0x010E: iptc, 0x02BC: xmp}) is not None


# -------------------------------------------------------------------------------- theirs and ours

LONG = "Gemüse auf dem Markt in der Altstadt am frühen Morgen, ü" + "ü" * 20  # over 64 bytes
OURS = {"XMP-dc:Subject": ("cat", LONG), "XMP-lr:HierarchicalSubject": ("animal|cat",)}


def with_ours(folder: Path, suffix: str, iptc: dict, values: dict[str, list[str]]) -> OwnMetadata:
    """A photo into which photo-tagger embedded, and what other programs then made of it."""
    texts = ("XMP-dc:Description", "XMP-photoshop:Headline", "XMP-dc:Title")
    digests = {tag: text_digest(values[tag][0]) for tag in texts if tag in values}
    item = Item("photo", None, values, Marks(run_id="0123", written=OURS, digests=digests))
    (packet,) = write_xmp([item])
    file = folder / "packet.xmp"
    file.write_bytes(packet)
    options = ("-m", "-codedcharacterset=utf8", f"-xmp<={file}") if iptc else (f"-xmp<={file}",)
    return own(tagged(folder, suffix, iptc, *options))


VALUES = {
    "XMP-dc:Subject": ["Tom", "cat", LONG],
    "XMP-lr:HierarchicalSubject": ["people|Tom", "animal|cat"],
    "XMP-dc:Title": ["Cat"],
    "XMP-dc:Description": ["A cat on a wall."],
    "XMP-photoshop:Headline": ["A cat"],
}
COPIES = {
    "IPTC:Keywords": ("Tom", "cat", LONG),
    "IPTC:ObjectName": "Cat",
    "IPTC:Caption-Abstract": "A cat on a wall.",
    "IPTC:Headline": "A cat",
    "IFD0:ImageDescription": "A cat on a wall.",
}
TOM = {"XMP-dc:Subject": ["Tom"], "XMP-lr:HierarchicalSubject": ["people|Tom"]}


@pytest.mark.parametrize("suffix", ["jpg", "tif", "dng"])
def test_what_photo_tagger_embedded_is_not_the_photos_own(tmp_path: Path, suffix: str) -> None:
    found = with_ours(tmp_path, suffix, COPIES, VALUES)
    assert found.embedded == TOM
    assert found.ours == VALUES | {
        "XMP-dc:Subject": ["cat", LONG],
        "XMP-lr:HierarchicalSubject": ["animal|cat"],
    }


def test_what_a_person_changed_since_is(tmp_path: Path) -> None:
    changes = {
        "IPTC:Keywords": ("Tom", "cat", "my cat"),
        "IPTC:Caption-Abstract": "Tom on our wall.",
    }
    found = with_ours(tmp_path, "jpg", COPIES | changes, VALUES)
    description = {"XMP-dc:Description": ["Tom on our wall."]}
    assert found.embedded == TOM | {"XMP-dc:Subject": ["Tom", "my cat"]} | description


def test_ours_in_iptc_after_xmp_was_changed_or_lost_its_words(tmp_path: Path) -> None:
    values = {tag: v for tag, v in VALUES.items() if tag != "XMP-dc:Subject"}
    found = with_ours(tmp_path, "jpg", {"IPTC:Keywords": ("cat", LONG)}, values)
    assert "XMP-dc:Subject" not in found.embedded


def test_a_keyword_that_iim_cut_off_is_no_second_one(tmp_path: Path) -> None:
    tags = {"XMP-dc:Subject": LONG, "IPTC:Keywords": (LONG, "wall")}
    for marked in ({}, {"IPTC:CodedCharacterSet": "UTF8"}):
        found = own(tagged(tmp_path, "jpg", marked | tags, "-m", "-charset", "iptc=utf8"))
        assert found.embedded == {"XMP-dc:Subject": [LONG, "wall"]}


def test_values_of_persons_are_not_altered() -> None:
    subject = "<rdf:li>  two  blanks </rdf:li><rdf:li>a|b/c</rdf:li><rdf:li>Cafe\u0301</rdf:li>"
    text = f"<rdf:Description><dc:subject><rdf:Bag>{subject}</rdf:Bag></dc:subject>"
    text += "<dc:description><rdf:Alt><rdf:li xml:lang='x-default'>a \n\n  b </rdf:li></rdf:Alt>"
    text += "</dc:description></rdf:Description>"
    found = own(jpeg_with((PACKET % text).encode())).embedded
    assert found["XMP-dc:Subject"] == ["  two  blanks ", "a|b/c", "Cafe\u0301"]
    assert found["XMP-dc:Description"] == ["a \n\n  b "]
    assert columns(found)["own_keywords"] == ["two blanks", "a|b/c", "Caf\u00e9"]
    assert columns(found)["own_description"] == "a\n\nb"


@pytest.mark.parametrize(
    ("rating", "expected"), [("0", None), ("5", "5"), ("-1", "-1"), ("3.5", "3.5"), ("good", None)]
)
def test_rating(rating: str, expected: str | None) -> None:
    assert columns({"XMP-xmp:Rating": [rating]})["own_rating"] == expected


def test_no_rating_is_embedded_where_a_camera_wrote_zero(tmp_path: Path) -> None:
    assert own(tagged(tmp_path, "jpg", {"XMP-xmp:Rating": "0"})) == OwnMetadata()
    assert own(tagged(tmp_path, "jpg", {"XMP-xmp:Rating": "4"})).embedded == {
        "XMP-xmp:Rating": ["4"]
    }


def test_hierarchies_of_all_lists() -> None:
    found = columns(
        {
            "XMP-dc:Subject": ["and/or", "Rex"],
            "XMP-lr:HierarchicalSubject": ["animal|dog|Rex", "band|AC/DC", "and/or", "|"],
            "XMP-digiKam:TagsList": ["animal/dog/Rex", "band/AC/DC", "and/or", "flat", "a//b"],
        }
    )
    assert found["own_paths"] == [["animal", "dog", "Rex"], ["band", "AC/DC"], ["a", "b"]]
    assert found["own_keywords"] == ["and/or", "Rex", "flat", "AC/DC", "b"]


def test_join_takes_all_keywords_and_the_first_texts() -> None:
    sidecar = {"XMP-dc:Subject": ["a", "b"], "XMP-dc:Title": ["beside"]}
    embedded = {"XMP-dc:Subject": ["c", "a"], "XMP-dc:Title": ["inside"], "XMP-xmp:Rating": ["4"]}
    joined = {"XMP-dc:Subject": ["a", "b", "c"], "XMP-dc:Title": ["beside"]}
    assert own_metadata.join([sidecar, embedded]) == joined | {"XMP-xmp:Rating": ["4"]}
    assert own_metadata.join([]) == {}


# --------------------------------------------------------------------------------------- the table


def test_fields_of_a_thumbnail(tmp_path: Path) -> None:
    thumb = make_thumb(tagged(tmp_path, "jpg", XMP), size=64, quality=85, max_pixels=1 << 24)
    assert thumb.fields["embedded"] == FROM_XMP.embedded
    assert thumb.fields["ours"] == {}
    assert thumb.fields["place"] == "Harbour, Überlingen, Germany"
    assert "Überschrift".encode() not in thumb.jpeg
