"""Sidecars in XMP: which of a record's values go into which field, and how they are written.

One line of `FIELDS` is one field. Photo software reads the first of its own list of fields that is
not empty and ignores the rest, so every keyword has to be in each of the three keyword fields:
digiKam and Immich look at `digiKam:TagsList` only, Lightroom and darktable at
`lr:hierarchicalSubject` and `dc:subject`, PhotoPrism at `dc:subject`.

Ratings, labels, dates and positions are never written: they are the photographer's.
"""

import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from phototagger.errors import UserError

Record = Mapping[str, Any]
Values = dict[str, list[str]]  # tag as ExifTool calls it -> values in order

RECIPE = 1  # raise it when the same values shall give other bytes
CREATOR = "photo-tagger"

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
# What XML 1.0 cannot hold, and the control characters that no application shows.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LIST_SEPARATOR = "\x1f"  # a control character, so it is in no value
# ExifTool stops with one of these two even when a file failed; anything else is a crash.
_ORDINARY_EXITS = (0, 1)


# -------------------------------------------------------------------------------------- values


def keyword_levels(record: Record) -> list[list[str]]:
    """Every keyword of a record as its path of levels, from the top to the keyword itself.

    Bars and slashes separate the levels in the sidecar, so inside a level they become hyphens.
    """
    keywords = record.get("keywords") or []
    paths = ([_level(part) for part in k.get("path") or [k["keyword"]]] for k in keywords)
    return [levels for path in paths if (levels := [level for level in path if level])]


def flat_keywords(record: Record) -> list[str]:
    """Every level of every keyword, each followed by its keyword's synonyms."""
    flat: list[str] = []
    for keyword in record.get("keywords") or []:
        flat += keyword.get("path") or [keyword["keyword"]]
        flat += keyword.get("synonyms") or []
    return [level for text in flat if (level := _level(text))]


def _is_news(keyword: Mapping[str, Any]) -> bool:
    """Whether a keyword says more than the photo's own metadata does."""
    path = keyword.get("path") or [keyword["keyword"]]
    return keyword.get("source") != "person" or len(path) > 1 or bool(keyword.get("synonyms"))


def _joined_paths(separator: str) -> Callable[[Record], list[str]]:
    return lambda record: [separator.join(path) for path in keyword_levels(record)]


def _tags_list(record: Record) -> list[str]:
    """Full paths, then the flat keywords that are no level of one of them (synonyms)."""
    paths = keyword_levels(record)
    levels = {level for path in paths for level in path}
    flat = [keyword for keyword in flat_keywords(record) if keyword not in levels]
    return ["/".join(path) for path in paths] + flat


def _text(key: str) -> Callable[[Record], list[str]]:
    def values(record: Record) -> list[str]:
        text = record.get(key)
        lines = _CONTROLS.sub("", text if isinstance(text, str) else "").splitlines()
        text = "\n".join(line.rstrip() for line in lines).strip()
        return [text] if text else []

    return values


def _caption_writer(record: Record) -> list[str]:
    return [CREATOR] if any(_text(key)(record) for key in ("caption", "description")) else []


def _level(text: str) -> str:
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", text))
    return " ".join(text.replace("|", "-").replace("/", "-").split())


@dataclass(frozen=True)
class Field:
    """One XMP field: ExifTool's tag, its element, its container, and where its values come from."""

    tag: str
    namespace: str
    element: str
    container: str | None  # Bag, Seq or Alt; None = plain text
    values: Callable[[Record], list[str]]

    @property
    def name(self) -> str:
        return f"{{{self.namespace}}}{self.element}"


_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"
_DIGIKAM = "http://www.digikam.org/ns/1.0/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"

FIELDS = (
    Field("XMP-dc:Subject", _DC, "subject", "Bag", flat_keywords),
    Field("XMP-lr:HierarchicalSubject", _LR, "hierarchicalSubject", "Bag", _joined_paths("|")),
    Field("XMP-digiKam:TagsList", _DIGIKAM, "TagsList", "Seq", _tags_list),
    Field("XMP-dc:Description", _DC, "description", "Alt", _text("description")),
    Field("XMP-tiff:ImageDescription", _TIFF, "ImageDescription", "Alt", _text("description")),
    Field("XMP-photoshop:Headline", _PHOTOSHOP, "Headline", None, _text("caption")),
    Field("XMP-photoshop:CaptionWriter", _PHOTOSHOP, "CaptionWriter", None, _caption_writer),
)


