"""What a photo says about itself: title, description, keywords and place that somebody embedded.

Read from XMP (ISO 16684-1), IPTC-IIM and EXIF inside the file, and in the same form from sidecars.
Editors, phones and agencies write anything into these fields: nothing here raises, what cannot be
read is not there, what a camera writes of its own accord is nobody's description, and what
photo-tagger wrote is not the photo's own.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from phototagger import containers, iptc, rdf, xmp
from phototagger.xmp import FIELDS, KEYWORD_LISTS, Marks, NotXmpError, Packet, Values, text_digest

Tags = dict[str, list[str]]  # a field as ExifTool calls it -> its values

_LARGEST_XMP = 4 << 20  # bytes; an editor's history can be hundreds of kilobytes
_LONGEST_CAPTION, _LONGEST_DESCRIPTION, _LONGEST_KEYWORD = 1000, 10_000, 200
_MOST_KEYWORDS = 1000

_SUBJECT, _TITLE = "XMP-dc:Subject", "XMP-dc:Title"
_DESCRIPTION, _HEADLINE = "XMP-dc:Description", "XMP-photoshop:Headline"
_CAPTION_TAGS = (_HEADLINE, _TITLE)
_DESCRIPTION_TAGS = (_DESCRIPTION, "XMP-tiff:ImageDescription")
_ALT_TEXT, _RATING = "XMP-iptcCore:AltTextAccessibility", "XMP-xmp:Rating"

# The same text in XMP, IPTC-IIM and EXIF (Metadata Working Group, Guidelines 2.0, chapter 5), with
# the most bytes of IIM's
_COPIES = {
    _HEADLINE: {"IPTC:Headline": 256},
    _TITLE: {"IPTC:ObjectName": 64},
    _DESCRIPTION: {"IPTC:Caption-Abstract": 2000, "IFD0:ImageDescription": 0},
    "XMP-photoshop:CaptionWriter": {"IPTC:Writer-Editor": 32},
}
_IPTC_KEYWORDS, _IPTC_KEYWORD_BYTES = "IPTC:Keywords", 64
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_PLACE = (
    ("XMP-iptcCore:Location", "IPTC:Sub-location"),
    ("XMP-photoshop:City", "IPTC:City"),
    ("XMP-photoshop:State", "IPTC:Province-State"),
    ("XMP-photoshop:Country", "IPTC:Country-PrimaryLocationName"),
)
_PLACE_NAMESPACES = {
    "XMP-photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "XMP-iptcCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}

_IPTC = {  # record 2 of IIM 4.2
    (2, 5): "IPTC:ObjectName",
    (2, 25): _IPTC_KEYWORDS,
    (2, 90): "IPTC:City",
    (2, 92): "IPTC:Sub-location",
    (2, 95): "IPTC:Province-State",
    (2, 101): "IPTC:Country-PrimaryLocationName",
    (2, 105): "IPTC:Headline",
    (2, 120): "IPTC:Caption-Abstract",
    (2, 122): "IPTC:Writer-Editor",
}
_IMAGE_DESCRIPTION, _XMP_PACKET = 0x010E, 0x02BC

# What to ask ExifTool for, with `-G1`; XMP as the packet itself
EXIFTOOL_TAGS = (
    *(f"-{name}" for copies in _COPIES.values() for name in copies),
    *(f"-{name}" for _, name in _PLACE),
    f"-{_IPTC_KEYWORDS}",
    "-XMP",
)


@dataclass(frozen=True)
class OwnMetadata:
    """What is embedded in one photo.

    `embedded`: values that are not photo-tagger's, in the fields of XMP, whether they were found
    there, in IPTC or in EXIF. `ours`: photo-tagger's. `place`: from the spot up to the country.
    """

    embedded: Values = field(default_factory=dict)
    ours: Values = field(default_factory=dict)
    place: str | None = None


def from_pillow(image: Any, exif: Any) -> OwnMetadata:
    """The metadata of an opened `PIL.ImageFile` and its EXIF; of a PNG only once it was loaded."""
    return joined(_iptc(image) | _exif(exif), _packet_of(image))


def from_exif(exif: Any) -> OwnMetadata:
    """The metadata of a TIFF directory, where XMP is one of the tags."""
    return _own(_exif(exif), _get(exif, _XMP_PACKET))


def from_exiftool(tags: Mapping[str, Any], packet: bytes = b"") -> OwnMetadata:
    """The metadata of what ExifTool's JSON says for `EXIFTOOL_TAGS`, and of the XMP packet.

    ExifTool reads IPTC that does not name its charset as Latin; most of it is UTF-8.
    """
    found: Tags = {}
    for name, value in tags.items():
        values = [_as_text(item) for item in (value if isinstance(value, list) else [value])]
        found[name] = [_mend(text, "cp1252") for text in values]
    return _own(found, packet)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value)


# ------------------------------------------------------------------------------------- choosing


def columns(values: Values) -> dict[str, Any]:
    """The columns `own_*` of the thumbs table for what persons say of a photo."""
    keywords, paths = _keywords(values)
    caption = _first(values, _CAPTION_TAGS, _one_line)
    description = _first(values, _DESCRIPTION_TAGS, _lines)
    return {
        "own_title": _cut(_first(values, (_TITLE,), _one_line), _LONGEST_CAPTION),
        "own_caption": _cut(caption, _LONGEST_CAPTION),
        "own_description": _cut(description, _LONGEST_DESCRIPTION),
        "own_alt_text": _cut(_first(values, (_ALT_TEXT,), _lines), _LONGEST_DESCRIPTION),
        "own_rating": _first(values, (_RATING,), _rating),
        "own_keywords": keywords,
        "own_paths": paths,
    }


def join(parts: Iterable[Values]) -> Values:
    """What several places say of one photo: all keywords, and the first text of each field."""
    found: Values = {}
    for values in parts:
        for tag, items in values.items():
            if tag in KEYWORD_LISTS:
                found[tag] = list(dict.fromkeys([*found.get(tag, ()), *items]))
            else:
                found.setdefault(tag, items)
    return found


def ours_of(packet: Packet) -> Values:
    """The values of a packet that are photo-tagger's."""
    theirs = packet.theirs
    found: Values = {}
    for tag, items in packet.values.items():
        kept = set(theirs.get(tag, ()))
        if ours := [item for item in items if item not in kept]:
            found[tag] = ours
    return found


