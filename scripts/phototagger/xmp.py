"""XMP: what a sidecar holds, read from its bytes, and written by ExifTool.

A packet has three parts. The values of `FIELDS`, which photo-tagger may write. The marks, which say
which of these values are photo-tagger's. And the rest, which is kept whatever it is.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from phototagger import marks as marking
from phototagger import rdf
from phototagger.exiftool import (
    ExifToolCrashError,
    assignment,
    complaints_by_file,
    run_batch,
    temporary_folder,
)
from phototagger.fields import FIELDS, KEYWORD_LISTS, Field, Values
from phototagger.marks import KeywordMark, Marks, ModelMark, text_digest
from phototagger.mirrors import mirrored
from phototagger.rdf import NotXmpError

__all__ = [
    "CHUNK",
    "CREATOR",
    "FIELDS",
    "KEYWORD_LISTS",
    "RECIPE",
    "Field",
    "Item",
    "KeywordMark",
    "Marks",
    "ModelMark",
    "NotXmpError",
    "Packet",
    "Values",
    "WriteFailure",
    "clean_level",
    "clean_text",
    "parse",
    "text_digest",
    "write_all",
    "write_xmp",
]

RECIPE = 3  # raise it when the same values shall give other bytes
CREATOR = "photo-tagger"
CHUNK = 256  # most items of one `write_xmp`
_FEWEST = 32  # items for which another process pays: ExifTool's start takes as long as that many

# What XML 1.0 cannot hold, and the control characters that no application shows.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LEVEL_SEPARATORS = re.compile("[|/]")
_WORD_SEPARATORS = re.compile("[,;]")  # of keyword fields in photo programs
_LEVEL_BYTES = 64  # IPTC-IIM 2:25, where keywords end up when they are embedded
_DEFAULT = "x-default"


@dataclass(frozen=True)
class Packet:
    """What an XMP packet holds."""

    values: Values = field(default_factory=dict)  # of an Alt: x-default's text, else the first
    marks: Marks = field(default_factory=Marks)
    # tag -> language -> text: the texts of an Alt in other languages than x-default
    languages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # every other property: `{namespace}element` -> canonical text, independent of serialisation
    rest: Mapping[str, str] = field(default_factory=dict)

    @property
    def theirs(self) -> Values:
        """The values that are neither photo-tagger's nor copies of its keywords."""
        found: Values = {}
        mirrors = self.mirrored
        for tag, items in self.values.items():
            ours = {*self.marks.written.get(tag, ()), *mirrors.get(tag, ())}
            digest = self.marks.digests.get(tag)
            kept = [i for i in items if i not in ours and (not digest or text_digest(i) != digest)]
            if kept:
                found[tag] = kept
        return found

    @property
    def mirrored(self) -> Values:
        """The keywords that another program copied from photo-tagger's."""
        return mirrored(self.values, self.marks)

    @property
    def is_empty(self) -> bool:
        return not (self.values or self.languages or self.rest) and self.marks == Marks()


# ------------------------------------------------------------------------------------ our texts


def clean_level(text: str) -> str:
    """One level of a keyword of ours: a single line, at most 64 bytes of UTF-8, no separators."""
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", text))
    text = _WORD_SEPARATORS.sub(" ", _LEVEL_SEPARATORS.sub("-", text))
    text = " ".join(text.split())
    return text.encode()[:_LEVEL_BYTES].decode(errors="ignore").strip()


def clean_text(text: str) -> str:
    """A text of ours: NFC, no control characters, no blanks at the ends of its lines."""
    lines = unicodedata.normalize("NFC", _CONTROLS.sub("", text)).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


# -------------------------------------------------------------------------------------- reading

_BY_NAME = {f.name: f for f in FIELDS}
# As ExifTool itself spells the namespace.
_BY_NAME |= {f.name.replace("/1.0/}Last", "/1.0}Last"): f for f in FIELDS}


