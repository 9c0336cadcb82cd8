"""Rule thumbs: one read of each photo gives its SHA-256, size, metadata and thumbnail.

Nothing is done twice: a file whose size and mtime are known is not read, and content that is known,
under whatever name, is not decoded. A photo with a problem is a row that says so.
"""

import hashlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from phototagger.exiftool import ExifTool
from phototagger.images import RAW_FORMATS, check_pixels
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.plan import Photo, read_listing
from phototagger.problems import PhotoProblem
from phototagger.statcache import StatCache
from phototagger.tables import THUMBS, write_table
from phototagger.thumbnails import ThumbCache, make_thumb, read_photo, stat_photo

log = logging.getLogger(__name__)

_RAW_SUFFIXES = tuple(f".{name.lower()}" for name in RAW_FORMATS)
_COLUMNS = ("sha256", "bytes", "width", "height", "orientation", "format")
_EXIF_COLUMNS = ("taken_at", "camera", "lens", "gps")
_OWN_COLUMNS = ("own_caption", "own_description", "own_keywords", "place")


class _Shard:
    """What the threads that work on one shard share."""

    def __init__(
        self,
        machine: Machine,
        kept: ThumbCache,
        known: StatCache,
        exiftool: ExifTool,
        max_pixels: int,
        max_bytes: int,
    ):
        self.machine = machine
        self.kept = kept
        self.known = known
        self.exiftool = exiftool
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        # Two copies of one photo must not be decoded side by side; 64 locks stand for all contents.
        self._locks = [threading.Lock() for _ in range(64)]

    def row(self, photo: Photo) -> tuple[dict[str, Any], bool]:
        """The row of one photo, and whether its pixels were decoded for it."""
        row: dict[str, Any] = {"rel_path": photo.rel_path, "bytes": photo.size}
        try:
            fields, decoded = self._fields(photo, row)
        except PhotoProblem as found:
            problem = found.problem
            log.warning("%s: %s: %s", photo.rel_path, problem.kind, problem.message)
            trouble = {"problem_kind": problem.kind, "problem": problem.message}
            return row | {"status": "problem"} | trouble, False
        for column in _COLUMNS + _EXIF_COLUMNS + _OWN_COLUMNS:
            row[column] = fields[column]
        return row | {"status": "ok", "thumb": self.kept.name(fields["sha256"])}, decoded

    def _fields(self, photo: Photo, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        path = self.machine.roots.locate(photo.rel_path)
        info = stat_photo(path, self.max_bytes)
        sha256 = self.known.get(path, info)
        if sha256 and (fields := self._kept(sha256)):
            return fields, False
        data, info = read_photo(path, self.max_bytes)
        sha256 = hashlib.sha256(data).hexdigest()
        row |= {"bytes": len(data), "sha256": sha256}
        with self._locks[int(sha256[:2], 16) % len(self._locks)]:
            fields = self._kept(sha256)
            decoded = fields is None
            if fields is None:
                fields = self._make(data, sha256, path)
        self.known.put(path, info, sha256)
        return fields, decoded

    def _kept(self, sha256: str) -> dict[str, Any] | None:
        """What is known of this content, if the limits of today still allow it."""
        fields = self.kept.get(sha256)
        if fields:
            check_pixels(fields["width"], fields["height"], self.max_pixels)
        return fields

    def _make(self, data: bytes, sha256: str, path: Path) -> dict[str, Any]:
        thumb = make_thumb(
            data,
            size=self.kept.size,
            quality=self.kept.quality,
            max_pixels=self.max_pixels,
            sha256=sha256,
            path=path,
            exiftool=self.exiftool,
        )
        self.kept.put(thumb)
        return thumb.fields


def thumbs(
    listing: Path,
    output: Path,
    *,
    machine: Machine,
    size: int,
    quality: int,
    max_pixels: int,
    max_bytes: int,
    threads: int = 1,
    digests: Mapping[str, str] | None = None,
    stats: Stats | None = None,
) -> None:
    """Write the thumbs table of one shard: one row per listed photo, in the listing's order.

    `size` is the thumbnails' long edge in pixels, `quality` that of JPEG. At most `threads` photos
    are in memory at a time.
    """
    stats = stats or Stats()
    photos = read_listing(listing)
    stats.photos = len(photos)
    kept = ThumbCache(machine.cache, size, quality)
    rows = []
    with ExifTool() as exiftool, StatCache(machine.cache / "stat") as known:
        if exiftool.available() and any(
            photo.rel_path.lower().endswith(_RAW_SUFFIXES) for photo in photos
        ):
            exiftool.start()  # before there are threads: starting a process beside them is delicate
        shard = _Shard(machine, kept, known, exiftool, max_pixels, max_bytes)
        pool = ThreadPoolExecutor(max(1, threads))
        try:
            for row, decoded in pool.map(shard.row, photos):
                rows.append(row)
                if row["status"] == "problem":
                    stats.problems += 1
                elif decoded:
                    stats.computed += 1
                else:
                    stats.cached += 1
                stats.progress()
                known.save_if_due()
        finally:
            pool.shutdown(cancel_futures=True)
    write_table(output, THUMBS, rows, digests or {})


if __name__ == "__main__":
    with job(snakemake) as stats:
        thumbs(
            listing=Path(snakemake.input.listing),
            output=Path(snakemake.output.table),
            machine=Machine.load(snakemake.params.machine),
            size=snakemake.params.size,
            quality=snakemake.params.quality,
            max_pixels=snakemake.params.max_pixels,
            max_bytes=snakemake.params.max_bytes,
            threads=snakemake.threads,
            digests={"listing": snakemake.params.listing, "code": snakemake.params.code},
            stats=stats,
        )
