"""What a photo says about itself: title, description, keywords and place that somebody embedded.

Read from XMP (ISO 16684-1), IPTC-IIM and EXIF inside the file, never from a sidecar. Editors,
phones and agencies write anything into these fields: nothing here raises, what cannot be read is
not there, and what a camera writes of its own accord is nobody's description.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

Tags = dict[str, list[str]]  # a field as ExifTool calls it -> its values

_LARGEST_XMP = 4 << 20  # bytes; an editor's history can be hundreds of kilobytes
_LONGEST_CAPTION, _LONGEST_DESCRIPTION, _LONGEST_KEYWORD = 1000, 10_000, 200
_MOST_KEYWORDS = 1000


@dataclass(frozen=True)
class OwnMetadata:
    """The columns of a row of the thumbs table; `place`: from the spot up to the country."""

    own_caption: str | None = None
    own_description: str | None = None
    own_keywords: list[str] = field(default_factory=list)
    place: str | None = None


_CAPTION = ("XMP-photoshop:Headline", "XMP-dc:Title", "IPTC:Headline", "IPTC:ObjectName")
_DESCRIPTION = ("XMP-dc:Description", "IPTC:Caption-Abstract", "IFD0:ImageDescription")
_HIERARCHY = "XMP-lr:HierarchicalSubject"
_KEYWORDS = ("XMP-dc:Subject", "IPTC:Keywords")
_PLACE = (
    ("XMP-iptcCore:Location", "IPTC:Sub-location"),
    ("XMP-photoshop:City", "IPTC:City"),
    ("XMP-photoshop:State", "IPTC:Province-State"),
    ("XMP-photoshop:Country", "IPTC:Country-PrimaryLocationName"),
)

_NAMESPACES = {
    "XMP-dc": "http://purl.org/dc/elements/1.1/",
    "XMP-photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "XMP-lr": "http://ns.adobe.com/lightroom/1.0/",
    "XMP-iptcCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
_ELEMENTS = {"Title": "title", "Description": "description", "Subject": "subject"}
_ELEMENTS["HierarchicalSubject"] = "hierarchicalSubject"

_IPTC = {  # record 2 of IIM 4.2
    (2, 5): "IPTC:ObjectName",
    (2, 25): "IPTC:Keywords",
    (2, 90): "IPTC:City",
    (2, 92): "IPTC:Sub-location",
    (2, 95): "IPTC:Province-State",
    (2, 101): "IPTC:Country-PrimaryLocationName",
    (2, 105): "IPTC:Headline",
    (2, 120): "IPTC:Caption-Abstract",
}
_IMAGE_DESCRIPTION, _XMP_PACKET = 0x010E, 0x02BC

# What to ask ExifTool for, with `-G1`
_TAGS = (*_CAPTION, *_DESCRIPTION, *_KEYWORDS, _HIERARCHY, *(t for names in _PLACE for t in names))
EXIFTOOL_TAGS = tuple(f"-{tag}" for tag in _TAGS)


def from_pillow(image: Any, exif: Any) -> OwnMetadata:
    """The metadata of an opened `PIL.ImageFile` and its EXIF; of a PNG only once it was loaded."""
    return _choose(_iptc(image) | _exif(exif) | _xmp(image.info.get("xmp")))


def from_exif(exif: Any) -> OwnMetadata:
    """The metadata of a TIFF directory, where XMP is one of the tags."""
    return _choose(_exif(exif) | _xmp(_get(exif, _XMP_PACKET)))


def from_exiftool(tags: Mapping[str, Any]) -> OwnMetadata:
    """The metadata of what ExifTool's JSON says for `EXIFTOOL_TAGS`.

    ExifTool reads IPTC that does not name its charset as Latin; most of it is UTF-8.
    """
    found: Tags = {}
    for name, value in tags.items():
        values = [_as_text(item) for item in (value if isinstance(value, list) else [value])]
        utf8 = name.startswith("XMP-")
        found[name] = values if utf8 else [_mend(text, "cp1252") for text in values]
    return _choose(found)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value)


# ------------------------------------------------------------------------------------- choosing


def _choose(tags: Tags) -> OwnMetadata:
    caption = _first(tags, _CAPTION, _one_line)
    description = _first(tags, _DESCRIPTION, _lines)
    place = [_first(tags, names, _one_line) for names in _PLACE]
    return OwnMetadata(
        caption[:_LONGEST_CAPTION].strip() if caption else None,
        description[:_LONGEST_DESCRIPTION].strip() if description else None,
        _keywords(tags),
        ", ".join(dict.fromkeys(part for part in place if part))[:_LONGEST_CAPTION] or None,
    )


def _keywords(tags: Tags) -> list[str]:
    leaves = [path.rpartition("|")[2] for path in tags.get(_HIERARCHY, ())]
    found: dict[str, str] = {}
    for value in (*(v for name in _KEYWORDS for v in tags.get(name, ())), *leaves):
        if keyword := _one_line(value)[:_LONGEST_KEYWORD].strip():
            found.setdefault(keyword.casefold(), keyword)
    return list(found.values())[:_MOST_KEYWORDS]


def _first(tags: Tags, names: Iterable[str], clean: Callable[[str], str]) -> str | None:
    for name in names:
        for value in tags.get(name, ()):
            if (text := clean(value)) and not _says_nothing(text):
                return text
    return None


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


def _says_nothing(text: str) -> bool:
    return text.casefold() in _DEFAULTS or bool(_FILE_NAME.fullmatch(text))


def _one_line(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def _lines(text: str) -> str:
    lines = [_one_line(line) for line in text.splitlines()]
    return "\n".join(lines).strip()


# ------------------------------------------------------------------------------------------ XMP

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_CONTAINERS = (f"{_RDF}Bag", f"{_RDF}Seq", f"{_RDF}Alt")


def _element_name(tag: str) -> str:
    group, _, name = tag.partition(":")
    return f"{{{_NAMESPACES[group]}}}{_ELEMENTS.get(name, name)}"


_BY_ELEMENT = {_element_name(tag): tag for tag in _TAGS if tag.startswith("XMP")}


def _xmp(packet: object) -> Tags:
    """The fields of an XMP packet; {} if it is too large, not XML, or has a document type.

    XMP has none, and without one there are no entities to expand.
    """
    if isinstance(packet, str):
        packet = packet.encode(errors="replace")
    if not isinstance(packet, bytes) or not packet or len(packet) > _LARGEST_XMP:
        return {}
    try:
        text = packet.decode("utf-8-sig").strip("\0 \t\r\n")
        if "<!DOCTYPE" in text:
            return {}
        root = ElementTree.fromstring(text)
    except (UnicodeError, ElementTree.ParseError, ValueError):
        return {}
    tags: Tags = {}
    for rdf in root.iter(f"{_RDF}RDF"):
        for description in rdf.iterfind(f"{_RDF}Description"):  # not those inside of a value
            for name, value in description.attrib.items():
                if tag := _BY_ELEMENT.get(name):
                    tags.setdefault(tag, []).append(value)
            for element in description:
                if tag := _BY_ELEMENT.get(element.tag):
                    tags.setdefault(tag, []).extend(_values(element))
    return tags


def _values(element: ElementTree.Element) -> list[str]:
    for container in element:
        if container.tag in _CONTAINERS:
            items = container.findall(f"{_RDF}li")
            if container.tag.endswith("Alt"):
                items.sort(key=lambda item: item.get(_LANGUAGE) != "x-default")
            return [item.text or "" for item in items]
    return [element.text or ""]


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
            tags[tag] = [_decoded(item) for item in values if isinstance(item, bytes)]
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


def _decoded(value: bytes) -> str:
    """UTF-8 if it is (IIM can say so in 1:90, and often forgets to), else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _mend(text: str, read_as: str) -> str:
    """Text that was read as if it were Latin, as what it says if that is UTF-8."""
    try:
        return text.encode(read_as).decode()
    except UnicodeError:
        return text
