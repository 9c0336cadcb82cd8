"""Removal of results that no part of the plan asks for any more."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from phototagger import names
from phototagger.files import remove_empty_folders
from phototagger.manifest import read_manifest

# Per-shard outputs: folder below results/ -> suffix.
SHARD_OUTPUTS = {
    "thumbs": ".parquet",
    "embeddings": ".parquet",
    "scores": ".parquet",
    "records": ".jsonl",
    "problems": ".csv",
    "sidecars-manifest": ".tsv",
}
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")  # see files.atomic
_SHARD = re.compile(r"[0-9a-f]{10}")


def prune_sidecars(folder: Path, manifests: Iterable[Path]) -> int:
    """Remove the `.xmp` files below `folder` that no manifest lists, and folders left empty.

    Returns how many files were removed. Symbolic links are neither followed nor removed, and
    nothing is removed when a manifest cannot be read.
    """
    # hashes, since the names of a million photos are no small thing to keep
    wanted = {
        hash(f"{row.rel_path}.xmp")
        for manifest in manifests
        for row in read_manifest(manifest)
        if row.sidecar_sha256
    }
    if folder.is_symlink() or not folder.is_dir():
        return 0
    removed = 0
    for where, _, files in os.walk(folder):
        below = os.path.relpath(where, folder) + "/" if where != os.fspath(folder) else ""
        for name in files:
            if not name.endswith(".xmp") or hash(names.encode(below + name)) in wanted:
                continue
            path = Path(where, name)
            if not path.is_symlink():
                path.unlink()
                removed += 1
    remove_empty_folders(folder)
    return removed


def prune(
    shards: Iterable[str],
    setups: Iterable[str] = (),
    results: Path = Path("results"),
    *,
    sidecars: bool = True,
) -> int:
    """Remove what vanished shards, model setups that are no longer asked, and killed jobs left
    behind; called when a run has succeeded.

    Without `sidecars` (none are made any more) also those that no longer say what records say.
    Returns how many files were removed.
    """
    current, asked = set(shards), set(setups)
    gone = [
        path
        for folder, suffix in SHARD_OUTPUTS.items()
        for path in (results / folder).glob(f"*{suffix}")
        if path.stem not in current
    ]
    gone += [
        path
        for path in (results / "describe").glob("*/*.jsonl")
        if path.stem not in current or path.parent.name not in asked
    ]
    for kind in ("logs", "benchmarks"):
        gone += [
            path
            for path in (results / kind).glob("*/*.*")
            if _SHARD.fullmatch(path.stem) and path.stem not in current
        ]
        gone += [
            path
            for path in (results / kind / "describe").glob("*/*.*")
            if path.stem not in current or path.parent.name not in asked
        ]
    if not sidecars:
        gone += _outdated_manifests(results)
    gone += [path for path in _files(results) if _TEMPORARY.match(path.name)]
    for path in gone:
        path.unlink(missing_ok=True)
    for path in results.glob(".*.tmp"):  # folders that were being filled
        if _TEMPORARY.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)
    for folder in (results / "describe", results / "logs", results / "benchmarks"):
        if folder.is_dir():
            remove_empty_folders(folder)
    manifests = list((results / "sidecars-manifest").glob("*.tsv"))
    return len(gone) + prune_sidecars(results / "sidecars", manifests)


def _outdated_manifests(results: Path) -> Iterable[Path]:
    """Manifests older than the records that they were made of."""
    for manifest in (results / "sidecars-manifest").glob("*.tsv"):
        records = results / "records" / f"{manifest.stem}.jsonl"
        if records.exists() and records.stat().st_mtime_ns > manifest.stat().st_mtime_ns:
            yield manifest


def _files(folder: Path) -> Iterable[Path]:
    for where, _, found in os.walk(folder):
        yield from (Path(where) / name for name in found)
