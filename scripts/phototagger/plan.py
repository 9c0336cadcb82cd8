"""The plan: which photos there are, and which shard each belongs to.

Made when the Snakefile is parsed by the main process; jobs only read it. Below `results/plan/`:

* `shards/{shard}.tsv`  the listing of a shard: rel_path, size, mtime_ns, and a digest of what a
                        person says in sidecars beside the photo; no machine's paths in it
* `machine.json`        where the roots lie on this machine (see `machine`)
* `index.json`          shards in path order with listing digest and counts, and the run_id

**Shards** are the leaves of a binary trie over the bytes of the paths (a radix tree): a node with
more than `shard_size` photos is split at the first bit in which its paths differ. So a shard is a
contiguous run of the sorted paths, never larger than `shard_size`, small folders share one, and
which photos are together depends on nothing but their names: adding a photo changes one shard, or
splits a full one in two; changing or deleting one changes one shard (or joins two into one); a move
changes where it was and where it is. Only when the library outgrows `MAX_SHARDS` full shards does
the shard size double, and every listing with it.
"""

import hashlib
import json
import logging
import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from phototagger import buckets, names
from phototagger.errors import TransientError, UserError
from phototagger.files import write_if_changed

log = logging.getLogger(__name__)

# With the 60 to 80 % fill of a radix tree, a plan of about 1,000 shards: Snakemake's comfort.
MAX_SHARDS = 640

INDEX = Path("results/plan/index.json")

NEVER_PHOTOS = ("_original", "_exiftool_tmp", ".xmp")

