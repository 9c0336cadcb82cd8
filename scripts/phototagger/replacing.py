"""Replacing a file in one step, only if it still is what was read, keeping what belongs to it."""

import errno
import hashlib
import os
import stat
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TEMPORARY = ".photo-tagger-"  # and 16 hexadecimal digits and `.tmp`: hidden, and no photo's ending

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class ChangedError(Exception):
    """The file is no longer what was read."""


@dataclass(frozen=True)
class Seen:
    """A file when it was read."""

    identity: tuple[int, ...]  # changes whenever the file does
    mode: int
    mtime_ns: int
    sha256: str
    content: bytes  # empty for a photo, of which only the SHA-256 was read


def temporary_name() -> str:
    return f"{TEMPORARY}{uuid.uuid4().hex[:16]}.tmp"


def see(path: Path, *, limit: int | None = None) -> Seen | None:
    """Read a regular file; None if there is none.

    Raises OSError, ValueError if it is no regular file or larger than `limit`, ChangedError.
    """
    try:
        # without O_NONBLOCK, a pipe of that name would have us wait
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("not a file")
        if limit is not None and info.st_size > limit:
            raise ValueError(f"{info.st_size} bytes, more than {limit}")
        content = file.read()
        if _identity(os.fstat(descriptor)) != _identity(info):
            raise ChangedError(path)
    return seen_as(info, hashlib.sha256(content).hexdigest(), content)


def seen_as(info: os.stat_result, sha256: str, content: bytes = b"") -> Seen:
    mode = stat.S_IMODE(info.st_mode)
    return Seen(_identity(info), mode, info.st_mtime_ns, sha256, content)


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def require(path: Path, seen: Seen | None) -> None:
    """Raises ChangedError unless the file at `path` still is what was seen (None: no file)."""
    try:
        info = path.stat()
    except FileNotFoundError:
        info = None
    if (info and _identity(info)) != (seen and seen.identity):
        raise ChangedError(path)


def write_temporary(path: Path, content: bytes) -> None:
    """Write a new file; not on disk yet, see `settle`. Raises OSError, with nothing left."""
    try:
        with open(path, "xb") as file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def settle(
    temporary: Path, like: Path | None, mode: int | None = None, mtime_ns: int | None = None
) -> None:
    """Give a temporary file the owner, extended attributes and mode of `like`, and have it on disk.

    `mode` and `mtime_ns` outrank those. Raises OSError if content, mode or time could not be set;
    owner and attributes are kept where this system and user can.
    """
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if like is not None and like.exists():  # else `place` will find that it is gone
            info = like.stat()
            own = os.fstat(descriptor)
            if (own.st_uid, own.st_gid) != (info.st_uid, info.st_gid):
                _give(descriptor, info.st_uid, info.st_gid)
            _copy_attributes(like, descriptor)
            mode = stat.S_IMODE(info.st_mode) if mode is None else mode
        if mode is not None:
            os.fchmod(descriptor, mode)
        if mtime_ns is not None:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give(descriptor: int, owner: int, group: int) -> None:
    """Set owner and group; where only the superuser may, the group at least."""
    try:
        os.fchown(descriptor, owner, group)
    except OSError:
        with suppress(OSError):
            os.fchown(descriptor, -1, group)


def _copy_attributes(source: Path, descriptor: int) -> None:
    if not hasattr(os, "listxattr"):
        return
    with suppress(OSError):
        for name in os.listxattr(source):
            with suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(source, name))


def copy(source: Path, path: Path, seen: Seen) -> None:
    """Copy a file as it was seen to a new one, whole and on disk on return.

    Raises ChangedError if it is not what was seen, OSError; then there is no copy.
    """
    temporary = path.with_name(temporary_name())
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file, temporary.open("xb") as copied:
            while content := file.read(1 << 20):
                digest.update(content)
                copied.write(content)
        if digest.hexdigest() != seen.sha256:
            raise ChangedError(source)
        settle(temporary, None, mtime_ns=seen.mtime_ns)
        temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def place(temporary: Path, target: Path, seen: Seen | None) -> None:
    """Put the temporary file in the target's place.

    Raises ChangedError if the target is not what was seen, OSError; the temporary file is left.
    """
    require(target, seen)
    if seen is not None:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, never replaces a file made meanwhile
    except FileExistsError as error:
        raise ChangedError(target) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(temporary, target)
        return
    with suppress(OSError):  # the target is in its place, whatever becomes of this name
        temporary.unlink()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(target: Path, seen: Seen) -> None:
    """Raises ChangedError if it is not what was seen, OSError."""
    require(target, seen)
    target.unlink()
