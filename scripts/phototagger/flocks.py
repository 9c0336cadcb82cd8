"""File locks (flock), also where a file system has none."""

import errno
import fcntl
import time

_TICK = 0.02

# What a file system without locks answers; NFS wants a file opened for writing (EBADF).
NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def wait_for_lock(descriptor: int, seconds: float) -> bool:
    """Lock an opened file for ourselves; False if others hold it for `seconds`, or there are no
    locks. For what is right without the lock, and only cheaper with it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_TICK)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
