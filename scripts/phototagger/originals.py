"""Embedding: metadata written into JPEG and TIFF files themselves.

The rules are those of the Metadata Working Group (Guidelines for handling image metadata 2.0). XMP
has everything; EXIF's description and, in photos that have such a block, IPTC-IIM have copies, and
a digest of the IPTC block says that they agree. ExifTool's `MWG:` tags follow the rules, but leave
a digest that did not match as it was, and convert no text that is there when a character set is
declared. So the block is rebuilt here (see `iptc`), and ExifTool puts it in place.

The new photo is a file of its own; the old one is only read. It counts as written if, read back, it
has the wanted values, and the same of everything else: pictures byte for byte (see `containers`),
and each tag that ExifTool knows.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phototagger import containers, iptc, own_metadata, xmp
from phototagger.containers import Contents
from phototagger.exiftool import (
    CONFIG,
    LIST_SEPARATOR,
    ExifTool,
    ExifToolMissingError,
    assignment,
)
from phototagger.fields import DESCRIPTION, IMAGE_DESCRIPTION, SUBJECT
from phototagger.xmp import KEYWORD_LISTS, Marks, NotXmpError, Packet, Values, text_digest

EMBEDS = (".jpg", ".jpeg", ".tif", ".tiff")

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}
_TWIN = {DESCRIPTION: IMAGE_DESCRIPTION}  # whose text stands in for a field that is off
_EXIF_DESCRIPTION = "IFD0:ImageDescription"
_CAPTION = "IPTC:Caption-Abstract"
# Written by whoever splits a packet, to find its other half
_EXTENDED = "{http://ns.adobe.com/xmp/note/}HasExtendedXMP"


class NotEmbeddableError(ValueError):
    """A photo that nothing can be embedded in; the message is a short reason."""


@dataclass(frozen=True)
class Embedding:
    """One photo, and what it shall say. `current` is what it said when that was decided."""

    photo: Path
    temporary: Path  # the new photo; must not exist yet
    values: Values
    marks: Marks
    current: Packet


# -------------------------------------------------------------------------------------- reading


def current(photo: Path) -> Packet:
    """The XMP in a photo, with what only its IPTC and EXIF have.

    Keywords are united. A person's text in EXIF or IPTC takes the place of one that is missing in
    XMP, or is photo-tagger's there. Copies of photo-tagger's own values, which a photo has in IPTC
    and EXIF after embedding, and what cameras write of their own accord, count for nothing.

    Raises OSError, NotXmpError, and NotEmbeddableError for other and damaged files.
    """
    contents = _contents(photo)
    return _joined(_packet(contents), contents)


def _contents(path: Path, *, pictures: bool = False) -> Contents:
    try:
        return containers.read(path, pictures=pictures)
    except containers.NotReadableError as error:
        raise NotEmbeddableError(str(error)) from error


def _packet(contents: Contents) -> Packet:
    """Raises NotXmpError."""
    found = Packet()
    for content in contents.xmp:
        if not content.strip(b"\0 \t\r\n"):
            continue
        part = xmp.parse(content)
        found = Packet(
            found.values | part.values,
            part.marks if found.marks == Marks() else found.marks,
            {**found.languages, **part.languages},
            {**found.rest, **part.rest},
        )
    return replace(found, rest={k: v for k, v in found.rest.items() if k != _EXTENDED})


def _joined(packet: Packet, contents: Contents) -> Packet:
    """A packet with what persons say in IPTC and EXIF only."""
    values, theirs = dict(packet.values), packet.theirs
    for tag, items in own_metadata.joined(_copies(contents), packet).embedded.items():
        if tag in KEYWORD_LISTS:
            values[tag] = list(dict.fromkeys([*values.get(tag, ()), *items]))
        elif tag not in theirs:
            values[tag] = items
    return replace(packet, values={f.tag: values[f.tag] for f in xmp.FIELDS if f.tag in values})


def _copies(contents: Contents) -> dict[str, list[str]]:
    """What EXIF and IPTC say, by the names that ExifTool has for it."""
    try:
        datasets = iptc.parse(contents.iptc or b"")
    except iptc.NotIptcError:
        datasets = []
    found = {name: iptc.texts(datasets, number) for name, number in iptc.NAMES.items()}
    found[_EXIF_DESCRIPTION] = [iptc.decoded(contents.description or b"")]
    return {name: texts for name, texts in found.items() if any(texts)}


def _known(values: Values, marks: Marks) -> set[str]:
    """Keywords, as they are and as IPTC can hold them."""
    keywords = [*values.get(SUBJECT, ()), *marks.written.get(SUBJECT, ())]
    return {_plain(text) for each in keywords for text in (each, _iptc_text(SUBJECT, each))}


def _exif_text(contents: Contents) -> str:
    return xmp.clean_text(iptc.decoded(contents.description or b""))


def _says_something(text: str) -> bool:
    plain = _plain(text)
    return bool(plain) and not own_metadata.says_nothing(plain)


def _is_copy(text: str, tag: str, packet: Packet) -> bool:
    """Whether a text in EXIF or IPTC is (the beginning of) what XMP says, or photo-tagger's."""
    tags = (tag, _TWIN[tag]) if tag in _TWIN else (tag,)
    if text_digest(text) in [packet.marks.digests.get(each) for each in tags]:
        return True
    said = [each for name in tags for each in packet.values.get(name, ())]
    return any(_plain(text) in (_plain(t), _plain(_iptc_text(tag, t))) for t in said)


