"""PhotoPrism before mid-2026: elements only, by local name; what XMP fills is the only source.

After internal/meta/xmp_document.go, with the caps of later versions: 1 MiB, 64 levels.
"""

import json
import subprocess
from pathlib import Path
from xml.sax import ContentHandler, parseString

from readers import Seen

LARGEST, DEEPEST = 1 << 20, 64
_PLACES = {
    "subject/Bag/li": "keywords",
    "subject/Seq/li": "keywords",
    "description/Alt/li": "description",
    "title/Alt/li": "title",
}


class TooMuchError(ValueError):
    """Larger or deeper than PhotoPrism reads."""


def see(photo: Path) -> Seen:
    """Embedded metadata, then each sidecar that shares the base name, field by field."""
    fields = _embedded(photo)
    for path in (photo.with_suffix(".xmp"), photo.with_name(f"{photo.name}.xmp")):
        if path.exists():
            fields |= read(path.read_bytes())
    first = {name: next(iter(fields.get(name, ())), "") for name in ("description", "title")}
    return Seen(tuple(fields.get("keywords", ())), first["description"], first["title"])


def read(content: bytes) -> dict[str, list[str]]:
    """The fields of a sidecar. Raises TooMuchError."""
    if len(content) > LARGEST:
        raise TooMuchError(f"{len(content)} bytes")
    document = _Document()
    parseString(content, document)
    return {name: values for name, values in document.fields.items() if any(values)}


class _Document(ContentHandler):
    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.fields: dict[str, list[str]] = {}
        self.text: list[str] | None = None

    def startElement(self, name, attrs):  # noqa: N802
        self.path.append(name.rpartition(":")[2])
        if len(self.path) > DEEPEST:
            raise TooMuchError(f"{len(self.path)} levels")
        if self.path[:3] == ["xmpmeta", "RDF", "Description"] and self._place():
            self.text = []

    def characters(self, content):
        if self.text is not None:
            self.text.append(content)

    def endElement(self, name):  # noqa: N802
        if self.text is not None:
            self.fields.setdefault(self._place(), []).append("".join(self.text))
            self.text = None
        self.path.pop()

    def _place(self) -> str | None:
        return _PLACES.get("/".join(self.path[3:]))


def _embedded(photo: Path) -> dict[str, list[str]]:
    names = {"Subject": "keywords", "Keywords": "keywords", "Description": "description"}
    names |= {"ImageDescription": "description", "Title": "title"}
    command = ["exiftool", "-config", "", "-m", "-json", photo]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    tags = json.loads(output, parse_int=str, parse_float=str)[0]
    fields: dict[str, list[str]] = {}
    for tag, name in names.items():
        value = tags.get(tag, [])
        fields.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return fields
