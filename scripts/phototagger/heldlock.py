"""A lock on a folder for as long as a process lives, also where other computers see no locks.

It is an flock on a file, which ends with its holder. On a file system that several computers share
an flock may bind one of them only (`nolock`, `local_lock`), or do nothing at all. So the file also
says who holds it, and is touched every few seconds: whoever gets the flock looks whether a holder
is noted there who, on this computer, still lives, or, on another one, still touches the file. That
is watched, not computed from times, because clocks differ.

Two that begin at the same moment without seeing each other's flock both write their name; the one
whose name does not stay there learns it with its next touch.
"""

import fcntl
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from phototagger.errors import UserError
from phototagger.flocks import NO_LOCKS
from phototagger.processes import Process, alive, identify

BEAT = 5.0  # seconds between touches
STALE = 30.0  # seconds without one after which a holder on another computer counts as dead
ENDING = 15.0  # seconds that what a killed holder left behind may take to end
SIGNING = 2.0  # seconds in which whoever has the flock signs; who only looks (`holder`) is gone
_TICK = 0.1

Owner = Mapping[str, Any]


class TakenError(UserError):
    """Somebody else holds the lock."""

    def __init__(self, path: Path, owner: Owner):
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        super().__init__(f"{path}: held by {who}")
        self.owner = owner
        self.who = who


@contextmanager
def hold(
    path: Path,
    say: Callable[[str], None] = logging.warning,
    lost: Callable[[Owner], None] | None = None,
) -> Iterator[int]:
    """Hold the lock; yields its file descriptor, for children that are to hold it, too.

    `say` is told why we wait. `lost` is called, in a thread, if somebody took the lock because we
    gave no sign of life, or began at the same moment.

    Raises TakenError, OSError if the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, say)
        token = _sign(descriptor)
        stop = threading.Event()
        beating = threading.Thread(
            target=_beat, args=(descriptor, path, token, stop, lost), daemon=True
        )
        beating.start()
        try:
            yield descriptor
        finally:
            stop.set()
            beating.join()
            with suppress(OSError):  # the file server is gone; what was done counts
                if _owner(path).get("token") == token:
                    os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(path: Path) -> Owner | None:
    """Who holds the lock at the moment; None if nobody."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _owner(path)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            touched = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    owner = _owner(path)
    if not owner:
        return None
    if _is_here(owner):
        return owner if _lives(owner) else None
    return owner if _clock_of(path.parent) - touched < STALE else None


def _acquire(descriptor: int, path: Path, say: Callable[[str], None]) -> None:
    ending = None  # when what a killed holder left behind is given up on
    signing = time.monotonic() + SIGNING
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = _owner(path)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            break
        if not owner and time.monotonic() < signing:
            time.sleep(_TICK)
            continue
        killed = owner and _is_here(owner) and not _lives(owner)
        if not killed or (ending and time.monotonic() > ending):
            raise TakenError(path, owner)
        if ending is None:
            ending = time.monotonic() + ENDING
            say("the last run was killed; clearing it away")
        time.sleep(_TICK)
    owner = _owner(path)
    if not owner:
        return
    if _is_here(owner):
        if _lives(owner):  # there are no locks, or none that hold
            raise TakenError(path, owner)
        if not _holds(path):
            say(f"the last run was killed; waiting {ENDING:g} s for what it left")
            time.sleep(ENDING)
        return
    say(
        f"{path}: waiting {STALE:g} s to see whether the run of process {owner.get('pid')} on "
        f"{owner.get('host')} still lives"
    )
    if _is_touched(path):
        raise TakenError(path, owner)
    say(f"{path}: no sign of life; taken over")


def _sign(descriptor: int) -> str:
    token = uuid.uuid4().hex
    me = identify(os.getpid())
    owner = {
        "pid": me.pid,
        "born": me.started,
        "host": os.uname().nodename,
        "computer": _computer(),
        "started": time.time(),
        "token": token,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)  # for others to see
    return token


def _beat(
    descriptor: int,
    path: Path,
    token: str,
    stop: threading.Event,
    lost: Callable[[Owner], None] | None,
) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # the file server is gone for a while
            owner = _owner(path)
            if owner and owner.get("token") != token:
                if lost:
                    lost(owner)
                return
            os.utime(descriptor)  # the file server's time where it has one


def _is_touched(path: Path) -> bool:
    """Whether somebody touches the file within `STALE` seconds."""
    before = _touched(path)
    deadline = time.monotonic() + STALE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE / 10))
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int:
    with path.open("rb") as file:  # opening asks the file server; a stat may not
        return os.fstat(file.fileno()).st_mtime_ns


def _owner(path: Path) -> Owner:
    """Who has signed the file; empty if nobody has, or is just about to."""
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner: Owner) -> bool:
    return owner.get("computer") == _computer()


def _lives(owner: Owner) -> bool:
    return alive(Process(int(owner["pid"]), str(owner["born"])))


def _computer() -> str:
    """This host since it was started, as far as its processes are seen from here (containers)."""
    parts = [os.uname().nodename]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _holds(path: Path) -> bool:
    """Whether a lock of this file keeps another descriptor of ours out."""
    with path.open("rb") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _clock_of(folder: Path) -> float:
    """The time by the clock that stamps new files there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
