"""Sidecars that lie beside photos: whose they are, and what a new one would be called.

A sidecar is named after its photo (`IMG.CR3.xmp`: digiKam, darktable, Immich) or after the stem
(`IMG.xmp`: Lightroom, Capture One). The second may be shared by several photos of a folder, of
which one owns it: the raw file, or the only photo of that stem. Endings match in any case, as they
do on disks that know no case; what is nobody's for certain (a darktable duplicate's
`IMG_01.CR3.xmp`, the sidecar of two different pictures) is nobody's.
"""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phototagger import names, xmp
from phototagger.rdf import MAX_BYTES
from phototagger.xmp import NotXmpError, Packet

SIDECAR = ".xmp"
LARGEST = MAX_BYTES  # of a sidecar that is read

# Proprietary ones, whose programs keep metadata in `IMG.xmp`; a DNG beside one is a copy of it.
_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".erf", ".fff", ".iiq", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".x3f"),
)
RAW = (*_RAW, ".dng")
# Rendered pictures, and which of them goes before which (as in `groups`).
_RANKS = {".jpg": 0, ".jpeg": 0, ".heic": 1, ".heif": 1, ".avif": 1}
_RANKS |= {".tif": 2, ".tiff": 2, ".png": 3, ".webp": 4}
# Pictures own sidecars whether or not the configuration counts them as photos.
_PICTURES = (*RAW, *_RANKS)

SameCapture = Callable[[list[str]], bool]


@dataclass(frozen=True)
class Targets:
    """The sidecars to write for one photo; without any, `kind` and `message` say why.

    Several that exist are to be compared: they are one person's two copies, or a conflict.
    """

    paths: tuple[Path, ...]
    kind: str | None = None  # no_sidecar, shared_stem
    message: str | None = None  # with the way out


def is_raw(name: str) -> bool:
    return name.lower().endswith(RAW)


class Folder:
    """The photos and sidecars of one folder, listed once.

    `files`: the names in it, for who knows; else it is listed, and OSError raised if it cannot be.
    """

    def __init__(self, path: Path, extensions: Sequence[str], files: Iterable[str] | None = None):
        self.path = path
        self._extensions = tuple(e.lower() for e in extensions)
        self._endings = {*self._extensions, *_PICTURES}
        self._sidecars: list[str] = []
        self._pictures: set[str] = set()
        for name in os.listdir(path) if files is None else files:
            ending = name[name.rfind(".") :].lower()
            if name[0] == ".":
                continue
            if ending == SIDECAR:
                self._sidecars.append(name)
            elif ending in self._endings:
                self._pictures.add(name)
        self._sidecars.sort()

    def _has_ending(self, name: str) -> bool:
        return name[name.rfind(".") :].lower() in self._endings

    @cached_property
    def photos(self) -> list[str]:
        """The names of the photos, by the extensions that are asked for, sorted."""
        return sorted(n for n in self._pictures if n.lower().endswith(self._extensions))

    def existing(self, photo: str, same_capture: SameCapture | None = None) -> list[Path]:
        """The sidecars that are this photo's: those with its own name, then those of its stem.

        They are named, not looked at: one may be a folder, or a link to nowhere.
        """
        return [self.path / name for name in self.sidecar_names(photo, same_capture)]

    def sidecar_names(self, photo: str, same_capture: SameCapture | None = None) -> list[str]:
        """The names of `existing`."""
        found = self.by_photo.get(photo, [])
        stem = _stem(photo)
        shared = self._shared.get(stem)
        if shared and same_capture and self.owner(stem, same_capture) == photo:
            return found + shared
        return found

    def owner(self, stem: str, same_capture: SameCapture | None = None) -> str | None:
        """The picture of a stem that its `stem.xmp` belongs to: its only raw file, or without one
        its only picture; of several of one capture the first. None if that is for nobody to say.

        `same_capture` says of file names whether they show one picture; without it, no two do.
        """
        members = self._stems.get(stem, [])
        raws = [n for n in members if n.lower().endswith(_RAW)] or [n for n in members if is_raw(n)]
        able = sorted(raws or members, key=_rank)
        if len(able) == 1 or (able and same_capture and same_capture(able)):
            return able[0]
        return None

    @cached_property
    def by_photo(self) -> dict[str, list[str]]:
        """Picture -> its sidecars, of those that have any and need nobody to say whose they are."""
        named: dict[str, list[str]] = {}
        by_stem: dict[str, list[str]] = {}
        for sidecar in self._sidecars:
            if (base := sidecar[: -len(SIDECAR)]) in self._pictures:  # mostly, and fast
                named.setdefault(base, []).append(sidecar)
                continue
            photo, stem = self._whose(sidecar)
            if photo:
                named.setdefault(photo, []).append(sidecar)
            elif stem:
                by_stem.setdefault(stem, []).append(sidecar)
        for stem, sidecars in by_stem.items():
            if owner := self.owner(stem):
                named.setdefault(owner, []).extend(sidecars)
        return named

    @cached_property
    def _shared(self) -> dict[str, list[str]]:
        """Stem -> its sidecars, where several pictures could be meant."""
        found: dict[str, list[str]] = {}
        for sidecar in self._sidecars:
            photo, stem = self._whose(sidecar)
            if not photo and stem and not self.owner(stem):
                found.setdefault(stem, []).append(sidecar)
        return found

    def _whose(self, sidecar: str) -> tuple[str | None, str | None]:
        """The photo whose full name a sidecar has, or the stem whose name it has."""
        base = sidecar[: -len(SIDECAR)]
        if base in self._pictures:
            return base, None
        if self._has_ending(base):  # of one that is gone, or a duplicate's
            alike = self._any_case.get(base.lower(), ())
            return (alike[0] if len(alike) == 1 else None), None
        if base in self._stems:
            return None, base
        stems = self._stems_any_case.get(base.lower(), ())
        return None, stems[0] if len(stems) == 1 else None

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self._pictures):
            found.setdefault(_stem(name), []).append(name)
        return found

    @cached_property
    def _any_case(self) -> dict[str, list[str]]:
        return _by_lower(self._pictures)

    @cached_property
    def _stems_any_case(self) -> dict[str, list[str]]:
        return _by_lower(self._stems)

    def of_stem(self, stem: str) -> list[str]:
        """The pictures of a stem, sorted."""
        return self._stems.get(stem, [])

    def stem_sidecars(self, stem: str) -> list[str]:
        """The sidecars of a stem that are not one picture's for certain."""
        return self._shared.get(stem, [])

    def new_stem_name(self, stem: str) -> str | None:
        """`stem.xmp`, unless that would be the name of another photo's sidecar."""
        return None if self._has_ending(stem) else stem + SIDECAR


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _by_lower(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.lower(), []).append(name)
    return found