# A folder and its entries -> names of photos -> what their sidecars say (see `tokens`).
Sidecars = Callable[[str, Sequence[os.DirEntry[str]]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Photo:
    """One line of a listing. `rel_path` is encoded text (see `names`)."""

    rel_path: str
    size: int
    mtime_ns: int
    sidecar: str = ""


@dataclass(frozen=True)
class Root:
    """A folder given by the user, or a place in a bucket (see `buckets`); with `only`, just these
    files directly in it."""

    name: str
    path: str
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ScanOptions:
    """What counts as a photo."""

    extensions: tuple[str, ...]
    recursive: bool = True
    exclude: tuple[str, ...] = ()
    max_images: int | None = None


@dataclass(frozen=True)
class Shard:
    """A line of the index: name, digest of the listing, number of photos."""

    name: str
    digest: str
    photos: int


class Roots:
    """Resolves rel_paths to files on this machine."""

    def __init__(self, roots: Sequence[Root]):
        self.roots = list(roots)
        self._paths = {root.name: names.decode(root.path) for root in roots}

    def locate(self, rel_path: str) -> Path:
        """The file behind a rel_path; with several roots its first part names the root.

        Raises UserError for a photo in a bucket.
        """
        top, rest = self._split(rel_path)
        if buckets.is_bucket(top):
            raise UserError(f"{top}: photos in a bucket are only read; copy them to a folder first")
        return names.local_path(Path(top), rest)

    def url(self, rel_path: str) -> str | None:
        """Where a photo in a bucket lies; None for a file."""
        top, rest = self._split(rel_path)
        return buckets.join(top, names.decode(rest)) if buckets.is_bucket(top) else None

    def address(self, rel_path: str) -> str:
        """What a person would call the place of a photo: its absolute path, or its URL."""
        return self.url(rel_path) or os.fspath(self.locate(rel_path))

    @contextmanager
    def file(self, rel_path: str) -> Iterator[Path]:
        """The photo as a file, for as long as it is read: one in a bucket is fetched for that.

        Raises PhotoProblem and TransientError as `buckets.fetched`.
        """
        url = self.url(rel_path)
        if url is None:
            yield self.locate(rel_path)
            return
        with buckets.fetched(url) as path:
            yield path

    @property
    def in_buckets(self) -> list[str]:
        """The roots that are places in buckets."""
        return [top for top in self._paths.values() if buckets.is_bucket(top)]

    def _split(self, rel_path: str) -> tuple[str, str]:
        """The root's place, and the path below it."""
        if len(self.roots) == 1:
            return self._paths[self.roots[0].name], rel_path
        name, _, rest = rel_path.partition("/")
        return self._paths[name], rest

    def check_mounted(self, rel_path: str) -> None:
        """Raise TransientError if not a single file is missing but the root it lies in.

        On a node where a folder is not mounted, every photo in it looks as if it had been deleted.
        """
        name = rel_path.partition("/")[0] if len(self.roots) > 1 else self.roots[0].name
        folder = self._paths[name]
        if buckets.is_bucket(folder):
            return
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is not None:
                    return
            state = "an empty folder"
        except OSError as error:
            state = error.strerror.lower()
        raise TransientError(
            f"{folder}: {state} on {os.uname().nodename}, and photos were planned there; "
            "mount it on this node, or if they were removed, run again"
        )

    def rel_path(self, path: Path) -> str | None:
        """The rel_path of a file below one of the roots, or None."""
        for root in self.roots:
            folder = os.path.realpath(self._paths[root.name])
            inside = os.path.relpath(os.path.realpath(path), folder)
            if not inside.startswith(".."):
                prefix = f"{root.name}/" if len(self.roots) > 1 else ""
                return prefix + names.encode(inside)
        return None


# ---------------------------------------------------------------------------------------- roots


def resolve_roots(given: Iterable[str | Path], base: Path) -> Roots:
    """Roots from what the user named: folders, files (grouped by their folder), and places in
    buckets.

    Root names are the folders' names, made unique with `-2`, `-3` ... in the order given.

    Raises UserError if one does not exist or none is given.
    """
    folders: dict[str, list[str] | None] = {}
    for item in given:
        if buckets.is_bucket(item):
            bucket, prefix = buckets.split(str(item))
            folders[f"{buckets.SCHEME}{bucket}/{prefix}".rstrip("/")] = None
            continue
        path = Path(os.path.abspath(base / Path(item).expanduser()))  # keeps symlinks as named
        if path.is_dir():
            folders[str(path)] = None
        elif path.is_file():
            files = folders.setdefault(str(path.parent), [])
            if files is not None and path.name not in files:
                files.append(path.name)
        else:
            raise UserError(f"{path}: no such folder or photo; name folders of photos that exist")
    if not folders:
        raise UserError("photos.roots is empty: name at least one folder of photos")
    roots, used = [], set()
    for folder, files in folders.items():
        stem = names.encode(Path(folder).name) or "root"
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name)
        only = tuple(sorted(names.encode(f) for f in files)) if files is not None else None
        roots.append(Root(name, names.encode(folder), only))
    return Roots(roots)


# ----------------------------------------------------------------------------------------- scan


def is_photo(name: str, extensions: tuple[str, ...]) -> bool:
    """Whether a file name is one of a photo: known extension, not hidden, no editor's left-over."""
    lower = name.lower()
    return (
        lower.endswith(extensions) and not name.startswith(".") and not lower.endswith(NEVER_PHOTOS)
    )


def scan(
    roots: Roots,
    options: ScanOptions,
    avoid: Iterable[Path] = (),
    sidecars: Sidecars | None = None,
) -> list[Photo]:
    """All photos below the roots, sorted by path, each folder once, `avoid` left out.

    `sidecars` says what lies beside the photos; it is asked about folders with `.xmp` files only.

    Folders that cannot be listed raise UserError: a part of a library that silently vanished would
    take its results with it.
    """
    extensions = tuple(e.lower() for e in options.extensions)
    avoided = {_identity(os.stat(p)) for p in avoid if os.path.exists(p)}
    visited: set[tuple[int, int]] = set(avoided)
    photos: list[tuple[bytes, Photo]] = []
    for root in roots.roots:
        prefix = f"{root.name}/" if len(roots.roots) > 1 else ""
        top = names.decode(root.path)
        if buckets.is_bucket(top):
            photos += _scan_bucket(top, prefix, options, extensions)
            continue
        only = {names.decode(name) for name in root.only} if root.only is not None else None
        recursive = options.recursive and only is None
        for rel, info, token in _walk(top, prefix, recursive, extensions, visited, sidecars):
            if only is not None and rel.removeprefix(prefix) not in only:
                continue
            text = names.encode(rel)
            if options.exclude and _excluded(text, options.exclude):
                continue
            photos.append((sort_key(text), Photo(text, info.st_size, info.st_mtime_ns, token)))
    photos.sort()
    return [photo for _, photo in photos[: options.max_images]]


def _scan_bucket(
    top: str, prefix: str, options: ScanOptions, extensions: tuple[str, ...]
) -> Iterator[tuple[bytes, Photo]]:
    """Photos in a bucket. Raises UserError for keys that could not be paths."""
    start = len(buckets.split(top)[1])
    sidecars = 0
    for item in buckets.listing(top):
        key = item.key[start:].removeprefix("/")
        *folders, name = key.split("/")
        sidecars += name.lower().endswith(".xmp")
        if not is_photo(name, extensions) or (folders and not options.recursive):
            continue
        text = prefix + names.encode(key)
        hidden = any(folder.startswith(".") and folder not in (".", "..") for folder in folders)
        if hidden or _excluded(text, options.exclude):
            continue
        if {"", ".", ".."} & {*folders}:
            raise UserError(f"{top}: the key {names.encode(item.key)} is no path; exclude {text}")
        yield sort_key(text), Photo(text, item.size, item.mtime_ns)
    if sidecars:
        log.warning("%s: %d sidecars in the bucket are not read", top, sidecars)


def sort_key(rel_path: str) -> bytes:
    """Path order: component by component, so that a folder's photos are neighbours."""
    return rel_path.encode().replace(b"/", b"\x00")


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _excluded(rel_path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(rel_path, pattern) for pattern in patterns)


def _walk(
    top: str,
    prefix: str,
    recursive: bool,
    extensions: tuple[str, ...],
    visited: set[tuple[int, int]],
    sidecars: Sidecars | None,
) -> Iterator[tuple[str, os.stat_result, str]]:
    """Photos below `top`, with their sidecars' tokens.

    Every folder is entered once, whichever way symlinks lead to it.
    Real folders go before symlinked ones, so that a photo keeps the name of the place where it is,
    and folders are visited in sorted order, so that the outcome does not depend on the disk.
    """
    real, linked = [(top, prefix)], []
    if not _first_visit(os.stat(top), visited):
        return
    while real:
        folder, rel = real.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name, reverse=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be listed ({error.strerror}); make it readable or exclude it"
            ) from error
        beside = sidecars(folder, entries) if sidecars and _has_sidecars(entries) else {}
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_photo(entry.name, extensions) and (info := _stat_file(entry)):
                yield rel + entry.name, info, beside.get(entry.name, "")
                continue
            if not recursive:
                continue
            if entry.is_dir(follow_symlinks=False):
                if _first_visit(entry.stat(), visited):
                    real.append((entry.path, f"{rel}{entry.name}/"))
            elif entry.is_symlink() and os.path.isdir(entry.path):  # False for a link to itself
                linked.append((entry.path, f"{rel}{entry.name}/"))
        while linked and not real:
            folder, rel = linked.pop()
            if _first_visit(os.stat(folder), visited):
                real.append((folder, rel))


