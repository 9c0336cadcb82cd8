"""IPTC-IIM: the old block of captions and keywords in JPEG and TIFF files, rewritten in UTF-8.

A block is a row of datasets (record, number, bytes). Its character set is declared in 1:90, mostly
is not declared at all, and then is Latin-1 as often as UTF-8. Declaring UTF-8 without converting
the texts that are there turns them into garbage, so both happen in one step here, text by text.
Datasets that hold no text are kept byte for byte. Source: IPTC-NAA IIM 4.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CHARACTER_SET, _UTF8 = (1, 90), b"\x1b%G"
_VERSIONS = {(1, 0): b"\0\x04", (2, 0): b"\0\x04"}  # IIM 4, for records that begin here
_BINARY = {0, 125, 200, 201, 202}  # of record 2: version, rasterised caption, preview

# XMP's tag, its dataset in record 2, and how many bytes it holds
COPIES: Mapping[str, tuple[int, int]] = {
    "XMP-dc:Subject": (25, 64),
    "XMP-dc:Title": (5, 64),
    "XMP-photoshop:Headline": (105, 256),
    "XMP-dc:Description": (120, 2000),
    "XMP-photoshop:CaptionWriter": (122, 32),
}
NAMES = {  # ExifTool's
    "IPTC:Keywords": 25,
    "IPTC:ObjectName": 5,
    "IPTC:Headline": 105,
    "IPTC:Caption-Abstract": 120,
    "IPTC:Writer-Editor": 122,
}
_LIMITS = {32, 64, 256, 2000}


class NotIptcError(ValueError):
    """Bytes that are no IPTC-IIM block; the message is a short reason."""


@dataclass(frozen=True)
class Dataset:
    record: int
    number: int
    data: bytes

    @property
    def key(self) -> tuple[int, int]:
        return self.record, self.number


def parse(block: bytes) -> list[Dataset]:
    """The datasets of a block in their order. Raises NotIptcError."""
    found, at = [], 0
    while block[at:].strip(b"\0"):  # TIFF fills up with zeros
        if block[at] != 0x1C or at + 5 > len(block):
            raise NotIptcError("its IPTC block makes no sense")
        size, start = int.from_bytes(block[at + 3 : at + 5]), at + 5
        if size & 0x8000:  # extended: so many bytes of length follow
            extra = size & 0x7FFF
            size, start = int.from_bytes(block[start : start + extra]), start + extra
        if start + size > len(block):
            raise NotIptcError("its IPTC block is cut off")
        found.append(Dataset(block[at + 1], block[at + 2], block[start : start + size]))
        at = start + size
    return found


def build(datasets: Sequence[Dataset]) -> bytes:
    """A block, by record and number; what repeats stays in its order."""
    return b"".join(map(_bytes, sorted(datasets, key=lambda dataset: dataset.key)))


def _bytes(dataset: Dataset) -> bytes:
    size = len(dataset.data)
    length = size.to_bytes(2) if size < 0x8000 else b"\x80\x04" + size.to_bytes(4)
    return bytes((0x1C, *dataset.key)) + length + dataset.data


def texts(datasets: Sequence[Dataset], number: int) -> list[str]:
    """The texts of one dataset of record 2."""
    return [decoded(dataset.data) for dataset in datasets if dataset.key == (2, number)]


def decoded(data: bytes) -> str:
    """UTF-8 if it is, whatever the block declares, else Windows' Latin-1.

    UTF-8 that somebody cut off at IIM's limit may end within a character.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) in _LIMITS and error.reason == "unexpected end of data":
            return data[: error.start].decode()
    # cp1252 leaves five bytes undefined, which Latin-1 has as control characters
    return "".join(bytes((byte,)).decode("cp1252", "ignore") or chr(byte) for byte in data)


def cut(text: str, size: int) -> str:
    """The beginning of a text that has at most `size` bytes in UTF-8, and no half character."""
    return text.encode("utf-8", "replace")[:size].decode(errors="ignore").rstrip()


def replaced(datasets: Sequence[Dataset], wanted: Mapping[int, Sequence[str]]) -> list[Dataset]:
    """The datasets in UTF-8, and declared so, with other texts for some numbers of record 2."""
    kept = [
        _in_utf8(dataset)
        for dataset in datasets
        if dataset.key != _CHARACTER_SET and not (dataset.record == 2 and dataset.number in wanted)
    ]
    new = [Dataset(2, number, text.encode()) for number in wanted for text in wanted[number]]
    result = [Dataset(*_CHARACTER_SET, _UTF8), *kept, *new]
    keys = {dataset.key for dataset in result}
    return result + [Dataset(*key, data) for key, data in _VERSIONS.items() if key not in keys]


def _in_utf8(dataset: Dataset) -> Dataset:
    if dataset.record != 2 or dataset.number in _BINARY:
        return dataset
    return Dataset(*dataset.key, decoded(dataset.data).encode())