def _iptc_text(tag: str, text: str) -> str:
    """A text as IPTC can hold it: cut, and lines only in captions."""
    kept = text if tag == DESCRIPTION else " ".join(text.split())
    return iptc.cut(kept, iptc.COPIES[tag][1])


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


# -------------------------------------------------------------------------------------- writing


def write(items: Sequence[Embedding], *, iptc: str) -> list[str | None]:
    """Write the new photo of each item to `temporary`; None, or why it was not (then it is gone).

    `iptc` is `present` (copies in IPTC for photos that have a block), `always` or `never` (a block
    that is there stays as it is). One ExifTool process for all. Modes, times and attributes are the
    caller's business.

    Raises ExifToolMissingError.
    """
    results: list[str | None] = []
    with ExifTool(CONFIG) as exiftool:
        for item in items:
            results.append(_attempt(exiftool, item, iptc))
    return results


def _attempt(exiftool: ExifTool, item: Embedding, mode: str) -> str | None:
    try:
        _embed(exiftool, item, mode)
    except ExifToolMissingError:
        raise
    except NotXmpError as error:
        reason = f"its embedded XMP cannot be read: {error}"
    except iptc.NotIptcError as error:
        reason = f"{error}; with metadata.iptc: never it is left alone"
    except NotEmbeddableError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except Exception as error:  # ExifTool's process died; the next photo gets a new one
        exiftool.close()
        reason = f"ExifTool failed ({type(error).__name__})"
    else:
        return None
    item.temporary.unlink(missing_ok=True)
    return reason


@dataclass
class _Plan:
    """What ExifTool is told, and what has to be read back."""

    packet: Packet
    arguments: list[str]
    description: bytes | None
    iptc: bytes | None
    iptc_digest: bytes | None
    files: dict[str, bytes] = field(default_factory=dict)  # option -> bytes ExifTool reads


