"""The folder of proposed sidecars, and the manifests that say which of them are current."""

from collections.abc import Iterable
from pathlib import Path

from phototagger import names
from phototagger.files import write_atomic

_HEADER = "rel_path\tsha256\n"


def sidecar_path(folder: Path, rel_path: str) -> Path:
    """Where the sidecar of a photo lies below `folder`: under the photo's real name and `.xmp`."""
    photo = names.local_path(folder, rel_path)
    return photo.with_name(f"{photo.name}.xmp")


def write_manifest(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (encoded rel_path of the photo, SHA-256 of its sidecar) rows in the order given."""
    write_atomic(path, _HEADER + "".join(f"{rel_path}\t{digest}\n" for rel_path, digest in rows))


def read_manifest(path: Path) -> dict[str, str]:
    """Encoded rel_path of the photo -> SHA-256 of its sidecar's bytes, in record order."""
    with path.open(encoding="utf-8", newline="\n") as file:
        next(file)
        rows = (line.rstrip("\n").split("\t", 1) for line in file)
        return dict(rows)
