"""Snakemake as a child process: one at a time per work directory, and never left behind.

The child has a session of its own, so that Ctrl-C reaches this program first. It is stopped by
SIGINT to its whole process group (SIGTERM can dead-lock Snakemake), then by SIGKILL. Should this
program itself be killed, a guard process does the same: it sleeps on a pipe that only we hold open.

The lock is an flock that child and guard inherit: however we end, it is held until the last of them
is gone, so the work directory needs no unlocking, and no second run meets left-overs of the first.
(Where other computers do not see it, see `heldlock`.)
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phototagger import heldlock
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
    try:
        with heldlock.hold(LOCK, _say, _lost) as descriptor:
            yield descriptor
    except heldlock.TakenError as error:
        raise FailedError(
            f"{Path.cwd()}: another run is under way ({error.who}); "
            "wait for it, stop it there, or use another --workdir"
        ) from error


def holder() -> Mapping[str, Any] | None:
    """Who runs in this work directory at the moment: pid, host, started; None if nobody."""
    return heldlock.holder(LOCK)


def _say(text: str) -> None:
    print(f"photo-tagger: {text}", file=sys.stderr)


def _lost(owner: Mapping[str, Any]) -> None:
    """Another run has our folder (this computer slept, or its file server sees no locks): stop."""
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    _say(f"{Path.cwd()}: {who} runs here, too; this run stops. Start one at a time")
    os.kill(os.getpid(), signal.SIGTERM)


def run_child(
    command: Sequence[str],
    env: Mapping[str, str],
    output: Path,
    lock: int | None,
    tick: Callable[[bool], None],
    grace: float = GRACE,
) -> tuple[int, bool]:
    """Run `command` with its console output in `output`, calling `tick` about ten times a second
    with whether we are about to stop it, for which it has `grace` seconds.

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
        with _guarded(process.pid, grace):
            try:
                status = _wait(process, received, tick, grace)
            finally:
                _kill(process.pid, signal.SIGKILL)
                process.wait()
        return status, bool(received)


def _wait(
    process: subprocess.Popen, received: list[int], tick: Callable[[bool], None], grace: float
) -> int:
    """Wait for the child; on a signal ask it to stop, insist after a while or a second signal."""
    deadline = None
    while process.poll() is None:
        if received and deadline is None:
            deadline = time.monotonic() + grace
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
def _guarded(group: int, grace: float) -> Iterator[None]:
    """Have a guard process stop `group` if we die before we leave this block."""
    sleep_end, our_end = os.pipe()
    guard = os.fork()
    if guard == 0:
        try:
            os.close(our_end)
            _guard(sleep_end, group, grace)
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


def _guard(sleep_end: int, group: int, grace: float) -> None:
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # whoever reads our output must not wait for the guard
        os.dup2(nowhere, standard)
    if os.read(sleep_end, 4):
        return
    deadline = time.monotonic() + grace
    alive = _kill(group, signal.SIGINT)
    while alive and time.monotonic() < deadline:
        time.sleep(_TICK)
        alive = _kill(group, 0)
    _kill(group, signal.SIGKILL)
