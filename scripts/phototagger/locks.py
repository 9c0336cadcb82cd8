"""Folders that are being written to, locked between all processes and users of a host.

The lock is an flock on the opened folder itself: it leaves nothing behind, is the same lock by
whatever path or symlink the folder is reached, and ends with the process that holds it. Where the
file system or the folder's permissions do not allow that (NFS locks only files that are opened for
writing), a file in a private temporary folder stands for it, which keeps one user's processes on
one computer apart; a warning says so.

A lock binds only those who ask for it, and nothing depends on it alone. What other programs, or we
on another computer, do meanwhile is found by looking again just before a file is replaced.
"""

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from phototagger.errors import UserError
from phototagger.flocks import NO_LOCKS

PATIENCE = 10.0  # seconds before a person is told what we wait for

_warned = False


@contextmanager
def folder_locks(folders: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of all `folders`, waiting for others to release theirs.

    Everybody takes them in the same order, by device and inode, so that nobody waits in a circle.
    Folders that do not exist are left out. Not re-entrant: ask once for all that is needed.
    """
    wanted: dict[tuple[int, int], Path] = {}
    for folder in folders:
        try:
            info = folder.stat()
        except OSError:
            continue
        wanted.setdefault((info.st_dev, info.st_ino), folder)
    with ExitStack() as held:
        for _, folder in sorted(wanted.items()):
            descriptor = _locked(folder)
            if descriptor is not None:
                held.callback(os.close, descriptor)
        yield


def _locked(folder: Path) -> int | None:
    """An open, locked descriptor that stands for `folder`; None if it has just vanished."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:  # it cannot be listed, but files in it may still be known by name
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(f"{folder}: too many open files; allow more (ulimit -n 256)") from error
        return _stand_in(folder)
    try:
        _wait(descriptor, folder)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in NO_LOCKS:
            raise
        _warn(folder, error)
        return _stand_in(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _warn(folder: Path, error: OSError) -> None:
    global _warned
    if not _warned:
        _warned = True
        logging.warning(
            "%s: its file system has no locks for folders (%s); do not write to the same photos "
            "from two computers at a time",
            folder,
            error.strerror.lower(),
        )


def _stand_in(folder: Path) -> int:
    private = Path(tempfile.gettempdir()) / f"photo-tagger-locks-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(private / name, flags, 0o600)
    try:
        _wait(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    notice = threading.Timer(
        PATIENCE, logging.warning, ("%s: another process writes here; waiting for it", folder)
    )
    notice.daemon = True
    notice.start()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel queues us; asking again would not
    finally:
        notice.cancel()
