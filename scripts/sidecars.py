"""Write the sidecar that each photo of a shard would get, as a proposal below `results/sidecars/`.

Nothing is written beside the photos. A proposal is the sidecar of a photo that has none yet: what
photo-tagger says, joined with what is embedded in the photo. Where it has nothing to say, there is
none. What ExifTool wrote is kept by content, so that a stale shard costs only the photos whose
values changed, and starts no process when there are none. Sidecars that have not changed keep their
time.

The manifest has a row for each photo with a record, but for those that are tagged already: `apply`
leaves their sidecars alone.
"""

import errno
import hashlib
import json
import logging
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from phototagger import buckets, marks, xmp
from phototagger.errors import UserError
from phototagger.exiftool import find_exiftool
from phototagger.files import keep, write_if_changed
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.manifest import Proposed, sidecar_path, write_manifest
from phototagger.merge import Merged
from phototagger.proposal import propose
from phototagger.records import read_records

SIDECARS = Path("results/sidecars")

# The file system has no place for a sidecar of that name; other photos are not concerned.
_NO_PLACE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


def sidecars(
    records: Path,
    manifest: Path,
    *,
    machine: Machine,
    fields: Mapping[str, bool],
    carry_over: Collection[str] = (),
    threads: int = 1,
    folder: Path = SIDECARS,
    stats: Stats | None = None,
) -> None:
    """Write the proposed sidecars of a shard's records below `folder`, then the manifest.

    `fields`, `carry_over`: as in the configuration's `metadata`. `threads`: ExifTool processes side
    by side. All sidecars are made and read back before the first one is put in its place. A photo
    whose sidecar cannot be written, or whose name is too long for one, has none; the manifest says
    so, and the log says why. Where results go to a bucket, sidecars do, too.

    Raises UserError if ExifTool is missing or crashed.
    """
    stats = stats or Stats()
    known: dict[str, Mapping[str, Any]] = {}
    wanted: dict[str, Merged] = {}
    for record in read_records(records):
        stats.photos += 1
        if record["tagged"]:
            stats.skipped += 1
            continue
        rel_path = record["rel_path"]
        known[rel_path] = record
        if merged := propose(record, fields, carry_over):
            wanted[rel_path] = merged
    contents, computed = _contents(wanted, machine.cache / "sidecars", threads, stats)
    if machine.stored:
        contents = _store(buckets.join(machine.stored, SIDECARS.as_posix()), contents)

    rows = []
    for rel_path, record in known.items():
        content = contents.get(rel_path)
        if content is None:
            digest = None
        elif machine.stored:
            digest = hashlib.sha256(content).hexdigest()
        else:
            digest = _put(folder, rel_path, content)
        if digest is None:
            stats.skipped += 1
        elif rel_path in computed:
            stats.computed += 1
        else:
            stats.cached += 1
        leader = record["inherited_from"] or rel_path
        failed = digest is None and rel_path in wanted
        rows.append(Proposed(rel_path, record["sha256"], leader, digest, failed))
        stats.progress()
    write_manifest(manifest, rows)


def _put(folder: Path, rel_path: str, content: bytes) -> str | None:
    """Write a sidecar and return its SHA-256; None if the disk cannot have a file of its name."""
    try:
        write_if_changed(sidecar_path(folder, rel_path), content)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        logging.warning("%s: no sidecar, %s.xmp: %s", rel_path, rel_path, error.strerror)
        return None
    return hashlib.sha256(content).hexdigest()


def _store(place: str, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Put sidecars below a place in a bucket; those whose names can be keys."""
    keys = {rel_path: sidecar_path(Path(), rel_path).as_posix() for rel_path in contents}
    stored = {}
    for rel_path, key in keys.items():
        if buckets.can_be_key(key):
            stored[rel_path] = contents[rel_path]
        else:
            logging.warning("%s: no sidecar: its name cannot be one in a bucket", rel_path)
    buckets.write(place, {keys[rel_path]: content for rel_path, content in stored.items()})
    return stored


def _contents(
    wanted: Mapping[str, Merged], cache: Path, threads: int, stats: Stats
) -> tuple[dict[str, bytes], set[str]]:
    """The sidecars' bytes by photo, from the cache or ExifTool, and the photos that needed it.

    A sidecar that ExifTool would not write is missing, with a warning in the log.
    """
    if not wanted:
        return {}, set()
    version = exiftool_version(cache)
    paths = {rel_path: _kept_at(cache, version, merged) for rel_path, merged in wanted.items()}
    contents: dict[str, bytes] = {}
    missing: dict[Path, str] = {}  # equal values share a file: only the first photo is written
    computed = set()
    for rel_path, path in paths.items():
        content = None if path in missing else _kept(path)
        if content is None:
            missing.setdefault(path, rel_path)
            computed.add(rel_path)
        else:
            contents[rel_path] = content

    made: dict[Path, bytes] = {}
    items = [
        xmp.Item(name, None, wanted[name].values, wanted[name].marks) for name in missing.values()
    ]
    for path, content in zip(missing, xmp.write_all(items, threads), strict=True):
        if isinstance(content, xmp.WriteFailure):
            logging.warning("%s", content.message)
            continue
        _keep(path, content)
        made[path] = content
        stats.progress()
    computed = {rel_path for rel_path in computed if paths[rel_path] in made}
    return contents | {rel_path: made[paths[rel_path]] for rel_path in computed}, computed


def _kept_at(cache: Path, version: str, merged: Merged) -> Path:
    recipe = json.dumps([xmp.RECIPE, version, merged.values, marks.tags(merged.marks)])
    key = hashlib.sha256(recipe.encode()).hexdigest()
    return cache / key[:2] / key


def _keep(path: Path, content: bytes) -> None:
    """Keep a sidecar that holds what it should, after a line with its SHA-256."""
    keep(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _kept(path: Path) -> bytes | None:
    """A kept sidecar; None if there is none, or not whole."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return content if hashlib.sha256(content).hexdigest().encode() == digest else None


def exiftool_version(cache: Path) -> str:
    """ExifTool's version, remembered in `cache` for as long as the executable stays the same."""
    executable = Path(find_exiftool()).resolve()
    stat = executable.stat()
    identity = [str(executable), stat.st_size, stat.st_mtime_ns]
    note = cache / "exiftool.json"
    try:
        known = json.loads(note.read_text("utf-8"))
        if known["executable"] == identity:
            return known["version"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    result = subprocess.run(
        [executable, "-config", "", "-ver"], capture_output=True, text=True, check=False
    )
    version = result.stdout.strip()
    if result.returncode or not version:
        raise UserError(f"{executable}: does not run ({result.stderr.strip() or 'no version'})")
    keep(note, json.dumps({"executable": identity, "version": version}) + "\n")
    return version


if __name__ == "__main__":
    with job(snakemake) as stats:
        sidecars(
            Path(snakemake.input.records),
            Path(snakemake.output.manifest),
            machine=Machine.load(snakemake.params.machine),
            fields=snakemake.params.fields,
            carry_over=snakemake.params.carry_over,
            threads=snakemake.threads,
            stats=stats,
        )
