"""Capture groups: files of one folder and stem that show one picture, such as `IMG.CR3`, `IMG.jpg`.

The picture of a group is described once, from its leader; the other members inherit what is said.
The same stem alone proves nothing (`a.jpg` and `a.png` may well be two pictures), so members have
to agree in the moment they were taken or, where one does not know it, in what they look like.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

ALIKE_BITS = 10  # of 64 in which difference hashes of one picture may differ
# Who leads: what most programs open, and what was rendered as its maker wants it seen; then all
# other formats, which are RAW.
_RANKS = {"JPEG": 0, "HEIF": 1, "AVIF": 1, "TIFF": 2, "PNG": 3, "WEBP": 4}
_RANKS |= dict.fromkeys(("GIF", "BMP", "JPEG2000"), 5)
_RAW = 6

Row = Mapping[str, Any]  # of the thumbs table


def dhash(image: "Image.Image") -> str:
    """Difference hash of an upright picture: 64 bits as 16 hex digits.

    Bit by bit whether a pixel of the picture, scaled to 9 x 8 grey ones, is darker than its right
    neighbour (N. Krawetz, "Kind of Like That", 2013).
    """
    from PIL import Image

    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    pixels = grey.tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            at = 9 * row + column
            bits = bits << 1 | (pixels[at] < pixels[at + 1])
    return f"{bits:016x}"


def same_picture(a: Row, b: Row) -> bool:
    """Whether two rows (taken_at, dhash) can be one capture."""
    if a.get("taken_at") and b.get("taken_at"):
        return a["taken_at"] == b["taken_at"]
    if not (a.get("dhash") and b.get("dhash")):
        return False
    return (int(a["dhash"], 16) ^ int(b["dhash"], 16)).bit_count() <= ALIKE_BITS


@dataclass(frozen=True)
class Groups:
    """Who inherits from whom. Photos that stand alone lead themselves."""

    _leaders: Mapping[str, str] = field(default_factory=dict)  # member -> leader, leaders left out
    _members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clashes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Photo -> those that have its stem but show another picture."""

    def leader(self, rel_path: str) -> str:
        """The photo of the group that is described; mostly the photo itself."""
        return self._leaders.get(rel_path, rel_path)

    def members(self, leader: str) -> list[str]:
        """All photos of a leader's group: the leader, then the others by rank and path."""
        return [leader, *self._members.get(leader, ())]

    def sources(
        self, rows: Iterable[Row], fields: Iterable[str], asks: Callable[[Row, str], bool]
    ) -> dict[tuple[str, str], str]:
        """(rel_path, field) -> photo whose answer is inherited, where it is not a photo's own.

        `asks` says whether a photo lacks a field. The first of a group that does is asked, so a
        leader that has its own words for a field passes on no others.
        """
        lacking = {
            (row["rel_path"], name): self.leader(row["rel_path"])
            for row in rows
            for name in fields
            if asks(row, name)
        }
        found = {}
        for (rel_path, name), leader in lacking.items():
            source = next(m for m in self.members(leader) if (m, name) in lacking)
            if source != rel_path:
                found[rel_path, name] = source
        return found


def capture_groups(rows: Iterable[Row]) -> Groups:
    """Find the groups among rows of the thumbs table: rel_path, format, taken_at, dhash.

    The rows are those of photos that could be read and are not left alone.
    """
    by_stem: dict[str, list[Row]] = {}
    for row in rows:
        by_stem.setdefault(os.path.splitext(row["rel_path"])[0], []).append(row)
    leaders: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    clashes: dict[str, list[str]] = {}
    for same_stem in by_stem.values():
        if len(same_stem) == 1:
            continue
        groups: list[list[Row]] = []
        for row in sorted(same_stem, key=_rank):
            group = next((group for group in groups if same_picture(group[0], row)), None)
            if group is None:
                groups.append([row])
            else:
                group.append(row)
        for group in groups:
            leader, *others = (row["rel_path"] for row in group)
            if others:
                members[leader] = others
                leaders |= dict.fromkeys(others, leader)
            mine = {leader, *others}
            strangers = sorted(r["rel_path"] for r in same_stem if r["rel_path"] not in mine)
            if strangers:
                clashes |= dict.fromkeys(mine, strangers)
    return Groups(leaders, members, clashes)


def _rank(row: Row) -> tuple[int, str]:
    return _RANKS.get(row.get("format"), _RAW), row["rel_path"]