def sidecar_values(record: Record) -> Values:
    """What the sidecar of a record holds: tag -> values, in record order, without duplicates.

    Empty when there is nothing to write: also when there are no texts, and every keyword is one
    that the photo itself has already.
    """
    texts = any(_text(key)(record) for key in ("caption", "description"))
    if not texts and not any(_is_news(keyword) for keyword in record.get("keywords") or []):
        return {}
    values = {field.tag: list(dict.fromkeys(field.values(record))) for field in FIELDS}
    return {tag: items for tag, items in values.items() if items}


def parse_xmp(content: bytes) -> Values:
    """The values of `FIELDS` in a sidecar's bytes.

    Raises ElementTree.ParseError if it is not XML.
    """
    by_name = {field.name: field for field in FIELDS}
    found: Values = {}
    for description in ElementTree.fromstring(content).iter(f"{_RDF}Description"):
        for element in description:
            if field := by_name.get(element.tag):
                found[field.tag] = _element_values(element, field.container)
    return {field.tag: found[field.tag] for field in FIELDS if field.tag in found}


def _element_values(element: ElementTree.Element, container: str | None) -> list[str]:
    if container is None:
        return [element.text or ""]
    return [item.text or "" for item in element.iterfind(f"{_RDF}{container}/{_RDF}li")]


# ------------------------------------------------------------------------------------- ExifTool


def find_exiftool() -> str:
    """The path of the ExifTool executable; UserError if there is none."""
    if found := shutil.which("exiftool"):
        return found
    raise UserError(
        "exiftool: not found on the PATH; install it "
        "(apt install libimage-exiftool-perl, brew install exiftool, or exiftool.org)"
    )


def assignments(values: Values) -> Iterator[str]:
    """Lines of an ExifTool argument file, for `run_exiftool`, that set `values`.

    A list is one line, which ExifTool handles twice as fast as a line per item.
    """
    for tag, items in values.items():
        text = _LIST_SEPARATOR.join(items)
        escaped = text.replace("&", "&amp;").replace("\n", "&#10;").replace("\r", "&#13;")
        yield f"-{tag}={escaped}"


def run_exiftool(commands: Iterable[Iterable[str]], folder: Path) -> str:
    """Run many ExifTool commands in one process, with `folder` as current directory.

    Values are HTML-escaped (`-E`), since a line of an argument file cannot hold a line break. The
    user's ExifTool configuration is left out. Returns what ExifTool had to complain about.

    Raises UserError if ExifTool is missing or crashed.
    """
    executable = find_exiftool()
    lines = "\n-execute\n".join("\n".join(command) for command in commands)
    (folder / "arguments").write_bytes(lines.encode() + b"\n")
    process = subprocess.run(
        [
            *(executable, "-config", "", "-@", "arguments"),
            *("-common_args", "-E", "-sep", _LIST_SEPARATOR, "-charset", "utf8"),
        ],
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},  # otherwise perl complains about missing locales
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    complaints = process.stderr.decode("utf-8", "replace").strip()
    if process.returncode not in _ORDINARY_EXITS:
        last = complaints.splitlines()[-1:] or ["it left no message"]
        how = f"signal {-process.returncode}" if process.returncode < 0 else process.returncode
        raise UserError(f"exiftool: ended abnormally ({how}; {last[0]}); run the same again")
    return complaints


def write_xmp(photos: Sequence[tuple[str, Values]]) -> list[bytes]:
    """The bytes of one sidecar per photo, written by one ExifTool process and read back.

    `photos` holds the name of the photo, for messages, and its values. Equal values give equal
    bytes: there are no dates, names or identifiers in them.

    Raises UserError naming the photo if one of its values is not in the sidecar.
    """
    with tempfile.TemporaryDirectory(prefix="sidecars-") as temporary:
        folder = Path(temporary)
        complaints = run_exiftool(
            ([*assignments(values), f"{n}.xmp"] for n, (_, values) in enumerate(photos)), folder
        )
        contents = []
        for number, (name, values) in enumerate(photos):
            path = folder / f"{number}.xmp"
            content = path.read_bytes() if path.exists() else b""
            if not holds(content, values):
                about = [c for c in complaints.splitlines() if c.endswith(f" {path.name}")]
                reason = about[0] if about else "a value was not written as given"
                raise UserError(f"{name}: the sidecar could not be written ({reason})")
            contents.append(content)
    return contents


def holds(content: bytes, values: Values) -> bool:
    """Whether a sidecar's bytes hold exactly `values`."""
    try:
        return parse_xmp(content) == values
    except ElementTree.ParseError:
        return False
