"""RDF/XML as XMP uses it, read into a form that does not depend on how it was written down.

The same property may be an attribute or an element, a structure `parseType='Resource'` or a nested
`rdf:Description`, a namespace have any prefix (XMP specification part 1, 7; RDF/XML syntax). All
of these give equal nodes:

* text is a `str`;
* anything else is a dict: the names of a structure's fields `{namespace}name`, `xml:lang`,
  `rdf:resource`, `#text` for the text of something that has more than a text, and `#Bag`, `#Seq`
  or `#Alt` with a list of nodes.

Lists without items are left out: writers differ about them.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

Node = Any  # str or dict[str, Node | list[Node]]

MAX_BYTES = 16 << 20
_MAX_DEPTH = 64

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_XML = "{http://www.w3.org/XML/1998/namespace}"
_DESCRIPTION = f"{_RDF}Description"
_PARSE_TYPE = f"{_RDF}parseType"
_LISTS = {f"{_RDF}{kind}": f"#{kind}" for kind in ("Bag", "Seq", "Alt")}
_VALUE = f"{_RDF}value"
_SHORT = {f"{_RDF}resource": "rdf:resource", f"{_XML}lang": "xml:lang"}
_IDENTITY = {f"{_RDF}{name}" for name in ("about", "ID", "nodeID")} | {"about", "ID"}

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_WITHOUT_BOM = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}


class NotXmpError(ValueError):
    """Bytes that are no XMP packet; the message is a short reason."""


def properties(content: bytes) -> Iterator[tuple[str, Node]]:
    """The properties of an XMP packet, `{namespace}name` and node, in the order they come in.

    Raises NotXmpError.
    """
    root = _parsed(content)
    blocks = [root] if root.tag == f"{_RDF}RDF" else list(root.iter(f"{_RDF}RDF"))
    if not blocks:
        raise NotXmpError("no rdf:RDF in it")
    for block in blocks:
        for description in block:
            if description.tag != _DESCRIPTION:  # a typed node, which XMP does not have
                yield description.tag, _node(description, 0) or ""
                continue
            for name, value in description.attrib.items():
                if name not in _IDENTITY:
                    yield _SHORT.get(name, name), _visible(value)
            for element in description:
                if (node := _node(element, 0)) is not None:
                    yield element.tag, node


def utf8(content: bytes) -> bytes:
    """The same packet in UTF-8, without byte order mark, encoding declaration and padding.

    Line ends are as an XML parser has them, so that no carriage return is left that is not one.

    Raises NotXmpError.
    """
    return _text(content).replace("\r\n", "\n").replace("\r", "\n").encode()


def items(node: Node) -> list[Node]:
    """The items of a list of any kind; of anything else, itself."""
    if isinstance(node, dict) and len(node) == 1:
        for kind in _LISTS.values():
            if kind in node:
                return node[kind]
    return [node]


def text_of(node: Node) -> str:
    """The text of a node, whatever else it has; "" if it has none."""
    if isinstance(node, str):
        return node
    text = node.get("#text") or node.get(_VALUE) or ""
    return text if isinstance(text, str) else text_of(text)


def texts(node: Node) -> list[str]:
    """The texts of a list's items, without empty ones."""
    return [text for item in items(node) if (text := text_of(item))]


def canonical(node: Node) -> str:
    """A node as text: equal nodes have equal texts."""
    return json.dumps(node, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def add(found: dict[str, Node], name: str, node: Node) -> None:
    """A second node of a name is kept too: it must not get lost unnoticed."""
    while name in found:
        name += "'"
    found[name] = node


def _parsed(content: bytes) -> ElementTree.Element:
    text = _text(content)
    if "<!DOCTYPE" in text:  # entities may grow without end, or name files
        raise NotXmpError("it has a document type declaration")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise NotXmpError(f"not XML ({error})") from None


def _text(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise NotXmpError(f"larger than {MAX_BYTES >> 20} MiB")
    encoding = next((e for bom, e in _BOMS.items() if content.startswith(bom)), None)
    encoding = encoding or _WITHOUT_BOM.get(content[:2]) or _declared(content)
    try:
        text = content.decode(encoding)
    except (ValueError, LookupError):  # also an encoding that nobody knows
        raise NotXmpError(f"not text in {encoding}") from None
    text = text.removeprefix("\ufeff").strip("\0 \t\r\n")
    if text.startswith("<?xml ") and "?>" in text:
        text = text.partition("?>")[2].lstrip()
    if not text:
        raise NotXmpError("empty")
    return text


def _declared(content: bytes) -> str:
    head = content[:200].lstrip()
    if head.startswith(b"<?xml ") and b"encoding=" in (declaration := head.partition(b"?>")[0]):
        quoted = declaration.partition(b"encoding=")[2]
        return quoted[1:].partition(quoted[:1])[0].decode("ascii", "replace") or "utf-8"
    return "utf-8"


def _node(element: ElementTree.Element, depth: int) -> Node | None:
    """The node of a property or list item; None for a list without items."""
    if not len(element) and not element.attrib:
        return _visible(element.text or "")
    if depth > _MAX_DEPTH:
        raise NotXmpError(f"nested more than {_MAX_DEPTH} deep")
    found: dict[str, Node] = {}
    for name, value in element.attrib.items():
        if name != _PARSE_TYPE or value != "Resource":
            add(found, _SHORT.get(name, name), _visible(value))
    text = element.text or ""
    no_items = False
    for child in element:
        text += child.tail or ""
        if kind := _LISTS.get(child.tag):
            items = [n for item in child if (n := _node(item, depth + 1)) is not None]
            no_items |= not items
            if items:
                add(found, kind, items)
        elif child.tag == _DESCRIPTION:
            fields = _node(child, depth + 1)
            for name, value in fields.items() if isinstance(fields, dict) else ():
                if name not in _IDENTITY:
                    add(found, name, value)
        elif (node := _node(child, depth + 1)) is not None:
            add(found, child.tag, node)
    text = _visible(text)
    if not found:
        return None if no_items and not text else text
    if text:
        add(found, "#text", text)
    return found


def _visible(text: str) -> str:
    """The text, or nothing if there are only blanks: these may be there to make the XML pretty."""
    return "" if text.isspace() else text