def _keywords(values: Values) -> tuple[list[str], list[list[str]]]:
    """Keywords without what is above them, and the hierarchies among them.

    What stands in dc:subject is one keyword, also with a bar or slash in it, whatever copies of it
    other lists have. One path is written differently in lists with different separators.
    """
    flat = values.get(_SUBJECT, ())
    whole = set(flat)
    found: dict[str, str] = {}
    paths: dict[str, list[str]] = {}
    for value in flat:
        _add_keyword(found, value)
    for tag, separator in KEYWORD_LISTS.items():
        if not separator:
            continue
        for value in values.get(tag, ()):
            if value in whole:
                continue
            levels = [level for part in value.split(separator) if (level := _keyword(part))]
            if len(levels) > 1:
                paths.setdefault("/".join(levels).casefold(), levels)
            elif levels:
                _add_keyword(found, levels[0])
    for levels in paths.values():
        _add_keyword(found, levels[-1])
    return list(found.values())[:_MOST_KEYWORDS], list(paths.values())[:_MOST_KEYWORDS]


def _add_keyword(found: dict[str, str], value: str) -> None:
    if keyword := _keyword(value):
        found.setdefault(keyword.casefold(), keyword)


def _keyword(value: str) -> str:
    return _one_line(value)[:_LONGEST_KEYWORD].strip()


def _first(tags: Tags, names: Iterable[str], clean: Callable[[str], str]) -> str | None:
    for name in names:
        for value in tags.get(name, ()):
            if (text := clean(value)) and not says_nothing(text):
                return text
    return None


def _cut(text: str | None, longest: int) -> str | None:
    return text[:longest].strip() if text else None


_STARS = re.compile(r"[+-]?\d(\.\d+)?")


def _rating(value: str) -> str:
    """A rating as it is; nothing for 0, which many cameras write and means that there is none."""
    text = value.strip()
    return text if _STARS.fullmatch(text) and float(text) else ""


# What cameras and their software write into the description of every photo
_DEFAULTS = {
    "olympus digital camera",
    "sony dsc",
    "minolta digital camera",
    "konica minolta digital camera",
    "kodak digital still camera",
    "samsung digital camera",
    "nikon digital camera",
    "pentax digital camera",
    "casio computer co.,ltd.",
    "digital camera",
    "digital still camera",
    "exif_jpeg_picture",
    "exif jpeg picture",
    "jpeg picture",
    "my beautiful picture",
    "default",
    "untitled",
    "none",
    "null",
    "ascii",
    "charset=ascii",
    "lead technologies inc. v1.01",
    "applemark",
    # Huawei and Honor: the camera's mode
    *("oznor", "oznorco", "rhdr", "edf", "dav", "ptr", "hdrpl", "fbt", "btf", "sdr", "cof"),
}
_FILE_NAME = re.compile(
    r"dcim([\\/].*)?"
    r"|_?(dsc[fn]?|img|imgp|mg|pxl|dji|gopr|pict|sam|cimg)[_-]?\d{3,}([_-]\w+)*(\.\w{3,4})?"
    r"|p\d{7}(\.\w{3,4})?|<?(samsung )?digimax .*",
    re.IGNORECASE,
)


def says_nothing(text: str) -> bool:
    return text.casefold() in _DEFAULTS or bool(_FILE_NAME.fullmatch(text))