def parse(content: bytes) -> Packet:
    """What the bytes of a sidecar, or of an XMP packet, hold.

    Raises NotXmpError.
    """
    values: Values = {}
    languages: dict[str, dict[str, str]] = {}
    marks: dict[str, rdf.Node] = {}
    rest: dict[str, rdf.Node] = {}
    for name, node in rdf.properties(content):
        if mark := marking.ELEMENTS.get(name):
            marks[mark] = node
            continue
        known = _BY_NAME.get(name)
        if known is None or known.tag in values:
            rdf.add(rest, name, node)
            if known is not None and known.tag in KEYWORD_LISTS:  # there twice: both count
                values[known.tag] += rdf.texts(node)
            continue
        if known.tag in KEYWORD_LISTS:
            values[known.tag] = rdf.texts(node)
            odd = [item for item in rdf.items(node) if not isinstance(item, str)]
        else:
            texts, odd = _by_language(node)
            default = texts.pop(_DEFAULT, None)
            values[known.tag] = [default or next(iter(texts.values()), "")]
            languages[known.tag] = texts
        if odd:  # items with more than a text, which would be lost if the field was written
            rdf.add(rest, name, {"#odd": odd})
    return Packet(
        {f.tag: values[f.tag] for f in FIELDS if any(values.get(f.tag, ()))},
        marking.read(marks),
        {tag: texts for tag, texts in sorted(languages.items()) if texts},
        {name: rdf.canonical(rest[name]) for name in sorted(rest)},
    )


def _by_language(node: rdf.Node) -> tuple[dict[str, str], list[rdf.Node]]:
    """Language -> text, without empty ones, and the items that are more than that."""
    found: dict[str, str] = {}
    odd = []
    for item in rdf.items(node):
        language = _DEFAULT
        if isinstance(item, dict):
            language = item.get("xml:lang", _DEFAULT)
            if not item.keys() <= {"xml:lang", "#text"}:
                odd.append(item)
        if text := rdf.text_of(item):
            rdf.add(found, language, text)
    return found, odd


# -------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Item:
    """One sidecar to be written."""

    name: str  # of the photo, for messages
    base: bytes | None  # the sidecar as it is; None: there is none
    values: Values
    marks: Marks
    packet: Packet | None = None  # what the base holds, if somebody has parsed it already


@dataclass(frozen=True)
class WriteFailure:
    """A sidecar that could not be written without loss."""

    message: str


def changed(base: Packet, values: Values, marks: Marks) -> Packet:
    """A packet with exactly these values and marks, and everything else of `base`."""
    given = {tag: [t for t in texts if t.strip()] for tag, texts in values.items()}
    # Other languages than x-default are a person's: they stay, and show where it goes.
    kept = {tag: [next(iter(texts.values()))] for tag, texts in base.languages.items()}
    kept |= {tag: texts for tag, texts in given.items() if texts}
    return Packet(kept, marks.normal(), base.languages, base.rest)


def assignments(base: Packet, wanted: Packet) -> Iterator[str]:
    """ExifTool's arguments that make `base` what is wanted: only what differs is touched."""
    before, after = base.values, wanted.values
    for tag in [t for t in before if t not in after] + list(after):
        if before.get(tag) != after.get(tag):
            yield _assignment(tag, after.get(tag, []), base.languages.get(tag))
    before, after = marking.tags(base.marks), marking.tags(wanted.marks)
    for tag in [t for t in before if t not in after] + list(after):
        if before.get(tag) != after.get(tag):
            yield assignment(tag, after.get(tag, ""))


def _assignment(tag: str, texts: list[str], languages: Mapping[str, str] | None) -> str:
    if not languages:
        return assignment(tag, texts)
    if texts == [next(iter(languages.values()))]:
        texts = []  # without x-default, this is what programs show
    return assignment(f"{tag}-{_DEFAULT}", texts)


