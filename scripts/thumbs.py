"""Rule thumbs: one read of each photo gives its SHA-256, size, metadata and thumbnail.

Nothing is done twice: a file whose size and mtime are known is not read, and content that is known,
under whatever name, is not decoded. A photo with a problem is a row that says so. What persons
wrote into sidecars counts like what they embedded, and decides with it whether a photo is tagged
already.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phototagger import allocation, buckets, names, own_metadata
from phototagger.aliases import Aliases
from phototagger.beside import Folder, read_packet
from phototagger.exiftool import ExifTool
from phototagger.images import RAW_FORMATS, check_pixels
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.plan import Photo, Roots, listing_path, read_listing
from phototagger.problems import PhotoProblem
from phototagger.statcache import StatCache
from phototagger.tables import THUMBS, write_table
from phototagger.tagged import is_tagged
from phototagger.thumbnails import ThumbCache, check_stat, make_thumb, read_photo, stat_photo
from phototagger.xmp import Values

log = logging.getLogger(__name__)

_RAW_SUFFIXES = tuple(f".{name.lower()}" for name in RAW_FORMATS)
_COLUMNS = ("sha256", "bytes", "width", "height", "orientation", "format")
_EXIF_COLUMNS = ("taken_at", "camera", "lens", "gps")
_OTHER_COLUMNS = ("place", "dhash")


@dataclass
class _Shard:
    """What the threads that work on one shard share."""

    machine: Machine
    kept: ThumbCache
    known: StatCache
    exiftool: ExifTool
    sidecars: Mapping[str, list[Path]]
    max_pixels: int
    max_bytes: int
    tagged_fields: Collection[str]
    tagged_by: Collection[str]

    def __post_init__(self) -> None:
        self.aliases = Aliases(self.machine.cache)
        # Two copies of one photo must not be decoded side by side; 64 locks stand for all contents.
        self._locks = [threading.Lock() for _ in range(64)]

    def row(self, photo: Photo) -> tuple[dict[str, Any], bool]:
        """The row of one photo, and whether its pixels were decoded for it."""
        row: dict[str, Any] = {"rel_path": photo.rel_path, "bytes": photo.size}
        try:
            fields, decoded = self._fields(photo, row)
        except PhotoProblem as found:
            problem = found.problem
            if problem.kind == "missing" and allocation.current():  # on a node of a cluster
                self.machine.roots.check_mounted(photo.rel_path)
            log.warning("%s: %s: %s", photo.rel_path, problem.kind, problem.message)
            trouble = {"problem_kind": problem.kind, "problem": problem.message}
            return row | {"status": "problem"} | trouble, False
        for column in _COLUMNS + _EXIF_COLUMNS + _OTHER_COLUMNS:
            row[column] = fields[column]
        row |= self._own(photo, fields["embedded"], fields["ours"])
        row["picture"] = self.aliases.first(fields["sha256"])
        return row | {"status": "ok", "thumb": self.kept.name(fields["sha256"])}, decoded

    def _own(self, photo: Photo, embedded: Values, ours: Values) -> dict[str, Any]:
        """What the photo and its sidecars say; sidecars before what is embedded."""
        packets = []
        for path in self.sidecars.get(photo.rel_path, ()):
            if packet := read_packet(path):
                packets.append(packet)
            else:
                name = names.encode(path.name)
                log.warning("%s: sidecar %s cannot be read; ignored", photo.rel_path, name)
        theirs = own_metadata.join([*(packet.theirs for packet in packets), embedded])
        said = own_metadata.join([*(own_metadata.ours_of(packet) for packet in packets), ours])
        tagged = is_tagged(theirs, said, self.tagged_fields, self.tagged_by)
        return own_metadata.columns(theirs) | {"embedded": json.dumps(embedded), "tagged": tagged}

    def _fields(self, photo: Photo, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        if url := self.machine.roots.url(photo.rel_path):
            return self._fields_of_object(url, photo, row)
        path = self.machine.roots.locate(photo.rel_path)
        info = stat_photo(path, self.max_bytes)
        sha256 = self.known.get(path, info)
        if sha256 and (fields := self._kept(sha256)):
            return fields, False
        data, info = read_photo(path, self.max_bytes)
        return self._fields_of_data(data, path, path, info, row)

    def _fields_of_object(
        self, url: str, photo: Photo, row: dict[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        """Of a photo in a bucket, which is not fetched if what the plan says of it is known."""
        info = buckets.listed_stat(photo.size, photo.mtime_ns)
        check_stat(info, self.max_bytes)
        place = Path("/", url)  # no file has such a name
        sha256 = self.known.get(place, info)
        if sha256 and (fields := self._kept(sha256)):
            return fields, False
        with buckets.fetched(url) as path:
            data, _ = read_photo(path, self.max_bytes)
            if len(data) != photo.size:
                raise PhotoProblem("changed_while_reading", "the object is not what was listed")
            return self._fields_of_data(data, path, place, info, row)

    def _fields_of_data(
        self, data: bytes, path: Path, place: Path, info: os.stat_result, row: dict[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        """`path`: the file that was read; `place`: by which name its digest is remembered."""
        sha256 = hashlib.sha256(data).hexdigest()
        row |= {"bytes": len(data), "sha256": sha256}
        with self._locks[int(sha256[:2], 16) % len(self._locks)]:
            fields = self._kept(sha256)
            decoded = fields is None
            if fields is None:
                fields = self._make(data, sha256, path)
        self.known.put(place, info, sha256)
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


def _sidecars(photos: Iterable[Photo], roots: Roots) -> dict[str, list[Path]]:
    """rel_path -> sidecars, of photos whose listing says that there is something in them."""
    by_folder: dict[Path, list[tuple[str, Path]]] = {}
    for photo in photos:
        if photo.sidecar:
            path = roots.locate(photo.rel_path)
            by_folder.setdefault(path.parent, []).append((photo.rel_path, path))
    found = {}
    for folder, members in by_folder.items():
        try:
            beside = Folder(folder, {path.suffix for _, path in members})
        except OSError as error:  # its photos will be problems, too
            log.warning("sidecars of %d photos: %s", len(members), error.strerror)
            continue
        found |= {rel_path: beside.existing(path.name) for rel_path, path in members}
    return found


def thumbs(
    listing: Path,
    output: Path,
    *,
    machine: Machine,
    size: int,
    quality: int,
    max_pixels: int,
    max_bytes: int,
    tagged_fields: Collection[str] = (),
    tagged_by: Collection[str] = ("person",),
    threads: int = 1,
    digests: Mapping[str, str] | None = None,
    stats: Stats | None = None,
) -> None:
    """Write the thumbs table of one shard: one row per listed photo, in the listing's order.

    `size` is the thumbnails' long edge in pixels, `quality` that of JPEG. At most `threads` photos
    are in memory at a time. `tagged_fields` and `tagged_by` say what makes a photo a tagged one.
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
        shard = _Shard(
            machine,
            kept,
            known,
            exiftool,
            _sidecars(photos, machine.roots),
            max_pixels=max_pixels,
            max_bytes=max_bytes,
            tagged_fields=tagged_fields,
            tagged_by=tagged_by,
        )
        pool = ThreadPoolExecutor(max(1, threads))
        try:
            for row, decoded in pool.map(shard.row, photos):
                rows.append(row)
                _count(stats, row, decoded)
                known.save_if_due()
        finally:
            pool.shutdown(cancel_futures=True)
    write_table(output, THUMBS, rows, digests or {})


def _count(stats: Stats, row: Mapping[str, Any], decoded: bool) -> None:
    if row["status"] == "problem":
        stats.problems += 1
    elif decoded:
        stats.computed += 1
    else:
        stats.cached += 1
    stats.progress()


if __name__ == "__main__":
    with job(snakemake) as stats:
        thumbs(
            listing=listing_path(snakemake.wildcards.shard),
            output=Path(snakemake.output.table),
            machine=Machine.load(snakemake.params.machine),
            size=snakemake.params.size,
            quality=snakemake.params.quality,
            max_pixels=snakemake.params.max_pixels,
            max_bytes=snakemake.params.max_bytes,
            tagged_fields=snakemake.params.tagged_fields,
            tagged_by=snakemake.params.tagged_by,
            threads=snakemake.threads,
            digests={"listing": snakemake.params.listing, "code": snakemake.params.code},
            stats=stats,
        )