def _has_sidecars(entries: Iterable[os.DirEntry[str]]) -> bool:
    return any(entry.name[-4:].lower() == ".xmp" for entry in entries)


def _first_visit(info: os.stat_result, visited: set[tuple[int, int]]) -> bool:
    if _identity(info) in visited:
        return False
    visited.add(_identity(info))
    return True


def _stat_file(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The stat of a regular file (through symlinks); None for sockets, folders, dangling links."""
    try:
        info = entry.stat()
    except OSError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None


# --------------------------------------------------------------------------------------- shards


def effective_shard_size(photos: int, shard_size: int) -> int:
    """The configured size, doubled until `MAX_SHARDS` full shards hold the library."""
    while photos > MAX_SHARDS * shard_size:
        shard_size *= 2
    return shard_size


def partition(photos: Sequence[Photo], shard_size: int) -> list[tuple[str, Sequence[Photo]]]:
    """Sorted photos as named shards, in path order (see the module's docstring)."""
    keys = [sort_key(photo.rel_path) for photo in photos]
    shards: list[tuple[str, Sequence[Photo]]] = []
    stack = [(0, len(keys), b"")] if keys else []
    while stack:
        low, high, branch = stack.pop()
        if high - low <= shard_size:
            shards.append((hashlib.sha256(branch).hexdigest()[:10], photos[low:high]))
            continue
        byte, bit = _first_difference(keys[low], keys[high - 1])
        # the smallest key in which that bit is set: all before it share the prefix, but not the bit
        prefix = keys[high - 1][:byte]
        ones = prefix + bytes([keys[high - 1][byte] & (0xFF << bit)])
        middle = bisect_left(keys, ones, low, high)
        where = f"{byte}.{bit}".encode()
        stack.append((middle, high, b"1" + where + b":" + ones))
        stack.append((low, middle, b"0" + where + b":" + ones))
    return shards


def _first_difference(first: bytes, last: bytes) -> tuple[int, int]:
    """Index of the first differing byte, and of the highest differing bit in it."""
    length = min(len(first), len(last))
    shared = next((i for i in range(length) if first[i] != last[i]), length)
    a = first[shared] if shared < len(first) else 0
    return shared, (a ^ last[shared]).bit_length() - 1


# ---------------------------------------------------------------------------------------- files


def format_listing(photos: Iterable[Photo]) -> bytes:
    rows = (f"{p.rel_path}\t{p.size}\t{p.mtime_ns}\t{p.sidecar}\n" for p in photos)
    return b"rel_path\tsize\tmtime_ns\tsidecar\n" + "".join(rows).encode()


def listing_path(shard: str) -> Path:
    """Where the listing of a shard is, seen from the work directory."""
    return Path("results/plan/shards") / f"{shard}.tsv"


def read_listing(path: Path) -> list[Photo]:
    """The photos of a shard."""
    with path.open(encoding="utf-8", newline="\n") as file:
        next(file)
        rows = (line.rstrip("\n").split("\t") for line in file)
        return [Photo(name, int(size), int(mtime), token) for name, size, mtime, token in rows]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_shards(folder: Path, shards: Iterable[tuple[str, Sequence[Photo]]]) -> list[Shard]:
    """Write the listings that changed, remove those of vanished shards."""
    written = []
    for name, photos in shards:
        content = format_listing(photos)
        write_if_changed(folder / f"{name}.tsv", content)
        written.append(Shard(name, digest(content), len(photos)))
    current = {shard.name for shard in written}
    for path in folder.glob("*.tsv"):
        if path.stem not in current:
            path.unlink(missing_ok=True)
    return written


def read_index(path: Path) -> tuple[list[Shard], str]:
    """Shards in path order, and the run_id, from `results/plan/index.json`."""
    index = json.loads(path.read_text("utf-8"))
    return [Shard(**shard) for shard in index["shards"]], index["run_id"]


def write_index(path: Path, shards: Sequence[Shard], run_id: str) -> None:
    rows = ",\n".join("  " + json.dumps(asdict(shard)) for shard in shards)
    write_if_changed(path, f'{{"run_id": {json.dumps(run_id)}, "shards": [\n{rows}\n]}}\n')
