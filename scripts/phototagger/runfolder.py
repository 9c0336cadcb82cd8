"""The private folder of this machine where jobs agree on model servers: locks, leases and states.

It has to be of this node: a lock that other machines see costs time, and one that a file server
forgets lets two jobs do the same thing at once.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import tempfile
from pathlib import Path

from phototagger import allocation
from phototagger.allocation import Allocation
from phototagger.errors import UserError
from phototagger.machine import Servers

log = logging.getLogger(__name__)

NAME = "photo-tagger"
_MOUNTS = Path("/proc/self/mountinfo")
# File systems that several machines see.
_SHARED = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"),
    *("afs", "panfs", "pvfs2", "orangefs", "wekafs", "vastfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs", "fuse.rclone"),
)


def run_dir(servers: Servers, create: bool = True) -> Path:
    """The folder, made if it is missing.

    Raises UserError if others can write there: whoever can decides which processes we end;
    FileNotFoundError if it is missing and not to be made.
    """
    folder = _place(servers)
    try:
        if create:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        found = folder.lstat()
        safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not safe or found.st_mode & 0o022:
            raise UserError(
                f"{folder}: has to be a folder of yours that nobody else can write to; "
                "remove it, or name another by servers.run_dir"
            )
        if create:
            _try_lock(folder / ".writable")
    except OSError as error:
        if not create:
            raise
        raise UserError(
            f"{folder}: locks cannot be kept there ({error.strerror}); name another folder by "
            "servers.run_dir"
        ) from error
    if create and (kind := shared_kind(folder)):
        log.warning("%s: is on %s; name a folder of this node by servers.run_dir", folder, kind)
    return folder


def private(folder: Path) -> Path:
    """A folder that is ours, made if it is missing; its parent has to be there.

    Raises OSError, above all PermissionError if others can have put something into it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        said = "belongs to somebody else, or others can write to it"
        raise PermissionError(errno.EPERM, said, str(folder))
    return folder


def this_host() -> str:
    """This machine's name in names of files; a run folder may be seen by several machines."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())


def scope(place: Allocation | None) -> str:
    """By whom a server is shared, in names of files: this machine, or its part of an allocation."""
    return f"{this_host()}.{place.id}" if place else this_host()


def _place(servers: Servers) -> Path:
    if servers.run_dir:
        return Path(servers.run_dir).expanduser().absolute()
    # A batch system hands on the login node's XDG_RUNTIME_DIR, which is not on the nodes.
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and allocation.current() is None:
        return Path(runtime) / NAME
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if os.access(parent, os.W_OK) and not shared_kind(Path(parent)):
            return Path(parent) / f"{NAME}-{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"


def _try_lock(path: Path) -> None:
    """Raises OSError where nothing can be written, or the file system has no locks."""
    with path.open("ab") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def shared_kind(folder: Path) -> str | None:
    """The kind of a file system that other machines see, too; None for one of this machine, and
    where that cannot be told.
    """
    try:
        lines = _MOUNTS.read_text("utf-8", "replace").splitlines()
        path = os.path.realpath(folder)
    except OSError:
        return None
    best, kind = "", None
    for line in lines:  # proc_pid_mountinfo(5): id parent dev root mountpoint options - type ...
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later one lies over an earlier
            best, kind = point, after.split(" ")[0]
    return kind if kind in _SHARED else None
