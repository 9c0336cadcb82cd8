"""What is in a JPEG or TIFF file besides pictures: XMP, IPTC; and a digest of all pictures in it.

The digest covers the coded pictures byte for byte with everything that decoding them takes (tables,
colour profiles, further pictures, whatever follows the last one), and no metadata. Two files of one
digest show the same. Nothing is decoded, so no codec has to be known.

Sources: ITU-T T.81 (JPEG), TIFF 6.0 and BigTIFF, Adobe's XMP part 3 and Photoshop file formats.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_MORE = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_MULTI_PICTURE = b"MPF\0"  # a table of where in the file pictures are; the pictures are hashed

IPTC, IPTC_DIGEST = 0x0404, 0x0425  # Photoshop's image resources

_LARGEST = 64 << 20  # bytes of one field that is read into memory
_MOST_DIRECTORIES = 10_000
_CHUNK = 1 << 20


class NotReadableError(ValueError):
    """Neither JPEG nor TIFF, or damaged; the message is a short reason."""


@dataclass
class Contents:
    """`xmp`: the packet, and the extended ones of a JPEG. `pictures`: digest, if asked for."""

    kind: str  # JPEG or TIFF
    xmp: list[bytes] = field(default_factory=list)
    resources: list[tuple[int, bytes]] = field(default_factory=list)  # Photoshop's, by number
    iptc: bytes | None = None
    description: bytes | None = None  # EXIF ImageDescription
    pictures: str | None = None

    @property
    def iptc_digest(self) -> bytes | None:
        """MD5 of the IPTC block when somebody last wrote it and XMP together."""
        return next((data for number, data in self.resources if number == IPTC_DIGEST), None)

    @property
    def other_resources(self) -> list[tuple[int, bytes]]:
        return [item for item in self.resources if item[0] not in (IPTC, IPTC_DIGEST)]


def read(path: Path, *, pictures: bool = False) -> Contents:
    """What is in a file; with `pictures`, read to its end.

    Raises NotReadableError, OSError.
    """
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        try:
            if head.startswith(b"\xff\xd8\xff"):
                return _jpeg(file, pictures)
            if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _tiff(file, pictures)
        except (struct.error, IndexError, OverflowError) as error:
            raise NotReadableError("the file is damaged") from error
    raise NotReadableError("neither JPEG nor TIFF inside")


# ---------------------------------------------------------------------------------------- JPEG


def _jpeg(file: IO[bytes], pictures: bool) -> Contents:
    contents, total = Contents("JPEG"), hashlib.sha256()
    photoshop: list[bytes] = []
    more: list[bytes] = []
    for marker, data in _segments(file):
        if marker == 0xE1 and data.startswith(_XMP):
            contents.xmp.append(data[len(_XMP) :])
        elif marker == 0xE1 and data.startswith(_XMP_MORE):
            more.append(data)
        elif marker == 0xED and data.startswith(_PHOTOSHOP):
            photoshop.append(data[len(_PHOTOSHOP) :])
        elif marker == 0xE1 and data.startswith(_EXIF):
            contents.description = _description(data[len(_EXIF) :])
        elif not (marker == 0xE2 and data.startswith(_MULTI_PICTURE)):
            total.update(bytes((marker,)) + len(data).to_bytes(4) + data)
    contents.xmp += extended_xmp(contents.xmp, more)
    contents.resources = _resources(b"".join(photoshop))
    contents.iptc = b"".join(d for number, d in contents.resources if number == IPTC) or None
    if pictures:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
        contents.pictures = total.hexdigest()
    return contents


def _segments(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The segments before the first scan; the file stands behind the scan's marker then."""
    file.seek(2)
    while True:
        if file.read(1) != b"\xff":
            raise NotReadableError("the JPEG's header is damaged")
        while (marker := file.read(1)) == b"\xff":  # fill bytes
            pass
        if marker == b"\xda":
            return
        if not marker or marker[0] == 0xD9:
            raise NotReadableError("the JPEG has no picture")
        if marker[0] == 0x01 or 0xD0 <= marker[0] <= 0xD7:
            continue
        size = struct.unpack(">H", file.read(2))[0] - 2
        data = file.read(max(0, size))
        if size < 0 or len(data) < size:
            raise NotReadableError("the JPEG's header is cut off")
        yield marker[0], data


def _description(exif: bytes) -> bytes | None:
    try:
        tiff = _Tiff(BytesIO(exif))
        fields, _ = tiff.directory(tiff.first)
    except (NotReadableError, struct.error, IndexError, OverflowError):
        return None
    return _text(fields)


def _text(fields: dict[int, tuple[str, bytes]]) -> bytes | None:
    return fields[_DESCRIPTION][1].partition(b"\0")[0] if _DESCRIPTION in fields else None


def extended_xmp(packets: Iterable[bytes], segments: Iterable[bytes]) -> list[bytes]:
    """What of a JPEG's XMP did not fit into one segment: packets of their own.

    `segments`: all that may be a part of them; those count that one of `packets` names.
    """
    more: dict[bytes, dict[int, bytes]] = {}
    for data in segments:
        if data.startswith(_XMP_MORE):
            at = len(_XMP_MORE)
            part = more.setdefault(data[at : at + 32], {})
            part[int.from_bytes(data[at + 36 : at + 40])] = data[at + 40 :]
    return [
        b"".join(data for _, data in sorted(parts.items()))
        for guid, parts in sorted(more.items())
        if any(guid in packet for packet in packets)
    ]


