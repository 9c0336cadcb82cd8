"""Watches over one model server: stops it when nobody uses it, and never leaves it behind.

`server.serve` starts it as `python -m phototagger.supervisor` and writes an `Order` to its standard
input. It has a session of its own, so that it outlives the job that started it, and its server has
a process group of its own, so that all processes of the server end together.

Users hold a shared flock on `<name>.lease`, which a killed user loses by itself; whoever starts,
joins or stops a server holds an exclusive one on `<name>.lock`. Without either for `idle` seconds
the server is stopped: SIGTERM to its group, then SIGKILL. One that was started in an allocation of
a batch system ends at once, used or not, when the allocation is over: its owners (the outermost
processes of the jobs on this node) are gone, or its time is up.

Should the supervisor itself be killed, a guard (a process that sleeps on a pipe which only the
supervisor holds open) ends the group; should both be, the kernel sends the server SIGTERM (Linux).
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from phototagger import processes
from phototagger.errors import TransientError
from phototagger.files import write_atomic
from phototagger.processes import Process

CANNOT_RUN = 127  # exit status, as of a shell
_TICK = 0.2
_SPARE = 5.0  # seconds before an allocation ends by which all has to be gone
_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class State:
    """A server that was started: the content of `<name>.json`."""

    slug: str
    instance: str  # another one at every start
    line: str  # digest of the command, without its port
    base_url: str
    gpus: int
    log: str
    supervisor: Process
    server: Process
    owners: tuple[Process, ...] = ()  # of its users' allocation; none outside of one


@dataclass(frozen=True)
class Files:
    """The files of one setup in the run folder of this machine."""

    folder: Path
    name: str  # <slug>@<host>

    @property
    def slug(self) -> str:
        return self.name.rpartition("@")[0]

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def lease(self) -> Path:
        return self.folder / f"{self.name}.lease"

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.json"

    def read(self) -> State | None:
        """The state, whether or not its processes still live; None if there is none."""
        try:
            data = json.loads(self.state.read_text("utf-8"))
            pair = {key: Process(**data[key]) for key in ("supervisor", "server")}
            owners = tuple(Process(**owner) for owner in data["owners"])
            return State(**data | pair | {"owners": owners})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, state: State) -> None:
        write_atomic(self.state, json.dumps(asdict(state), indent=1) + "\n")

    def forget(self, instance: str) -> None:
        """Remove the state, unless another server has taken the place."""
        state = self.read()
        if state is None or state.instance == instance:
            self.state.unlink(missing_ok=True)


@dataclass(frozen=True)
class Order:
    """What is to be started, and how long it may idle."""

    folder: str
    name: str  # of the files
    argv: Sequence[str]
    env: Mapping[str, str]
    idle: float  # seconds
    grace: float  # seconds between SIGTERM and SIGKILL
    notes: Sequence[str]  # for the log
    slug: str
    instance: str
    line: str
    base_url: str
    gpus: int
    log: str
    owner: Process | None = None  # the server ends with it; see `allocation`
    ends: float | None = None  # seconds since 1970: the server has to be gone by then

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Order":
        owner = data["owner"] and Process(**data["owner"])
        return cls(**{**data, "owner": owner})


class _StopError(Exception):
    """A signal asked us to end."""


def take(path: Path, mode: int) -> IO[bytes] | None:
    """Open `path` with an flock; None if somebody else's does not allow it (with LOCK_NB)."""
    file = path.open("ab")
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        file.close()
        return None
    return file


def take_patiently(path: Path, cancelled: threading.Event) -> IO[bytes]:
    """Open `path` with an exclusive flock, as soon as nobody else has one.

    Raises TransientError if it is `cancelled` first.
    """
    pause = 0.01
    while (lock := take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
        if cancelled.wait(pause):
            raise TransientError(f"{path}: stopped while waiting for another job")
        pause = min(2 * pause, _TICK)
    return lock


def is_leased(files: Files) -> bool:
    """Whether somebody uses the server; as long as we hold the lock, nobody can begin to."""
    lease = take(files.lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lease is None:
        return True
    lease.close()
    return False


def main() -> int:
    """Start what standard input orders, watch it, and return the server's exit status."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    order = Order.from_dict(json.load(sys.stdin))
    for number in _SIGNALS:
        signal.signal(number, _stop)
    files = Files(Path(order.folder), order.name)
    for note in order.notes:
        _say(note)
    began = time.monotonic()
    try:
        server = subprocess.Popen(
            order.argv,
            env=dict(order.env),
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_end_with_parent,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the command
        _say(f"{order.argv[0]} cannot be run: {getattr(error, 'strerror', None) or error}")
        return CANNOT_RUN
    us, group = processes.identify(os.getpid()), processes.identify(server.pid)
    try:
        _guard(group, us, order.grace)
        files.write(_state(order, us, group))
        reason, _lock = _watch(files, order, server)  # held until we end: nobody joins meanwhile
        _say(reason or f"it ended by itself: {_status(server.poll())}")
    except _StopError as reason:
        _say(f"stopped by {reason}")
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        processes.end_group(group, us, order.grace)  # all of it, also if the server itself is gone
        server.wait()
        files.forget(order.instance)
        _say(f"ended after {time.monotonic() - began:.0f} s")
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _stop(number: int, _: object) -> None:
    for each in _SIGNALS:  # Slurm sends it twice
        signal.signal(each, signal.SIG_IGN)
    raise _StopError(signal.Signals(number).name)


def _state(order: Order, supervisor: Process, server: Process) -> State:
    return State(
        slug=order.slug,
        instance=order.instance,
        line=order.line,
        base_url=order.base_url,
        gpus=order.gpus,
        log=order.log,
        supervisor=supervisor,
        server=server,
        owners=(order.owner,) if order.owner else (),
    )


def _watch(
    files: Files, order: Order, server: subprocess.Popen[bytes]
) -> tuple[str | None, IO[bytes] | None]:
    """Wait until the server ends by itself (None), or there is a reason to stop it: that, and the
    lock if we have it.
    """
    used, owner = time.monotonic(), order.owner
    while server.poll() is None:
        time.sleep(_TICK)
        lock = take(files.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if owner and not processes.alive(owner) and (owner := _next_owner(files, order)) is None:
            return "its allocation is over", lock
        if order.ends and time.time() > order.ends - order.grace - _SPARE:
            return "its allocation ends", lock
        if lock and not is_leased(files):
            if time.monotonic() - used >= order.idle:
                return f"nobody used it for {order.idle:g} s", lock
        else:
            used = time.monotonic()
        if lock:
            lock.close()
    return None, None


def _next_owner(files: Files, order: Order) -> Process | None:
    """Another process that stands for the allocation: steps of one may run side by side."""
    state = files.read()
    if state is None or state.instance != order.instance:
        return None
    return next((owner for owner in state.owners if processes.alive(owner)), None)


def _end_with_parent() -> None:
    """In the server, before its program: have the kernel end it should the supervisor be killed.

    SIGTERM, because a server that is killed cannot end processes of its own (vLLM has some).
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _guard(group: Process, session: Process, grace: float) -> None:
    """Fork a process that ends the group if we are killed."""
    read, write = os.pipe()  # closed in the server, as Python opens them close-on-exec
    if os.fork():
        os.close(read)
        return
    os.close(write)
    os.setsid()  # not reached by a signal to our group
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.read(read, 1)  # returns when the supervisor is gone
    processes.end_group(group, session, grace)
    os._exit(0)


def _status(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"status {code}" if code >= 0 else signal.Signals(-code).name


def _say(text: str) -> None:
    print(f"photo-tagger: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