def _rank(name: str) -> tuple[int, str]:
    """Which picture of a capture stands for the others: renderings before raw, DNG last."""
    ending = os.path.splitext(name)[1].lower()
    return _RANKS.get(ending, 9 if ending == ".dng" else 8), name


# -------------------------------------------------------------------------------------- targets


def targets(folder: Folder, photo: str, naming: str, *, leader_of: Callable[[str], str]) -> Targets:
    """The sidecars that are to be written for a photo of this folder.

    `naming` (ext, stem, both) is for new ones: those that exist keep their names. `leader_of` gives
    the leader of a file name's capture group, the name itself for one that is alone or unknown.
    """

    def same_capture(members: list[str]) -> bool:
        return len({leader_of(name) for name in members}) == 1

    if existing := folder.existing(photo, same_capture):
        return Targets(tuple(existing))
    stem = _stem(photo)
    owner = folder.owner(stem, same_capture)
    shared = folder.stem_sidecars(stem)
    if shared and owner is None:
        message = (
            f"{names.encode(shared[0])} may belong to any of {_listed(folder.of_stem(stem))}; "
            f"rename it after the photo it belongs to, as in {names.encode(photo)}{SIDECAR}"
        )
        return Targets((), "shared_stem", message)
    named = folder.path / f"{photo}{SIDECAR}"
    if naming == "ext" or (naming == "both" and not is_raw(photo)):
        return Targets((named,))
    by_stem = folder.new_stem_name(stem) if owner == photo else None
    if naming == "both":
        return Targets((named, folder.path / by_stem) if by_stem else (named,))
    if is_raw(photo) and by_stem:
        return Targets((folder.path / by_stem,))
    stranger = owner is not None and not same_capture([photo, owner])
    return Targets((), *_no_stem_sidecar(folder, photo, owner, stranger=stranger))


def _no_stem_sidecar(
    folder: Folder, photo: str, owner: str | None, *, stranger: bool
) -> tuple[str, str]:
    """Why naming by stem gives a photo no sidecar: kind, and message."""
    stem = _stem(photo)
    sidecar = names.encode(stem + SIDECAR)
    if not is_raw(photo):
        message = "with naming stem only raw files have sidecars; use naming ext or mode embed"
        if stranger and owner in folder.photos:
            whose = f"{sidecar} is that of {names.encode(owner)}"
            message = f"{whose}, and some programs show it for this photo too; use naming ext"
        return "no_sidecar", message
    if owner and owner != photo:
        return "no_sidecar", f"{sidecar} is the sidecar of {names.encode(owner)}"
    others = [name for name in folder.of_stem(stem) if name != photo]
    whose = _listed(others) if others else f"a photo {names.encode(stem)}"
    return "shared_stem", f"{sidecar} would also be that of {whose}; use naming ext"


def _listed(photos: list[str]) -> str:
    return ", ".join(names.encode(name) for name in photos)


# -------------------------------------------------------------------------------------- reading


def read_sidecar(path: Path) -> bytes:
    """The bytes of a sidecar.

    Raises OSError, and NotXmpError for what is no regular file or larger than `LARGEST`.
    """
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise NotXmpError("not a regular file")
        if info.st_size > LARGEST:
            raise NotXmpError(f"{info.st_size} bytes, at most {LARGEST} are read")
        content = file.read(LARGEST + 1)
        while len(content) < info.st_size and (more := file.read(LARGEST)):
            content += more
        return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would make us wait for its writer


def read_packet(path: Path) -> Packet | None:
    """What a sidecar holds, or None if it cannot be read or is no XMP."""
    try:
        return xmp.parse(read_sidecar(path))
    except (OSError, NotXmpError):
        return None
