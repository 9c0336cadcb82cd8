"""Processes that outlive the one that started them: is it still the same, and is its group gone?

A number is given to another process sooner or later, so a process is known by its number and the
time it started. The numbers of a group and of its session, however, are those of the processes that
opened them, and are not given away as long as one member lives.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK = 0.05


@dataclass(frozen=True)
class Process:
    """A process and when it started, in whatever unit this system tells it."""

    pid: int
    started: str


@dataclass(frozen=True)
class _Row:
    pid: int
    group: int
    started: str
    zombie: bool


def identify(pid: int) -> Process:
    """The process that has this number now.

    Raises ProcessLookupError if there is none.
    """
    row = _row(pid)
    if row is None:
        raise ProcessLookupError(pid)
    return Process(pid, row.started)


def alive(process: Process) -> bool:
    """Whether it is still running; a zombie, which only waits to be noticed, is not."""
    row = _row(process.pid)
    return row is not None and row.started == process.started and not row.zombie


def wait_until_gone(process: Process, seconds: float) -> bool:
    """Wait for its end; whether it came within `seconds`."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


def members(group: Process, session: Process) -> list[int]:
    """Living processes of the group and session that these two opened (and may have left)."""
    if any(_is_another(opener) for opener in (group, session)):
        return []
    pids = (row.pid for row in _rows() if row.group == group.pid)
    return [pid for pid in pids if _session(pid) == session.pid]


def _is_another(process: Process) -> bool:
    """Whether its number was given to another process."""
    row = _row(process.pid)
    return row is not None and row.started != process.started


def end(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Send it a signal, if it is still the same process."""
    if alive(process):
        _signal(os.kill, process.pid, number)


def end_group(group: Process, session: Process, grace: float) -> None:
    """SIGTERM to a whole group, after `grace` seconds SIGKILL to what is left of it."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        if not members(group, session):
            return
        _signal(os.killpg, group.pid, number)
        deadline = time.monotonic() + seconds
        while members(group, session) and time.monotonic() < deadline:
            time.sleep(_TICK)


def _signal(send: Callable[[int, int], None], pid: int, which: signal.Signals) -> None:
    try:
        send(pid, which)
    except ProcessLookupError:
        return


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _rows() -> Iterator[_Row]:
    """All living processes."""
    if _PROC.is_dir():
        pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())
        rows = (_row(pid) for pid in pids)
    else:
        rows = map(_parse_ps, _ps("-A").splitlines())
    return (row for row in rows if row and not row.zombie)


def _row(pid: int) -> _Row | None:
    if not _PROC.is_dir():
        return _parse_ps(_ps("-p", str(pid)).strip())
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # proc_pid_stat(5); the name in brackets may hold anything, also a bracket
    state, _, group, *rest = text.rpartition(")")[2].split()
    return _Row(pid, int(group), rest[16], state in "ZX")


def _ps(*which: str) -> str:
    """For systems without /proc, such as macOS."""
    command = ["ps", *which, "-o", "pid=,pgid=,stat=,lstart="]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _parse_ps(line: str) -> _Row | None:
    words = line.split(maxsplit=3)
    if len(words) < 4:
        return None
    pid, group, state, started = words
    return _Row(int(pid), int(group), started, state.startswith("Z"))
