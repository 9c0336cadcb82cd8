"""Whatever a person said, in whatever way, each program shows; and what photo-tagger added, too."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from readers import Seen, digikam, immich, lightroom, photoprism, rdf
from readers.darkroom import (
    CAPTION,
    DESCRIPTION,
    EMPTY,
    KEYWORDS,
    SWITCHES,
    Darkroom,
    Human,
    exiftool,
    exiv2,
)

READERS: dict[str, Callable[[Path], Seen]] = {
    "immich": immich.see,
    "digikam": digikam.see,
    "photoprism": photoprism.see,
}
ODD = (
    "夕焼け 東京",
    "🚤 Ahoi 👩‍👩‍👧",
    "קיץ בתל אביב",
    "صيف",
    "says \"x\" & 'y' <b>",
    "a; b, c",
    "and/or",
    "L" * 63 + "änger als 64 Bytes",
    "007",
    "-dash",
    "&amp;",
    "e\u0301te\u0301",  # not composed
)
ODD_TEXT = "قارب أحمر\n\"Größe\" <&>; 東京 🚤\n\n    indented 'end'"

# What Lightroom writes: attributes, several languages, its own settings
LIGHTROOM = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 5.6-c140">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="4" xmp:Label="Red" crs:Exposure2012="+0.35" crs:HasSettings="True"
   photoshop:SidecarForExtension="NEF">
   <crs:ToneCurvePV2012><rdf:Seq><rdf:li>0, 0</rdf:li><rdf:li>255, 255</rdf:li></rdf:Seq>
   </crs:ToneCurvePV2012>
   <dc:subject><rdf:Bag><rdf:li>Rome</rdf:li><rdf:li>loose</rdf:li></rdf:Bag></dc:subject>
   <lr:hierarchicalSubject><rdf:Bag><rdf:li>Place|Italy|Rome</rdf:li><rdf:li>loose</rdf:li></rdf:Bag>
   </lr:hierarchicalSubject>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">In Rome</rdf:li>
   <rdf:li xml:lang="de">In Rom</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   darktable:xmp_version="4" darktable:raw_params="0" darktable:history_end="1">
   <darktable:history><rdf:Seq><rdf:li darktable:num="0" darktable:operation="exposure"
      darktable:enabled="1" darktable:params="gz02eJxjYGBgAAAABAAB"/></rdf:Seq></darktable:history>
   <dc:subject><rdf:Seq><rdf:li>darktable</rdf:li><rdf:li>Sea</rdf:li></rdf:Seq></dc:subject>
   <lr:hierarchicalSubject><rdf:Seq><rdf:li>darktable|format|jpg</rdf:li><rdf:li>Nature|Sea</rdf:li>
   </rdf:Seq></lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

PEOPLE = {
    "plain.jpg": Human(),
    "camera.jpg": Human(),
    "embedded.jpg": Human(("granny", "kitchen"), ("Family|Granny",), "Granny bakes"),
    "iptc.jpg": Human(("Mühle", "Wasser"), (), "Alte Mühle"),
    "exif.jpg": Human((), (), "Typed on a phone"),
    "flat.jpg": Human(("garden", "roses")),
    "paths.jpg": Human((), ("Plants|Rose", "Plants|Tulip"), "Written in digiKam"),
    "exiv2.jpg": Human(("quay",), ("Place|Harbour|Quay 7",), "By Exiv2"),
    "tiff.jpg": Human((), (), "Only where Immich looks"),
    "darktable.jpg": Human((), ("Nature|Sea",)),
    "attributes.jpg": Human(("loose",), ("Place|Italy|Rome",), "In Rome"),
    "raw.nef": Human(("loose",), ("Place|Italy|Rome",), "In Rome"),
    "two-places.jpg": Human(("inside", "beside"), ("In|Inside", "By|Beside"), "Beside"),
    "odd.jpg": Human(ODD, (), ODD_TEXT),
    "odd-beside.jpg": Human(ODD, (), ODD_TEXT),
}


def shoot(room: Darkroom) -> None:
    """The photos of PEOPLE."""
    room.photo("plain.jpg")
    room.photo("camera.jpg", {"IFD0:ImageDescription": "OLYMPUS DIGITAL CAMERA"})
    subject, tree, tags = "XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList"
    text = "XMP-dc:Description"
    room.photo(
        "embedded.jpg",
        {subject: ("granny", "kitchen"), tree: "Family|Granny", text: "Granny bakes"},
    )
    room.photo(
        "iptc.jpg",
        {
            "IPTC:CodedCharacterSet": "UTF8",
            "IPTC:Keywords": ("Mühle", "Wasser"),
            "IPTC:Caption-Abstract": "Alte Mühle",
        },
    )
    room.photo("exif.jpg", {"IFD0:ImageDescription": "Typed on a phone"})
    beside = {
        "flat.jpg": {subject: ("garden", "roses")},
        "paths.jpg": {tags: ("Plants/Rose", "Plants/Tulip"), text: "Written in digiKam"},
        "tiff.jpg": {"XMP-tiff:ImageDescription": "Only where Immich looks"},
        "odd-beside.jpg": {subject: ODD, text: ODD_TEXT},
    }
    for name, values in beside.items():
        exiftool(room.photo(name).with_name(f"{name}.xmp"), values)
    exiv2(
        room.photo("exiv2.jpg").with_name("exiv2.jpg.xmp"),
        {
            "Xmp.dc.subject": ["quay"],
            "Xmp.lr.hierarchicalSubject": ["Place|Harbour|Quay 7"],
            "Xmp.dc.description": {'lang="x-default"': "By Exiv2"},
        },
    )
    room.photo("darktable.jpg").with_name("darktable.jpg.xmp").write_text(DARKTABLE)
    room.photo("attributes.jpg").with_name("attributes.xmp").write_text(LIGHTROOM)
    room.photo("raw.nef").with_name("raw.xmp").write_text(LIGHTROOM)
    photo = room.photo(
        "two-places.jpg",
        {subject: "inside", tree: "In|Inside", text: "Inside", "IFD0:ImageDescription": "Inside"},
    )
    values = {subject: "beside", tags: "By/Beside", text: "Beside"}
    values["XMP-tiff:ImageDescription"] = "Beside"
    exiftool(photo.with_name("two-places.jpg.xmp"), values)
    room.photo("odd.jpg", {subject: ODD, text: ODD_TEXT})


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Darkroom:
    carried = ("title", "caption", "description", "rating")
    room = Darkroom(tmp_path_factory.mktemp("darkroom"), carry_over=carried)
    shoot(room)
    room.propose()
    told = room.apply()
    assert told == {name: told[name] for name in PEOPLE}
    assert set(told.values()) <= {"create", "update"}
    return room


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("program", READERS)
def test_every_human_word_and_ours_is_seen(room: Darkroom, program: str, name: str) -> None:
    seen, human = READERS[program](room.photos / name), PEOPLE[name]
    assert human.leaves - seen.words() == set()
    assert set(KEYWORDS) - seen.words() == set()
    if program != "photoprism":
        paths = {path.replace("|", "/") for path in (*human.paths, "Place|Harbour", "Place|港")}
        assert paths - set(seen.keywords) == set()
    assert len(seen.keywords) == len(set(seen.keywords))
    assert seen.description.strip() == (human.description or DESCRIPTION).strip()


@pytest.mark.parametrize("program", READERS)
def test_a_reader_could_miss_something(room: Darkroom, program: str, tmp_path: Path) -> None:
    """Otherwise the tests above could not fail: sidecars as a naive writer makes them."""
    naive = room.photo("naive.jpg", {"XMP-dc:Subject": "granny"})
    naive = naive.rename(tmp_path / naive.name)
    exiftool(naive.with_name("naive.jpg.xmp"), {"XMP-digiKam:TagsList": "Place/Harbour"})
    exiftool(naive.with_name("naive.jpg.xmp"), {"XMP-dc:Subject": "Harbour"})
    assert "granny" not in READERS[program](naive).words()


def test_immich_with_the_name_of_a_camera_as_description(room: Darkroom, tmp_path: Path) -> None:
    photo = tmp_path / "camera.jpg"
    photo.write_bytes((room.photos / "camera.jpg").read_bytes())
    exiftool(tmp_path / "camera.jpg.xmp", {"XMP-dc:Description": "x", "XMP-dc:Subject": "y"})
    assert immich.see(photo) == Seen((), "OLYMPUS DIGITAL CAMERA")
    assert immich.see(room.photos / "camera.jpg").description == DESCRIPTION


def test_immich_keeps_embedded_keywords_where_the_paths_are_switched_off(tmp_path: Path) -> None:
    """It takes a tag by its bare name, whatever the namespace: none of ours may be `Keywords`."""
    off = dict.fromkeys(("hierarchical_subject", "tags_list"), False)
    room = Darkroom(tmp_path, switches=SWITCHES | off)
    photo = room.photo("a.jpg", {"IPTC:CodedCharacterSet": "UTF8", "IPTC:Keywords": "Mühle"})
    room.propose()
    assert room.apply() == {"a.jpg": "create"}
    assert immich.see(photo).keywords == ("Mühle",)


def test_digikam_needs_texts_carried_over(tmp_path: Path) -> None:
    room = Darkroom(tmp_path)
    own = {"XMP-dc:Title": "Kitchen", "XMP-xmp:Rating": "4", "XMP-dc:Subject": "granny"}
    photo = room.photo("a.jpg", own | {"XMP-dc:Description": "Granny bakes"})
    room.propose()
    room.apply()
    assert digikam.see(photo).description == ""
    assert immich.see(photo).description == photoprism.see(photo).description == "Granny bakes"
    beside = photo.with_name("a.jpg.xmp")
    assert {"dc:title", "xmp:Rating"} & rdf.properties(beside.read_bytes()).keys() == set()
    room.carry_over = ("title", "description", "rating")
    room.propose()
    room.apply()
    seen = digikam.see(photo)
    assert (seen.title, seen.description) == ("Kitchen", "Granny bakes")
    assert rdf.properties(beside.read_bytes())["xmp:Rating"] == "4"


def test_digikam_without_its_sidecar_option_sees_the_photo_only(room: Darkroom) -> None:
    seen = digikam.see(room.photos / "embedded.jpg", read_sidecars=False)
    assert seen == Seen(("Family/Granny",), "Granny bakes")


def test_lightroom_reads_what_lies_beside_a_raw_file(room: Darkroom) -> None:
    seen = lightroom.see(room.photos / "raw.nef")
    assert {"Rome", "loose", *KEYWORDS} <= set(seen.keywords)
    assert {"Place|Italy|Rome", "loose", "Place|Harbour", "red boat"} <= set(seen.hierarchy)
    assert seen.description == "In Rome"
    assert seen.headline == CAPTION


def test_lightroom_ignores_what_lies_beside_a_jpeg(room: Darkroom) -> None:
    assert lightroom.see(room.photos / "plain.jpg") == lightroom.SeenByLightroom()
    assert lightroom.see(room.photos / "embedded.jpg").hierarchy == ("Family|Granny",)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Darkroom:
    """Published into the photos themselves."""
    room = Darkroom(tmp_path_factory.mktemp("embedded"), mode="embed")
    room.photo("plain.jpg")
    room.photo("camera.jpg", {"IFD0:ImageDescription": "OLYMPUS DIGITAL CAMERA"})
    room.photo("embedded.jpg", {"XMP-dc:Subject": "granny", "XMP-dc:Description": "Granny bakes"})
    iptc = {"IPTC:Keywords": ("Mühle", "Wasser"), "IPTC:Caption-Abstract": "Alte Mühle"}
    room.photo("iptc.jpg", {"IPTC:CodedCharacterSet": "UTF8"} | iptc)
    room.propose()
    assert set(room.apply().values()) == {"update"}
    return room


EMBEDDED = {
    "plain.jpg": Human(),
    "camera.jpg": Human(),
    "embedded.jpg": Human(("granny",), (), "Granny bakes"),
    "iptc.jpg": Human(("Mühle", "Wasser"), (), "Alte Mühle"),
}


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("program", [*READERS, "lightroom"])
def test_what_is_embedded_is_seen(embedded: Darkroom, program: str, name: str) -> None:
    see, human = (READERS | {"lightroom": lightroom.see})[program], EMBEDDED[name]
    seen = see(embedded.photos / name)
    assert human.leaves | set(KEYWORDS) <= seen.words()
    assert seen.description == (human.description or DESCRIPTION)


def test_what_other_programs_keep_there_survives(room: Darkroom) -> None:
    for name, content in (("raw.xmp", LIGHTROOM), ("darktable.jpg.xmp", DARKTABLE)):
        before = rdf.properties(content.encode())
        after = rdf.properties((room.photos / name).read_bytes())
        kept = {
            key: v for key, v in before.items() if key.startswith(("crs:", "darktable:", "xmp:"))
        }
        assert kept
        assert {key: after.get(key) for key in kept} == kept
    description = rdf.properties((room.photos / "raw.xmp").read_bytes())["dc:description"]
    assert description == {"x-default": "In Rome", "de": "In Rom"}


# All that photo-tagger may ever write, besides its own namespace
OURS_TO_SAY = {
    *("dc:subject", "dc:title", "dc:description", "lr:hierarchicalSubject", "digiKam:TagsList"),
    *("MicrosoftPhoto:LastKeywordXMP", "mediapro:CatalogSets", "tiff:ImageDescription"),
    *("photoshop:Headline", "photoshop:CaptionWriter"),
    *("Iptc4xmpCore:AltTextAccessibility", "Iptc4xmpCore:ExtDescrAccessibility"),
}


def test_nothing_that_is_not_ours_to_say(room: Darkroom) -> None:
    """No rating, label, date, position, and no "generated by AI" source type, among others."""
    people = {"raw.xmp": LIGHTROOM, "attributes.xmp": LIGHTROOM, "darktable.jpg.xmp": DARKTABLE}
    for path in sorted(room.photos.glob("*.xmp")):
        found = {n for n in rdf.properties(path.read_bytes()) if not n.startswith("phototagger:")}
        theirs = rdf.properties(people.get(path.name, EMPTY).encode()).keys()
        assert found <= OURS_TO_SAY | theirs, path.name


@pytest.mark.parametrize("mode", ["sidecar", "embed"])
def test_nothing_else_is_said_with_everything_switched_on(tmp_path: Path, mode: str) -> None:
    room = Darkroom(tmp_path, switches=dict.fromkeys(SWITCHES, True), mode=mode)
    photo = room.photo("a.jpg", {"IPTC:City": "Ulm"})
    before = _all_tags(photo)
    room.propose()
    room.apply()
    if mode == "sidecar":
        assert _all_tags(photo) == before
        found = set(rdf.properties(photo.with_name("a.jpg.xmp").read_bytes()))
    else:
        found = set(rdf.embedded(photo))
        copies = ("Keywords", "ObjectName", "Headline", "Caption-Abstract", "Writer-Editor")
        more = {f"IPTC:{name}" for name in (*copies, "CodedCharacterSet", "EnvelopeRecordVersion")}
        more |= {"IFD0:ImageDescription", "Photoshop:IPTCDigest"}
        obligatory = {"XResolution", "YResolution", "ResolutionUnit", "YCbCrPositioning"}
        new = {t for t in _all_tags(photo).keys() - before.keys() if not t.startswith("XMP-")}
        assert new - {f"IFD0:{name}" for name in obligatory} == more
        assert {tag: v for tag, v in before.items() if _all_tags(photo)[tag] != v} == {}
    names = {name for name in found if not name.startswith("phototagger:")}
    alone = {name for name in OURS_TO_SAY if "Accessibility" in name}  # of another prompt profile
    assert names == OURS_TO_SAY - alone


def _all_tags(photo: Path) -> dict[str, object]:
    command = ["exiftool", "-config", "", "-j", "-G1", "-a", "-u", "-all", "--System:all"]
    output = subprocess.run([*command, photo], check=True, capture_output=True).stdout
    left_out = {"SourceFile", "ExifTool:Warning", "File:CurrentIPTCDigest", "File:ExifByteOrder"}
    return {tag: v for tag, v in json.loads(output)[0].items() if tag not in left_out}


def test_existing_sidecars_keep_their_name(room: Darkroom) -> None:
    names = {path.name for path in room.photos.glob("*.xmp")}
    stems = {"raw.nef": "raw.xmp", "attributes.jpg": "attributes.xmp"}
    assert names == {stems.get(name, f"{name}.xmp") for name in PEOPLE}


def test_a_second_apply_touches_nothing(room: Darkroom) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in room.photos.iterdir()}
    assert set(room.apply().values()) <= {"keep"}
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in room.photos.iterdir()}
    assert after == before


def test_five_thousand_keywords_stay_below_photoprisms_cap(tmp_path: Path) -> None:
    words = [f"keyword {n} ä" for n in range(5000)]
    room = Darkroom(tmp_path)
    beside = room.photo("beside.jpg")
    exiv2(beside.with_name("beside.jpg.xmp"), {"Xmp.dc.subject": words})
    inside = room.photo("inside.jpg", {"XMP-dc:Subject": words})  # in several segments of the JPEG
    room.propose()
    assert room.apply() == {"beside.jpg": "update", "inside.jpg": "create"}
    for photo in (beside, inside):
        assert photo.with_name(f"{photo.name}.xmp").stat().st_size < photoprism.LARGEST
        for see in READERS.values():
            assert set(words) <= set(see(photo).keywords)


def test_our_own_odd_values_split_nothing(tmp_path: Path) -> None:
    paths = {"a|b/c; d, e": ["x/y|z", "a|b/c; d, e"], "ä" * 40: ["ä" * 40], '<&"\n>': ['<&"\n>']}
    room = Darkroom(tmp_path)
    photo = room.photo("a.jpg")
    room.propose(keywords=paths, caption="c" * 300, description="words " * 500)
    room.apply()
    wanted = {"x-y-z", "a-b-c d e", "ä" * 32, '<&" >'}  # 64 bytes
    for see in READERS.values():
        assert wanted <= see(photo).words()
        assert len(see(photo).description.encode()) <= 2000
    found = rdf.properties(photo.with_name("a.jpg.xmp").read_bytes())
    assert len(found["photoshop:Headline"].encode()) <= 256


def test_photoprism_reads_neither_attributes_nor_too_much() -> None:
    assert photoprism.read(LIGHTROOM.encode())["keywords"] == ["Rome", "loose"]
    shorthand = EMPTY.replace('rdf:about=""', 'rdf:about="" xmlns:d="d" d:title="x"')
    assert photoprism.read(shorthand.encode()) == {}
    with pytest.raises(photoprism.TooMuchError):
        photoprism.read(LIGHTROOM.encode() + b" " * photoprism.LARGEST)
    with pytest.raises(photoprism.TooMuchError):
        photoprism.read(b"<a>" * 65 + b"</a>" * 65)
