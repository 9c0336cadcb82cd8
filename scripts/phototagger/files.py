"""Files that are whole or not there: written under a temporary name, then renamed."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CHUNK = 1 << 20


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, else remove it.

    The temporary name keeps the suffix, since some writers choose the format by it, and is unique
    per host and process, so that two jobs on a shared file system never meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_atomic(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open `path` for writing so that readers see the old file or the whole new one."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with atomic(path) as temporary, temporary.open(mode, **text) as file:
        yield file


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` in one step."""
    with open_atomic(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_if_changed(path: Path, content: bytes | str) -> bool:
    """Write only if the bytes differ, so that an equal file keeps its time; say whether it did."""
    new = content.encode() if isinstance(content, str) else content
    try:
        if path.read_bytes() == new:
            return False
    except FileNotFoundError:
        pass
    write_atomic(path, new)
    return True


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_empty_folders(top: Path) -> None:
    """Remove the folders below `top` (and `top`) that hold nothing."""
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:
            continue