def _embed(exiftool: ExifTool, item: Embedding, mode: str) -> None:
    before = _contents(item.photo, pictures=True)
    plan = _plan(item, before, mode)
    suffix = _SUFFIXES[before.kind]
    with (
        tempfile.TemporaryDirectory(prefix="photo-tagger-") as folder,
        exiftool.link(item.photo, suffix) as old,
        exiftool.link(item.temporary, suffix) as new,
    ):
        surveyed = _survey(exiftool, old)
        arguments = list(plan.arguments)
        for number, (option, content) in enumerate(plan.files.items()):
            (Path(folder) / str(number)).write_bytes(content)
            arguments.append(f"-{option}<={folder}/{number}")
        options = ("-E", "-sep", LIST_SEPARATOR, "-charset", "utf8", "-charset", "exif=utf8")
        exiftool.execute(*options, *arguments, "-o", str(new), str(old))
        complaint = _complaint(exiftool.last_error)
        if complaint or not item.temporary.exists():
            if shutil.disk_usage(item.temporary.parent).free < item.photo.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise NotEmbeddableError(complaint or "ExifTool wrote nothing")
        _verify(item, before, plan)
        if lost := _first_difference(surveyed, _survey(exiftool, new)):
            raise NotEmbeddableError(f"ExifTool would not keep {lost}")


def _verify(item: Embedding, before: Contents, plan: _Plan) -> None:
    """Raises NotEmbeddableError unless the new photo is the old one with what was planned."""
    try:
        after = containers.read(item.temporary, pictures=True)
        packet = _packet(after)
    except ValueError as error:
        raise NotEmbeddableError(f"what ExifTool wrote cannot be read: {error}") from error
    same = {
        "the pictures": after.pictures == before.pictures,
        "Photoshop's image resources": after.other_resources == before.other_resources,
        "the IPTC block": (after.iptc or b"").rstrip(b"\0") == (plan.iptc or b"").rstrip(b"\0"),
        "the digest of the IPTC block": after.iptc_digest == plan.iptc_digest,
        "EXIF's description": (after.description or None) == (plan.description or None),
    }
    for part in ("values", "marks", "languages", "rest"):
        same[f"the XMP ({part})"] = getattr(packet, part) == getattr(plan.packet, part)
    if wrong := [what for what, is_same in same.items() if not is_same]:
        raise NotEmbeddableError(f"ExifTool would not write as wanted: {', '.join(wrong)}")


def _complaint(errors: str) -> str:
    """ExifTool's first error, without the name of the link."""
    lines = [line for line in errors.splitlines() if line.startswith("Error")]
    return lines[0].removeprefix("Error: ").partition(" - /")[0] if lines else ""


# ------------------------------------------------------------------------------------- deciding


def _plan(item: Embedding, contents: Contents, mode: str) -> _Plan:
    packet = _packet(contents)
    wanted = xmp.changed(packet, item.values, item.marks)
    plan = _Plan(
        packet=wanted,
        arguments=list(xmp.assignments(packet, wanted)),
        description=contents.description,
        iptc=contents.iptc,
        iptc_digest=contents.iptc_digest,
    )
    text, old = _wanted_text(item.values, DESCRIPTION), _exif_text(contents)
    # Readers prefer EXIF's: where it has none, a person's other words in IPTC would be hidden.
    others = [old] if contents.description else _copies(contents).get(_CAPTION, [])
    free = all(_may_replace(other, DESCRIPTION, item, packet) for other in others)
    if free and old != text and (text or _says_something(old)):
        plan.description = text.encode()
        plan.arguments.append(assignment(_EXIF_DESCRIPTION, text))
    if mode == "always" or (mode == "present" and contents.iptc is not None):
        _plan_iptc(plan, item, contents, packet)
    return plan


