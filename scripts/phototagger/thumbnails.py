"""Thumbnails, kept by content: a photo that was renamed, moved or touched is not decoded again.

`<cache>/thumbs/<size>/ab/<key>.jpg` is the picture, `<key>.json` beside it what a table row says
about the photo; the JSON is written last, so it marks the pair as complete. The key is the SHA-1 of
the photo's SHA-256, size, quality and the version of the recipe below.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from phototagger import images
from phototagger.exiftool import ExifTool
from phototagger.files import explain, keep
from phototagger.groups import dhash
from phototagger.machine import Machine
from phototagger.problems import PhotoProblem

# Raise when the same photo, size and quality would give other bytes or other fields than before.
RECIPE = "3"
# Raise along with it when the bytes are others: embeddings and answers are made anew then.
PIXELS = "2"


@dataclass(frozen=True)
class Thumb:
    """A thumbnail, and what a row says that depends on the photo's content only: columns, and
    `embedded` and `ours` as in `OwnMetadata`."""

    jpeg: bytes
    fields: dict[str, Any]


# ------------------------------------------------------------------------------------- reading


def read_photo(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """The bytes of a photo, and the stat they belong to.

    Raises PhotoProblem, also if the file changed twice while it was read; TransientError if its
    file server is gone.
    """
    for _ in range(2):
        try:
            with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
                before = os.fstat(file.fileno())
                check_stat(before, max_bytes)
                data = file.read(before.st_size + 1)
                while len(data) < before.st_size and (more := file.read(before.st_size)):
                    data += more
                after = os.fstat(file.fileno())
        except OSError as error:
            raise _os_problem(error) from error
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if same and len(data) == before.st_size:
            return data, before
    raise PhotoProblem("changed_while_reading", "the file changed while it was read")


def stat_photo(path: Path, max_bytes: int) -> os.stat_result:
    """The stat of a photo that may be read. Raises PhotoProblem; TransientError as `read_photo`."""
    try:
        info = path.stat()
    except OSError as error:
        raise _os_problem(error) from error
    check_stat(info, max_bytes)
    return info


def check_stat(info: os.stat_result, max_bytes: int) -> None:
    """Raise PhotoProblem for what is not a regular file, empty or too large."""
    if not stat.S_ISREG(info.st_mode):
        raise PhotoProblem("not_a_file", "not a regular file")
    if info.st_size == 0:
        raise PhotoProblem("empty", "the file is empty")
    if info.st_size > max_bytes:
        raise PhotoProblem(
            "too_large_bytes", f"{info.st_size} bytes, at most {max_bytes} are allowed"
        )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would make us wait for its writer


# The file server, not the photo.
_UNREACHABLE = (
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ESHUTDOWN,
)


def _os_problem(error: OSError) -> PhotoProblem:
    """Raises TransientError for what is no fault of the photo's: it must not be quarantined."""
    if error.errno in _UNREACHABLE:
        raise explain(error) from error
    if isinstance(error, FileNotFoundError):
        return PhotoProblem("missing", "the file does not exist")
    if isinstance(error, IsADirectoryError):
        return PhotoProblem("not_a_file", "not a regular file")
    return PhotoProblem("unreadable", error.strerror or type(error).__name__)


# -------------------------------------------------------------------------------------- making


def make_thumb(
    data: bytes,
    *,
    size: int,
    quality: int,
    max_pixels: int,
    sha256: str | None = None,
    path: Path | None = None,
    exiftool: ExifTool | None = None,
) -> Thumb:
    """Decode a photo and encode its thumbnail: JPEG, sRGB, upright, no metadata, long edge `size`.

    A smaller photo keeps its size. The same bytes give the same thumbnail. Raises PhotoProblem.
    """
    photo = images.decode(data, max_pixels=max_pixels, long_edge=size, path=path, exiftool=exiftool)
    fields = {
        "sha256": sha256 or hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "width": photo.width,
        "height": photo.height,
        "format": photo.format,
        **asdict(photo.exif),
        **asdict(photo.own),
        "dhash": dhash(photo.image),
    }
    return Thumb(_encode(photo.image, quality), fields)


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------- cache


