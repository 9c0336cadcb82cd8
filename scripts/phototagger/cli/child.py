"""Snakemake as a child process: one at a time per work directory, and never left behind.

The child has a session of its own, so that Ctrl-C reaches this program first. It is stopped by
SIGINT to its whole process group (SIGTERM can dead-lock Snakemake), then by SIGKILL. Should this
program itself be killed, a guard process does the same: it sleeps on a pipe that only we hold open.

The lock is an flock that child and guard inherit: however we end, it is held until the last of them
is gone, so the work directory needs no unlocking, and no second run meets left-overs of the first.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from phototagger.cli.errors import FailedError

LOCK = Path("results/plan/.lock")
GRACE = 10.0  # seconds between SIGINT and SIGKILL
_TICK = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def locked() -> Iterator[int]:
    """Hold the work directory's lock; yields its file descriptor, for the child to inherit.

    Raises FailedError if another run holds it.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor)
        owner = {"pid": os.getpid(), "host": os.uname().nodename, "started": time.time()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def holder() -> dict[str, str | int] | None:
    """Who runs in this work directory at the moment: pid, host, started; None if nobody."""
    try:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(descriptor)
    finally:
        os.close(descriptor)
    return None


def _acquire(descriptor: int) -> None:
    deadline = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = _owner(descriptor)
        if not _was_killed(owner) or (deadline and time.monotonic() > deadline):
            raise FailedError(
                f"{Path.cwd()}: another run is under way (process {owner.get('pid', '?')} on "
                f"{owner.get('host', '?')}); wait for it, stop it there, or use another --workdir"
            )
        if deadline is None:
            deadline = time.monotonic() + GRACE + 5
            print("photo-tagger: the last run was killed; clearing it away", file=sys.stderr)
        time.sleep(_TICK)


def _owner(descriptor: int) -> dict[str, str | int]:
    try:
        return json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return {}  # just being written


def _was_killed(owner: Mapping[str, str | int]) -> bool:
    if owner.get("host") != os.uname().nodename or "pid" not in owner:
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def run_child(
    command: Sequence[str],
    env: Mapping[str, str],
    output: Path,
    lock: int | None,
    tick: Callable[[bool], None],
) -> tuple[int, bool]:
    """Run `command` with its console output in `output`, calling `tick` about ten times a second
    with whether we are about to stop it.

    Returns its exit status and whether it was stopped by a signal to us.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as console, _signals() as received:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,) if lock is not None else (),
        )
        with _guarded(process.pid):
            try:
                status = _wait(process, received, tick)
            finally:
                _kill(process.pid, signal.SIGKILL)
                process.wait()
        return status, bool(received)


def _wait(process: subprocess.Popen, received: list[int], tick: Callable[[bool], None]) -> int:
    """Wait for the child; on a signal ask it to stop, insist after a while or a second signal."""
    deadline = None
    while process.poll() is None:
        if received and deadline is None:
            deadline = time.monotonic() + GRACE
            _kill(process.pid, signal.SIGINT)
        if deadline and (time.monotonic() > deadline or len(received) > 1):
            _kill(process.pid, signal.SIGKILL)
        tick(bool(received))
        time.sleep(_TICK)
    tick(bool(received))
    return process.returncode


def _kill(group: int, number: int) -> bool:
    """Signal a process group; False if nothing is left of it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextmanager
def _signals() -> Iterator[list[int]]:
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        ignored = before[number] is signal.SIG_IGN  # nohup, or `&` in a script: we go on
        signal.signal(number, _nothing if ignored else lambda n, _: received.append(n))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(*_: object) -> None:
    """Instead of SIG_IGN, which the child would inherit, so that it could not be interrupted."""


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Have a guard process stop `group` if we die before we leave this block."""
    sleep_end, our_end = os.pipe()
    guard = os.fork()
    if guard == 0:
        try:
            os.close(our_end)
            _guard(sleep_end, group)
        finally:
            os._exit(0)
    os.close(sleep_end)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(our_end, b"done")
        os.close(our_end)
        os.waitpid(guard, 0)


def _guard(sleep_end: int, group: int) -> None:
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # whoever reads our output must not wait for the guard
        os.dup2(nowhere, standard)
    if os.read(sleep_end, 4):
        return
    deadline = time.monotonic() + GRACE
    alive = _kill(group, signal.SIGINT)
    while alive and time.monotonic() < deadline:
        time.sleep(_TICK)
        alive = _kill(group, 0)
    _kill(group, signal.SIGKILL)