def _plan_iptc(plan: _Plan, item: Embedding, contents: Contents, packet: Packet) -> None:
    datasets = iptc.parse(contents.iptc or b"")
    found = {number: iptc.texts(datasets, number) for number, _ in iptc.COPIES.values()}
    wanted: dict[int, list[str]] = {}
    at_odds = False  # a person says one thing in XMP and another in IPTC
    for tag, (number, _) in iptc.COPIES.items():
        if tag == SUBJECT:
            wanted[number] = _wanted_keywords(item, packet, found[number])
            continue
        text = _iptc_text(tag, _wanted_text(item.values, tag))
        if all(_may_replace(old, tag, item, packet) for old in found[number]):
            wanted[number] = [text] if text else []
        else:
            at_odds = at_odds or found[number][0] != text
            wanted[number] = found[number]
    stored = contents.iptc_digest
    stale = stored is not None and stored != hashlib.md5(contents.iptc or b"").digest()
    if wanted == found and not (stale and not at_odds):
        return
    block = iptc.build(iptc.replaced(datasets, wanted))
    if contents.kind == "TIFF":
        block += bytes(-len(block) % 4)  # as ExifTool and readers of the digest have it
    plan.iptc = block
    plan.files["IPTC"] = block
    if not (stale and at_odds):
        # With the old digest of another block, readers go on preferring IPTC, as they did before.
        plan.iptc_digest = hashlib.md5(block).digest()
        plan.arguments.append(f"-Photoshop:IPTCDigest={plan.iptc_digest.hex()}")


def _wanted_text(values: Values, tag: str) -> str:
    texts = values.get(tag) or values.get(_TWIN.get(tag, "")) or [""]
    return texts[0]


def _wanted_keywords(item: Embedding, packet: Packet, found: Iterable[str]) -> list[str]:
    """Those of XMP, cut; and what IPTC has that nobody knew of when it was decided."""
    wanted = [_iptc_text(SUBJECT, keyword) for keyword in item.values.get(SUBJECT, ())]
    known = _known(item.values, item.marks)
    known |= _known(item.current.values, item.current.marks) | _known(packet.values, packet.marks)
    wanted += [keyword for keyword in found if _plain(keyword) not in known]
    return [keyword for keyword in dict.fromkeys(wanted) if keyword]


def _may_replace(old: str, tag: str, item: Embedding, packet: Packet) -> bool:
    """Whether a text in EXIF or IPTC is no person's, or one that has been dealt with in XMP."""
    if not _says_something(old):
        return True
    asked = tag in item.current.theirs and text_digest(
        _wanted_text(item.values, tag)
    ) == item.marks.digests.get(tag)
    new = Packet(item.values, item.marks)
    return asked or any(_is_copy(old, tag, each) for each in (packet, item.current, new))


# ------------------------------------------------------------------------------------ surveying

_LEFT_OUT = ("System", "File", "ExifTool", "XMP", "IPTC", "Photoshop", "Composite")
# What comes and goes with an EXIF block that holds nothing but our description (EXIF 2.32)
_OBLIGATORY = {
    f"IFD0:{name}"
    for name in ("XResolution", "YResolution", "ResolutionUnit", "YCbCrPositioning", "ExifVersion")
}
_COPY = re.compile(r":Copy\d+:")
_PLACES = re.compile(r"(Offsets?|Start|Pointer|OffsetSchema)$")  # where in the file something is


def _survey(exiftool: ExifTool, link: Path) -> dict[str, list[Any]]:
    """Every tag that ExifTool knows and none of the other checks covers: `group:tag` -> values.

    Binary ones too. A version of ExifTool that has `ImageDataHash` is asked for that as well.
    """
    options = ("-a", "-u", "-b", "-e", "-G1:4", "-all", "-ImageDataHash", "--XMP:all")
    tags = exiftool.tags(link, *options)
    if not tags:
        raise NotEmbeddableError("ExifTool cannot read it")
    found: dict[str, list[Any]] = {}
    for numbered, value in tags.items():
        name = _COPY.sub(":", numbered)
        group, _, tag = name.partition(":")
        left_out = name == _EXIF_DESCRIPTION or group.partition("-")[0] in _LEFT_OUT
        if tag == "ImageDataHash" or not (left_out or _PLACES.search(tag)):
            found.setdefault(name, []).append(value)
    return found


def _first_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    for name in sorted(before.keys() | after.keys()):
        in_one = name not in before or name not in after
        if before.get(name) != after.get(name) and not (in_one and name in _OBLIGATORY):
            return name
    return None