class ThumbCache:
    """The kept thumbnails of one size and quality."""

    def __init__(self, cache: Path, size: int, quality: int):
        self.folder = cache / "thumbs"
        self.size = size
        self.quality = quality

    def name(self, sha256: str) -> str:
        """Where the thumbnail of this content is, relative to `<cache>/thumbs`."""
        text = f"{sha256} {self.size} {self.quality} {RECIPE}"
        key = hashlib.sha1(text.encode()).hexdigest()
        return f"{self.size}/{key[:2]}/{key}.jpg"

    def get(self, sha256: str) -> dict[str, Any] | None:
        """What is known of this content if its thumbnail is there, else None."""
        path = self.folder / self.name(sha256)
        try:
            fields = json.loads(path.with_suffix(".json").read_bytes())
            complete = fields["sha256"] == sha256 and path.stat().st_size > 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return fields if complete else None

    def put(self, thumb: Thumb) -> None:
        """Keep it, unless the cache may only be read."""
        path = self.folder / self.name(thumb.fields["sha256"])
        if keep(path, thumb.jpeg):
            keep(path.with_suffix(".json"), json.dumps(thumb.fields) + "\n")


def ensure_thumb(
    row: Mapping[str, Any],
    *,
    machine: Machine,
    size: int,
    quality: int,
    exiftool: ExifTool | None = None,
) -> Path:
    """The thumbnail of a row of the thumbs table; made again if the cache was deleted.

    Raises PhotoProblem if it is gone and the photo is too, or is not what it was.
    """
    path = machine.cache / "thumbs" / row["thumb"]
    if not path.exists():
        _make_again(row, machine, size, quality, exiftool)
    return path


def load_thumb(
    row: Mapping[str, Any],
    *,
    machine: Machine,
    size: int,
    quality: int,
    exiftool: ExifTool | None = None,
) -> Image.Image:
    """The thumbnail as a decoded RGB image; made again if it is gone or damaged, also beside a
    cache that may only be read.

    Raises PhotoProblem as `ensure_thumb`.
    """
    try:
        return _load(machine.cache / "thumbs" / row["thumb"])
    except (OSError, UnidentifiedImageError, SyntaxError):
        return _load(BytesIO(_make_again(row, machine, size, quality, exiftool)))


def load_photo(
    row: Mapping[str, Any],
    *,
    machine: Machine,
    long_edge: int | None = None,
    exiftool: ExifTool | None = None,
) -> Image.Image:
    """The photo of a row itself, upright RGB, for those who need more than the thumbnail.

    Raises PhotoProblem if it cannot be read or is no longer what the row describes.
    """
    with machine.roots.file(row["rel_path"]) as path:
        data = _read_same(row, path)
        pixels = row["width"] * row["height"]
        return images.decode(
            data, max_pixels=pixels, long_edge=long_edge, path=path, exiftool=exiftool
        ).image


def _load(file: Path | BytesIO) -> Image.Image:
    with Image.open(file, formats=["JPEG"]) as image:
        image.load()
        return image


def _read_same(row: Mapping[str, Any], path: Path) -> bytes:
    """The bytes that the row was made from; the limits of the first time hold."""
    data, _ = read_photo(path, row["bytes"])
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise PhotoProblem("changed_while_reading", "the photo is not what it was; run again")
    return data


def _make_again(
    row: Mapping[str, Any], machine: Machine, size: int, quality: int, exiftool: ExifTool | None
) -> bytes:
    with machine.roots.file(row["rel_path"]) as path:
        thumb = make_thumb(
            _read_same(row, path),
            size=size,
            quality=quality,
            max_pixels=row["width"] * row["height"],
            sha256=row["sha256"],
            path=path,
            exiftool=exiftool,
        )
    ThumbCache(machine.cache, size, quality).put(thumb)
    return thumb.jpeg
