"""Which files show the same picture: a photo after embedding, and what it was before.

Embedding changes a photo's SHA-256 and not its picture. What is kept by content (embeddings,
replies of models) is therefore kept by the SHA-256 under which a picture was first seen, which
`<cache>/pictures/ab/<sha256>` names for files that photo-tagger itself made of others, having
proven that their pictures are equal byte for byte. Of every other file it is its own SHA-256: what
another program saved may be another picture.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phototagger.files import write_atomic

_SHA256 = re.compile(r"[0-9a-f]{64}")


def picture_of(row: Mapping[str, Any]) -> str:
    """The SHA-256 by which is kept what was made of the picture of a row of the thumbs table."""
    return row.get("picture") or row["sha256"]


class Aliases:
    """The notes of one cache; without any, nothing is looked for."""

    def __init__(self, cache: Path):
        self._folder = cache / "pictures"
        self._any = self._folder.is_dir()

    def first(self, sha256: str) -> str:
        """The SHA-256 under which the picture in this file was first seen."""
        if not self._any:
            return sha256
        try:
            noted = self._path(sha256).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return sha256
        return noted if _SHA256.fullmatch(noted) else sha256

    def note(self, after: str, before: str) -> None:
        """The file `after` (SHA-256) was made from `before` and shows the same. Raises OSError."""
        first = self.first(before)
        if first != after:  # what was embedded was taken out again
            write_atomic(self._path(after), first + "\n")
            self._any = True

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256