def _resources(block: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while block[at : at + 4] in (b"8BIM", b"PHUT", b"DCSR", b"AgHg", b"MeSa"):
        number = int.from_bytes(block[at + 4 : at + 6])
        at += 6 + (block[at + 6] + 2) // 2 * 2  # a name, padded with its length byte
        size = int.from_bytes(block[at : at + 4])
        found.append((number, block[at + 4 : at + 4 + size]))
        at += 4 + (size + 1) // 2 * 2
    return sorted(found, key=lambda item: item[0])


# ---------------------------------------------------------------------------------------- TIFF

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii"}
_TYPES |= {11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG, _DESCRIPTION, _SUB = 0x02BC, 0x83BB, 0x8649, 0x010E, 0x014A
_METADATA = {_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG}
_DIRECTORIES = {_SUB, 0x8769, 0x8825, 0xA005}  # where other directories are
_FREE = {0x0120, 0x0121}
# where the picture's bytes are, and how many
_DATA = {0x0111: 0x0117, 0x0144: 0x0145, 0x0201: 0x0202}


class _Tiff:
    """Walks the directories of a TIFF or BigTIFF."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        head = file.read(16)
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = head[2:4] in (b"+\0", b"\0+")
        self._word = "Q" if self._big else "I"
        at = 8 if self._big else 4
        self.first = self._unpack(self._word, head[at:])[0]

    def _unpack(self, letters: str, data: bytes) -> tuple:
        layout = self._order + letters
        return struct.unpack(layout, data[: struct.calcsize(layout)])

    def at(self, offset: int, size: int) -> bytes:
        if size > _LARGEST:
            raise NotReadableError("the TIFF has a field that is too large")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) < size:
            raise NotReadableError("the TIFF is cut off")
        return data

    def directory(self, offset: int) -> tuple[dict[int, tuple[str, bytes]], int]:
        """Its fields, as a type's letters and bytes, and where the next one is (0: nowhere)."""
        count_of, entry, inline = ("Q", "HHQ", 8) if self._big else ("H", "HHI", 4)
        size = struct.calcsize("<" + count_of)
        count = self._unpack(count_of, self.at(offset, size))[0]
        step = struct.calcsize("<" + entry) + inline
        table = self.at(offset + size, count * step + inline)
        fields = {}
        for position in range(0, count * step, step):
            tag, kind, number = self._unpack(entry, table[position:])
            letters = _TYPES.get(kind, "B")
            where = table[position + step - inline : position + step]
            length = number * struct.calcsize("<" + letters)
            if length > inline:
                where = self.at(self._unpack(self._word, where)[0], length)
            fields[tag] = (letters, where[:length])
        return fields, self._unpack(self._word, table[count * step :])[0]

    def numbers(self, entry: tuple[str, bytes]) -> list[int]:
        letters, data = entry
        count = len(data) // struct.calcsize("<" + letters)
        return list(struct.unpack(f"{self._order}{count * len(letters)}{letters[0]}", data))

    def feed(self, total: "hashlib._Hash", offset: int, size: int) -> None:
        self._file.seek(offset)
        while size > 0:
            chunk = self._file.read(min(size, _CHUNK))
            if not chunk:
                raise NotReadableError("the TIFF is cut off")
            total.update(chunk)
            size -= len(chunk)


def _tiff(file: IO[bytes], pictures: bool) -> Contents:
    tiff, contents, total = _Tiff(file), Contents("TIFF"), hashlib.sha256()
    seen: set[int] = set()
    waiting = [tiff.first]
    while waiting:
        offset = waiting.pop()
        if offset in seen or len(seen) > _MOST_DIRECTORIES:
            raise NotReadableError("the TIFF's directories make no sense")
        seen.add(offset)
        fields, following = tiff.directory(offset)
        first = offset == tiff.first
        if first:
            data = {tag: fields[tag][1] for tag in _METADATA & fields.keys()}
            contents.xmp = [data[_XMP_TAG].rstrip(b"\0")] if _XMP_TAG in data else []
            contents.iptc = data.get(_IPTC_TAG)
            contents.description = _text(fields)
            contents.resources = _resources(data.get(_PHOTOSHOP_TAG, b""))
            if not pictures:
                return contents
        _feed_directory(tiff, fields, total, _METADATA | {_DESCRIPTION} if first else set())
        inner = tiff.numbers(fields[_SUB]) if _SUB in fields else []
        waiting += [each for each in (following, *reversed(inner)) if each]
    contents.pictures = total.hexdigest()
    return contents


def _feed_directory(
    tiff: _Tiff, fields: dict[int, tuple[str, bytes]], total: "hashlib._Hash", left_out: set[int]
) -> None:
    """Hash the fields, but numbers as numbers and where something is as what is there."""
    total.update(b"directory")
    skipped = left_out | _DIRECTORIES | _FREE | _DATA.keys() | set(_DATA.values())
    for tag, (letters, data) in sorted(fields.items()):
        if tag not in skipped:
            total.update(f"{tag} {letters} {len(data)} ".encode() + data)
    for offsets, sizes in _DATA.items():
        if offsets not in fields:
            continue
        if sizes not in fields:
            raise NotReadableError("the TIFF does not say how large its picture is")
        starts, lengths = tiff.numbers(fields[offsets]), tiff.numbers(fields[sizes])
        total.update(f"{offsets} {lengths} ".encode())
        for start, length in zip(starts, lengths, strict=True):
            tiff.feed(total, start, length)