@dataclass(frozen=True)
class _Job:
    item: Item
    base: Packet
    wanted: Packet  # what has to be read back

    @classmethod
    def of(cls, item: Item) -> "_Job":
        """Raises NotXmpError if the item's base is none."""
        base = Packet()
        if item.base is not None:
            base = item.packet or parse(item.base)
        wanted = changed(base, item.values, item.marks)
        return cls(item, base, wanted)

    def arguments(self, path: str) -> Iterator[str]:
        yield from assignments(self.base, self.wanted)
        if self.item.base is not None:
            yield "-overwrite_original"
        yield path

    def outcome(self, content: bytes | None, complaint: str) -> bytes | WriteFailure:
        """`content` if it holds exactly what is wanted, else what is wrong with it."""
        if content is None or complaint.startswith("Error"):
            return self._failure(complaint or "ExifTool wrote nothing")
        try:
            found = parse(content)
        except NotXmpError as error:
            return self._failure(f"what ExifTool wrote cannot be read: {error}")
        if lost := _difference(self.wanted, found):
            about = f" ({complaint})" if complaint else ""
            return self._failure(f"ExifTool would not keep {lost}{about}")
        return content

    def _failure(self, reason: str) -> WriteFailure:
        return WriteFailure(f"{self.item.name}: its sidecar cannot be written: {reason}")


def _difference(wanted: Packet, found: Packet) -> str:
    """The name of something that is not in `found` as wanted; "" if all is."""
    for part in ("values", "languages", "rest"):
        before, after = getattr(wanted, part), getattr(found, part)
        for name in [*before, *after]:
            if before.get(name) != after.get(name):
                return name
    return "" if wanted.marks == found.marks else "photo-tagger's own marks"


def write_all(items: Sequence[Item], processes: int = 1) -> Iterator[bytes | WriteFailure]:
    """`write_xmp` for any number of items, in their order, with ExifTool processes side by side.

    Raises UserError like `write_xmp`.
    """
    share = -(-len(items) // processes)
    size = min(CHUNK, max(_FEWEST, share))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if len(chunks) < 2 or processes < 2:
        for chunk in chunks:
            yield from write_xmp(chunk)
        return
    with ThreadPoolExecutor(processes) as pool:
        for results in pool.map(write_xmp, chunks):
            yield from results


def write_xmp(items: Sequence[Item]) -> list[bytes | WriteFailure]:
    """The bytes of the sidecar of each item, at most `CHUNK`, written by one ExifTool process.

    Fields of `FIELDS` that an item has no values of are removed from its base; texts in other
    languages than x-default, and everything else in the base, are kept, or the item fails. Equal
    items give equal bytes, whatever is written with them: there are no dates, names or identifiers
    of this machine in them.

    Raises UserError if ExifTool is missing or does not work.
    """
    results: dict[int, bytes | WriteFailure] = {}
    jobs: dict[int, _Job] = {}
    for number, item in enumerate(items):
        try:
            jobs[number] = job = _Job.of(item)
        except NotXmpError as error:
            results[number] = WriteFailure(f"{item.name}: its sidecar is not XMP: {error}")
            continue
        if not _difference(job.wanted, job.base):
            nothing = WriteFailure(f"{item.name}: there is nothing to write in a sidecar")
            results[number] = nothing if item.base is None else item.base
    todo = {number: job for number, job in jobs.items() if number not in results}
    results |= _written(todo)
    return [results[number] for number in range(len(items))]


def _written(jobs: Mapping[int, _Job]) -> dict[int, bytes | WriteFailure]:
    if not jobs:
        return {}
    try:
        return _run(jobs)
    except ExifToolCrashError as error:
        if len(jobs) > 1:  # one of them is to blame
            numbers = list(jobs)
            halves = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
            first, second = (_written({n: jobs[n] for n in half}) for half in halves)
            return first | second
        ((number, job),) = jobs.items()
        if job.item.base is None:
            raise
        return {number: WriteFailure(f"{job.item.name}: {error}")}


def _run(jobs: Mapping[int, _Job]) -> dict[int, bytes | WriteFailure]:
    with temporary_folder() as folder:
        for number, job in jobs.items():
            if job.item.base is not None:
                (folder / f"{number}.xmp").write_bytes(rdf.utf8(job.item.base))
        output = run_batch((job.arguments(f"{n}.xmp") for n, job in jobs.items()), folder)
        complaints = complaints_by_file(output)
        results = {}
        for number, job in jobs.items():
            path = folder / f"{number}.xmp"
            # ExifTool writes a carriage return as it is, which an XML parser takes for a line feed
            content = path.read_bytes().replace(b"\r", b"&#13;") if path.exists() else None
            results[number] = job.outcome(content, complaints.get(path.name, ""))
    return results
