"""Have the manifests of the proposed sidecars what the records call for?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phototagger.fields import KEYWORD_LISTS
from phototagger.manifest import Proposed, read_manifest
from phototagger.merge import folded
from phototagger.proposal import propose
from phototagger.xmp import clean_level


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
        self.failed = 0  # those that could not be written
        self._found = found
        self._on = manifests is not None
        self._rows = _rows(manifests or ())
        self._row = next(self._rows, None)
        self._switches = switches
        self._carry_over = carry_over
        self._marked = switches.get("provenance") and switches.get("subject")

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
        self.failed += row.failed
        leader = record["inherited_from"] or rel_path
        if (row.photo_sha256, row.leader) != (record["sha256"], leader):
            self._found(f"sidecars: {rel_path}: the manifest of its shard is of another record")
        wanted = self._has_news(record)
        listed = row.failed or row.sidecar_sha256 is not None
        if wanted and not listed:
            self._found(f"sidecars: {rel_path}: none, but there is something to write")
        if not wanted and listed:
            self._found(f"sidecars: {rel_path}: listed, but there is nothing to write")

    def _has_news(self, record: dict[str, Any]) -> bool:
        # most photos have a keyword that is not their own; the long way round for all others
        if self._marked:
            inside = record.get("embedded") or {}
            theirs = folded("\n".join(v for tag in KEYWORD_LISTS for v in inside.get(tag, ())))
            ours = (k["keyword"] for k in record["keywords"] if k["source"] != "person")
            if any(word and folded(word) not in theirs for word in map(clean_level, ours)):
                return True
        return propose(record, self._switches, self._carry_over) is not None

    def finish(self) -> None:
        if self._row is not None:
            self._found(f"sidecars: {self._row.rel_path}: listed, but there is no such record")


def _rows(manifests: Sequence[Path]) -> Iterator[Proposed]:
    for path in manifests:
        yield from read_manifest(path)
