"""Files that are whole or not there: written under a temporary name, then renamed."""

import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from phototagger import names
from phototagger.errors import TransientError, UserError

log = logging.getLogger(__name__)

CHUNK = 1 << 20

NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)  # a folder that we may read, not write

_FULL = "make room there and run again, what is done is kept"
_LOST = "see to the disk, mount or file server, and run again, what is done is kept"
# What can pass by itself, or be mended while the job waits for its next attempt.
_PASSING = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _LOST,
    errno.EREMOTEIO: _LOST,
    errno.ESTALE: _LOST,
    errno.ETIMEDOUT: _LOST,
    errno.ENOTCONN: _LOST,
    errno.EHOSTDOWN: _LOST,
    errno.EHOSTUNREACH: _LOST,
    errno.ESHUTDOWN: _LOST,
    errno.ENODEV: _LOST,
}
_STAYING = "allow writing there, or name another folder (--workdir, cache)"
_warned: set[Path] = set()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` on success, else remove it.

    The temporary name keeps the suffix, since some writers choose the format by it, and is unique
    per host and process, so that two jobs on a shared file system never meet. An OSError names
    `path`, whatever was being done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # some libraries name no file
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the reason why we are here matters more
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


def keep(path: Path, content: bytes | str) -> bool:
    """Put something into a cache; of one that may only be read, say so once, and go on without.

    Returns whether it was kept. Raises OSError if the disk is full or damaged.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        if path.parent.parent not in _warned:
            _warned.add(path.parent.parent)
            log.warning(
                "%s: cannot be written (%s); what is there is used, what is new is not kept and "
                "will be computed again; allow writing there, or name another folder (cache)",
                path.parent.parent,
                error.strerror,
            )
        return False
    return True


def explain(error: BaseException) -> UserError | None:
    """The line for a person about a disk, quota or mount that fails; None for any other error.

    A TransientError if trying again can help.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return None
    cause = os.strerror(error.errno).lower()
    where = error.filename if error.filename is not None else "a file"
    known = isinstance(where, (str, bytes, os.PathLike))
    where = names.encode(os.fsdecode(where)) if known else "a file"
    if way_out := _PASSING.get(error.errno):
        return TransientError(f"{where}: {cause}; {way_out}")
    if error.errno in NOT_OURS:
        return UserError(f"{where}: {cause}; {_STAYING}")
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Raise the line of `explain` instead of an OSError that it knows; also as a decorator."""
    try:
        yield
    except OSError as error:
        if told := explain(error):
            raise told from error
        raise


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
