"""The folder of proposed sidecars, and the manifests that say what is proposed for each photo."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from phototagger import names
from phototagger.errors import UserError
from phototagger.files import write_atomic

_FAILED = "-"
_HEADER = "rel_path\tphoto_sha256\tleader\tsidecar_sha256\n"


@dataclass(frozen=True)
class Proposed:
    """One photo that has a record and was not left alone; paths are encoded (see `names`)."""

    rel_path: str
    photo_sha256: str
    leader: str  # rel_path of the photo of its capture group that was described; mostly itself
    sidecar_sha256: str | None  # of the proposal's bytes; None: there is none
    failed: bool = False  # there is none because it could not be written; the log says why


def sidecar_path(folder: Path, rel_path: str) -> Path:
    """Where the sidecar of a photo lies below `folder`: under the photo's real name and `.xmp`."""
    photo = names.local_path(folder, rel_path)
    return photo.with_name(f"{photo.name}.xmp")


def write_manifest(path: Path, rows: Iterable[Proposed]) -> None:
    """Write the rows in the order given."""
    lines = (f"{row.rel_path}\t{row.photo_sha256}\t{row.leader}\t{_sidecar(row)}\n" for row in rows)
    write_atomic(path, _HEADER + "".join(lines))


def _sidecar(row: Proposed) -> str:
    return row.sidecar_sha256 or (_FAILED if row.failed else "")


def read_manifest(path: Path) -> list[Proposed]:
    """The rows in record order. Raises UserError for a file that is no manifest."""
    try:
        header, *lines = path.read_text("utf-8").split("\n")
        if f"{header}\n" != _HEADER or lines.pop():
            raise ValueError("it is cut off, or of another version")
        rows = (line.split("\t") for line in lines)
        return [
            Proposed(name, photo, leader, None if own in ("", _FAILED) else own, own == _FAILED)
            for name, photo, leader, own in rows
        ]
    except ValueError as error:  # also what is not UTF-8, and rows of other lengths
        raise UserError(f"{path}: not a manifest ({error}); delete it and run again") from error