def _one_line(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def _lines(text: str) -> str:
    lines = [_one_line(line) for line in text.splitlines()]
    return "\n".join(lines).strip()


# ------------------------------------------------------------------------------ theirs and ours


def _own(tags: Tags, content: object) -> OwnMetadata:
    """From the tags of IPTC and EXIF, and the XMP packet as it is."""
    return joined(tags, _packet(content))


def joined(tags: Tags, packet: Packet) -> OwnMetadata:
    """From the tags of IPTC and EXIF (`IPTC:Keywords`, `IFD0:ImageDescription`), and the XMP."""
    theirs, ours = packet.theirs, ours_of(packet)
    embedded: Values = {}
    for field_ in FIELDS:
        values = theirs.get(field_.tag, [])
        if field_.tag in KEYWORD_LISTS:
            values = [value for value in values if _one_line(value)]
        else:
            values = values[:1] if _first(theirs, (field_.tag,), _one_line) else []
        if field_.tag == _RATING and not _first(theirs, (_RATING,), _rating):
            values = []
        if field_.tag == _SUBJECT:
            values += _more_keywords(tags, packet)
        elif not values and field_.tag in _COPIES:
            values = _copied_text(tags, packet, field_.tag)
        if values:
            embedded[field_.tag] = values
    place = [_first(tags | _places(packet), names, _one_line) for names in _PLACE]
    text = ", ".join(dict.fromkeys(part for part in place if part))[:_LONGEST_CAPTION]
    return OwnMetadata(embedded, ours, text or None)


def _more_keywords(tags: Tags, packet: Packet) -> list[str]:
    """The keywords of IPTC that XMP does not have, in full or before IIM cut it off."""
    known = set(packet.values.get(_SUBJECT, ()))
    for tag, written in packet.marks.written.items():
        separator = KEYWORD_LISTS.get(tag)
        known.update(value.rpartition(separator)[2] if separator else value for value in written)
    known = {_one_line(value) for value in known}
    known |= {_one_line(_first_bytes(value, _IPTC_KEYWORD_BYTES)) for value in known}
    found: dict[str, None] = {}
    for value in tags.get(_IPTC_KEYWORDS, ()):
        if (keyword := _plain(value)) and _one_line(value) not in known:
            found.setdefault(keyword)
    return list(found)


def _copied_text(tags: Tags, packet: Packet, tag: str) -> list[str]:
    """The text of IPTC or EXIF that belongs in this field of XMP, if it is not one of ours."""
    digest = packet.marks.digests.get(tag)
    said = packet.values.get(tag, ())
    ours = [_lines(text) for text in said if digest and text_digest(text) == digest]
    for name, limit in _COPIES[tag].items():
        for value in tags.get(name, ()):
            text, words = _plain(value), _lines(value)
            if not words or says_nothing(_one_line(words)):
                continue
            if digest and digest in (text_digest(value), text_digest(text)):
                continue
            if words in ours or (limit and words in (_lines(_first_bytes(t, limit)) for t in ours)):
                continue
            return [text]
    return []


def _plain(text: str) -> str:
    """A value of IPTC or EXIF as it is, but for what XML cannot hold and blanks at its ends."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _first_bytes(text: str, limit: int) -> str:
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def _packet_of(image: Any) -> Packet:
    """The XMP of an opened image; a JPEG can have more of it than fits into one packet."""
    content = image.info.get("xmp")
    packet = _packet(content)
    if not isinstance(content, bytes) or not hasattr(image, "applist"):
        return packet
    segments = [data for name, data in image.applist if name == "APP1"]
    for part in map(_packet, containers.extended_xmp([content], segments)):
        packet = Packet(
            packet.values | part.values,
            part.marks if packet.marks == Marks() else packet.marks,
            {**packet.languages, **part.languages},
            {**packet.rest, **part.rest},
        )
    return packet


def _packet(content: object) -> Packet:
    """What an XMP packet says; nothing if it is too large, or none."""
    if isinstance(content, str):
        content = content.encode(errors="replace")
    if not isinstance(content, bytes) or not content or len(content) > _LARGEST_XMP:
        return Packet()
    try:
        return xmp.parse(content)
    except NotXmpError:
        return Packet()


def _places(packet: Packet) -> Tags:
    found: Tags = {}
    for tag, _ in _PLACE:
        group, _, name = tag.partition(":")
        if node := packet.rest.get(f"{{{_PLACE_NAMESPACES[group]}}}{name}"):
            found[tag] = rdf.texts(json.loads(node))
    return found


# --------------------------------------------------------------------------------- IPTC and EXIF


def _iptc(image: Any) -> Tags:
    """The fields of an IPTC-IIM block in a JPEG or TIFF."""
    from PIL import IptcImagePlugin

    try:
        found = IptcImagePlugin.getiptcinfo(image) or {}
    except Exception:  # whatever a broken block makes of Pillow's parser
        return {}
    tags: Tags = {}
    for key, value in found.items():
        if tag := _IPTC.get(key):
            values = value if isinstance(value, list) else [value]
            tags[tag] = [iptc.decoded(item) for item in values if isinstance(item, bytes)]
    return tags


def _exif(exif: Any) -> Tags:
    value = _get(exif, _IMAGE_DESCRIPTION)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return {}
    return {"IFD0:ImageDescription": [_mend(value.partition("\0")[0], "latin-1")]}


def _get(tags: Any, tag: int) -> object:
    try:
        return tags.get(tag)
    except Exception:
        return None


def _mend(text: str, read_as: str) -> str:
    """Text that was read as if it were Latin, as what it says if that is UTF-8."""
    try:
        return text.encode(read_as).decode()
    except UnicodeError:
        return text
