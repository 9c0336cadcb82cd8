"""What other programs see of a photo, told by code that shares nothing with photo-tagger's own.

`immich`, `digikam`, `photoprism` and `lightroom` follow what those programs' sources and manuals
say they read, and in which order; exiv2, Exempi and darktable are the real ones.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """What a program shows of one photo; hierarchies as it shows them."""

    keywords: tuple[str, ...] = ()
    description: str = ""
    title: str = ""

    def words(self) -> set[str]:
        """Every keyword, and every level of one, as a person may search for it."""
        levels = {
            level for word in self.keywords for level in word.replace("|", "/").split("/") if level
        }
        return levels | set(self.keywords)


def sidecar(photo: Path, *, names: tuple[str, ...] = ("full", "stem")) -> Path | None:
    """The first sidecar that exists: `IMG.jpg.xmp` (full), `IMG.xmp` (stem)."""
    path = {"full": photo.with_name(f"{photo.name}.xmp"), "stem": photo.with_suffix(".xmp")}
    return next((path[name] for name in names if path[name].exists()), None)
