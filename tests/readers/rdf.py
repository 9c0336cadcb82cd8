"""XMP read with a DOM and nothing else: RDF/XML as ISO 16684-1 describes it."""

import re
from pathlib import Path
from xml.dom import Node, minidom

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XML = "http://www.w3.org/XML/1998/namespace"
XMLNS = "http://www.w3.org/2000/xmlns/"
PREFIXES = {
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://ns.adobe.com/lightroom/1.0/": "lr",
    "http://www.digikam.org/ns/1.0/": "digiKam",
    "http://ns.adobe.com/tiff/1.0/": "tiff",
    "http://ns.adobe.com/photoshop/1.0/": "photoshop",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/camera-raw-settings/1.0/": "crs",
    "http://darktable.sf.net/": "darktable",
    "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/": "Iptc4xmpCore",
    "http://ns.microsoft.com/photo/1.0/": "MicrosoftPhoto",
    "http://ns.iview-multimedia.com/mediapro/1.0/": "mediapro",
    "http://ns.photo-tagger.org/xmp/1.0/": "phototagger",
}

# A text, a list, the texts by language of an Alt, or the fields of a structure
Value = str | list["Value"] | dict[str, "Value"]


def properties(content: bytes) -> dict[str, Value]:
    """Every property of a packet by its usual prefix and name, `dc:subject`."""
    document = minidom.parseString(content.strip(b"\0 \t\r\n"))
    found: dict[str, Value] = {}
    for rdf in document.getElementsByTagNameNS(RDF, "RDF"):
        for description in _children(rdf):
            found |= _fields(description)
    return found


def texts(value: Value | None) -> list[str]:
    """The texts of a simple property, of a list, or of an Alt with x-default first."""
    match value:
        case None:
            return []
        case str():
            return [value]
        case list():
            return [item for item in value if isinstance(item, str)]
    return [value[k] for k in sorted(value, key=lambda k: k != "x-default")]


def embedded(photo: Path) -> dict[str, Value]:
    """The properties of the XMP packet inside of a JPEG."""
    data = photo.read_bytes()
    mark = b"http://ns.adobe.com/xap/1.0/\0"
    start = data.find(mark)
    if start < 0:
        return {}
    length = int.from_bytes(data[start - 2 : start])
    return properties(data[start + len(mark) : start - 2 + length])


def _fields(element) -> dict[str, Value]:
    attributes = element.attributes or {}
    found: dict[str, Value] = {
        _name(a): a.value for a in attributes.values() if a.namespaceURI not in (RDF, XML, XMLNS)
    }
    return found | {_name(child): _value(child) for child in _children(element)}


def _value(element) -> Value:
    children = _children(element)
    resource = element.getAttributeNS(RDF, "parseType") == "Resource"
    if resource:
        return _fields(element)
    if not children:
        fields = _fields(element)
        return fields or element.getAttributeNS(RDF, "resource") or _text(element)
    (inner,) = children
    match inner.localName:
        case "Alt":
            items = _children(inner)
            return {item.getAttributeNS(XML, "lang") or "x-default": _text(item) for item in items}
        case "Bag" | "Seq":
            return [_value(item) for item in _children(inner)]
        case "Description":
            return _fields(inner)
    raise ValueError(f"{element.tagName}: {inner.tagName} inside")


def _children(element) -> list:
    return [child for child in element.childNodes if child.nodeType == Node.ELEMENT_NODE]


def _text(element) -> str:
    kinds = (Node.TEXT_NODE, Node.CDATA_SECTION_NODE)
    return "".join(child.data for child in element.childNodes if child.nodeType in kinds)


def _name(node) -> str:
    uri = node.namespaceURI
    return f"{PREFIXES.get(uri, re.sub('^[a-z]+:/*', '', uri or ''))}:{node.localName}"
