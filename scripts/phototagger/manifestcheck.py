"""Have the manifests of the proposed sidecars what the records call for?"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phototagger import names
from phototagger.manifest import Proposed, read_manifest
from phototagger.proposal import propose

_LONGEST_NAME = 255 - len(".xmp")  # bytes of a file name that has room for a sidecar beside it
_LONGEST_PATH = 3000  # bytes; beyond it a sidecar may not fit below the work directory


class ManifestCheck:
    """Checks manifests beside the records, one at a time, in their order.

    `found` is called with what does not agree. If `manifests` is None, nothing is looked at.
    """

    def __init__(
        self,
        found: Callable[[str], None],
        manifests: Sequence[Path] | None,
        switches: Mapping[str, bool],
        carry_over: Sequence[str],
    ):
        self.count = 0  # sidecars
        self._found = found
        self._on = manifests is not None
        self._rows = _rows(manifests or ())
        self._row = next(self._rows, None)
        self._switches = switches
        self._carry_over = carry_over
        self._marked = switches.get("provenance") and switches.get("subject")
        self._without: list[str] = []

    def skip(self, rel_path: str) -> None:
        """Pass over a record that is wrong in itself."""
        if self._row is not None and self._row.rel_path == rel_path:
            self._row = next(self._rows, None)

    def record(self, record: dict[str, Any]) -> None:
        if not self._on:
            return
        rel_path, row = record["rel_path"], self._row
        if row is None or row.rel_path != rel_path:
            self._found(f"sidecars: {rel_path}: not in the manifest of its shard")
            return
        self._row = next(self._rows, None)
        self.count += row.sidecar_sha256 is not None
        leader = record["inherited_from"] or rel_path
        if (row.photo_sha256, row.leader) != (record["sha256"], leader):
            self._found(f"sidecars: {rel_path}: the manifest of its shard is of another record")
        wanted = self._has_news(record)
        if wanted and row.sidecar_sha256 is None:
            self._without.append(rel_path)
        if not wanted and row.sidecar_sha256 is not None:
            self._found(f"sidecars: {rel_path}: listed, but there is nothing to write")

    def _has_news(self, record: dict[str, Any]) -> bool:
        # most photos have a plain word that is not their own; the long way round for all others
        if self._marked and any(
            keyword["source"] != "person" and keyword["keyword"][0].isalnum()
            for keyword in record["keywords"]
        ):
            return True
        return propose(record, self._switches, self._carry_over) is not None

    def finish(self, folders: set[str]) -> None:
        """`folders`: all that have records."""
        if self._row is not None:
            self._found(f"sidecars: {self._row.rel_path}: listed, but there is no such record")
        for rel_path in self._without:
            if not _has_no_place(rel_path, folders):
                self._found(f"sidecars: {rel_path}: none, but there is something to write")


def _has_no_place(rel_path: str, folders: set[str]) -> bool:
    """Whether the file system may have no place for the photo's sidecar.

    Its name is too long, or a folder of photos has the name of a sidecar.
    """
    real = os.fsencode(names.decode(rel_path))
    return (
        len(real.rpartition(b"/")[2]) > _LONGEST_NAME
        or len(real) > _LONGEST_PATH
        or ".xmp/" in rel_path
        or any(f"{folder}/".startswith(f"{rel_path}.xmp/") for folder in folders)
    )


def _rows(manifests: Sequence[Path]) -> Iterator[Proposed]:
    for path in manifests:
        yield from read_manifest(path)
