"""Write the sidecar that each photo of a shard would get, as a proposal below `results/sidecars/`.

Nothing is written beside the photos. A photo without texts, and without keywords other than those
embedded in it, gets no sidecar. What ExifTool wrote is kept by content, so that a stale shard costs
only the photos whose keywords changed, and starts no process when there are none. Sidecars that
have not changed keep their time.

The manifest lists what the shard has: rel_path of the photo, SHA-256 of the sidecar.
"""

import errno
import hashlib
import json
import logging
import subprocess
from pathlib import Path

from phototagger import xmp
from phototagger.errors import UserError
from phototagger.files import write_atomic, write_if_changed
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.manifest import sidecar_path, write_manifest

SIDECARS = Path("results/sidecars")
CHUNK = 256  # sidecars per ExifTool process, a shard of the usual size

# The file system has no place for a sidecar of that name; other photos are not concerned.
_NO_PLACE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


def sidecars(
    records: Path,
    manifest: Path,
    *,
    machine: Machine,
    folder: Path = SIDECARS,
    stats: Stats | None = None,
) -> None:
    """Write the sidecars of a shard's records below `folder`, then the manifest.

    All sidecars are made and read back before the first one is put in its place. A photo whose
    name is too long for one is left out with a warning in the log.

    Raises UserError if ExifTool is missing, crashed, or did not write a photo's values.
    """
    stats = stats or Stats()
    values: dict[str, xmp.Values] = {}
    with records.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            stats.photos += 1
            values[record["rel_path"]] = xmp.sidecar_values(record)
    wanted = {rel_path: v for rel_path, v in values.items() if v}
    stats.skipped += len(values) - len(wanted)
    contents, computed = _contents(wanted, machine.cache / "sidecars", stats)

    rows = []
    for rel_path in wanted:
        content = contents[rel_path]
        try:
            write_if_changed(sidecar_path(folder, rel_path), content)
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            logging.warning("%s: no sidecar, %s.xmp: %s", rel_path, rel_path, error.strerror)
            stats.skipped += 1
            continue
        if rel_path in computed:
            stats.computed += 1
        else:
            stats.cached += 1
        rows.append((rel_path, hashlib.sha256(content).hexdigest()))
        stats.progress()
    write_manifest(manifest, rows)


def _contents(
    wanted: dict[str, xmp.Values], cache: Path, stats: Stats
) -> tuple[dict[str, bytes], set[str]]:
    """The sidecars' bytes by photo, from the cache or ExifTool, and the photos that needed it."""
    if not wanted:
        return {}, set()
    version = exiftool_version(cache)
    paths = {rel_path: _kept_at(cache, version, v) for rel_path, v in wanted.items()}
    contents: dict[str, bytes] = {}
    missing: dict[Path, str] = {}  # equal values share a file: only the first photo is written
    computed = set()
    for rel_path, path in paths.items():
        content = path.read_bytes() if path not in missing and path.exists() else b""
        if xmp.holds(content, wanted[rel_path]):
            contents[rel_path] = content
        else:
            missing.setdefault(path, rel_path)
            computed.add(rel_path)

    todo = list(missing.items())
    made: dict[Path, bytes] = {}
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        written = xmp.write_xmp([(rel_path, wanted[rel_path]) for _, rel_path in chunk])
        for (path, _), content in zip(chunk, written, strict=True):
            write_atomic(path, content)
            made[path] = content
        stats.progress()
    return contents | {rel_path: made[paths[rel_path]] for rel_path in computed}, computed


def _kept_at(cache: Path, version: str, values: xmp.Values) -> Path:
    recipe = json.dumps([xmp.RECIPE, version, list(xmp.assignments(values))])
    key = hashlib.sha256(recipe.encode()).hexdigest()
    return cache / key[:2] / f"{key}.xmp"


def exiftool_version(cache: Path) -> str:
    """ExifTool's version, remembered in `cache` for as long as the executable stays the same."""
    executable = Path(xmp.find_exiftool()).resolve()
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
    write_atomic(note, json.dumps({"executable": identity, "version": version}) + "\n")
    return version


if __name__ == "__main__":
    with job(snakemake) as stats:
        sidecars(
            Path(snakemake.input.records),
            Path(snakemake.output.manifest),
            machine=Machine.load(snakemake.params.machine),
            stats=stats,
        )
