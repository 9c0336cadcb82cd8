"""Model servers: started on demand, shared by the jobs of a machine, stopped when nobody uses them.

    with serve(setup, servers, log=Path("results/logs/server.log")) as served:
        ...  # ask served.base_urls

A server that somebody else runs (`servers.base_url`, a setup without a command, or one that already
answers at the setup's address) is waited for and used, never started or stopped. Else the first job
starts the setup's command, without a shell and bound to loopback; others join. It stays up as long
as a job uses it and `servers.idle` seconds longer; see `supervisor` for how that is kept.

In an allocation of a batch system, servers are shared by the jobs of that allocation only, listen
at any free port, and end before it does.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from phototagger import allocation, commandline, gpus, probe, processes
from phototagger.allocation import Allocation
from phototagger.errors import TransientError, UserError
from phototagger.machine import Servers
from phototagger.models import default_models_dir
from phototagger.runfolder import run_dir, scope, this_host
from phototagger.setups import Setup
from phototagger.supervisor import (
    CANNOT_RUN,
    Files,
    Order,
    State,
    is_leased,
    take,
    take_patiently,
)

if TYPE_CHECKING:
    import httpx

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
LOOPBACK = "127.0.0.1"
MODELS = "PHOTO_TAGGER_MODELS"
# Those that bind to all interfaces unless told otherwise, by the command or the environment.
_OPEN_BY_DEFAULT = ("vllm", "lmdeploy", "sglang", "llama.cpp")
_TAIL_LINES, _TAIL_BYTES = 15, 8192
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Served:
    """A server that answered with the wanted model."""

    base_urls: tuple[str, ...]  # one; several if servers.base_url names several
    model: str  # what to send as `model`
    version: str | None  # of the server program, as far as it tells
    instance: str  # changes when the server is started again
    own: bool  # started by us, so it may be stopped by us
    log: Path | None = None  # what an own server prints
    info: Mapping[str, Any] = field(default_factory=dict)  # what /v1/models (and /props) said
    files: Files | None = None  # of an own server


@contextmanager
def serve(
    setup: Setup,
    servers: Servers,
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cancelled: threading.Event | None = None,
) -> Iterator[Served]:
    """Yield a server that is ready for the setup's model, and keep it up meanwhile.

    A server that has to be started gets `env` (default: our environment) and appends what it prints
    to `log`. Blocks until it is ready: at most `servers.start_timeout` (or the setup's) seconds for
    an own one, `servers.busy_budget` for somebody else's. If another thread sets `cancelled`
    meanwhile, what was begun to start is stopped.

    Raises UserError, with the last lines of the log, if it cannot be had; TransientError if that
    may pass.
    """
    from phototagger.chat import api_key_of

    key = api_key_of(servers)
    environment = dict(os.environ if env is None else env)
    if servers.base_url or not setup.command:
        urls = servers.base_url or (setup.base_url,)
        yield _find(setup, urls, servers, key)
        return
    launch = _launch(setup, servers, environment, log, key, cancelled or threading.Event())
    served, lease = _join_or_start(launch)
    with lease or contextlib.nullcontext():
        yield served


def check_alive(served: Served) -> None:
    """Raise TransientError, with the last lines of its log, if an own server is gone."""
    if not served.files:
        return
    state = served.files.read()
    if state and state.instance == served.instance and processes.alive(state.server):
        return
    if state and state.instance == served.instance:
        processes.wait_until_gone(state.supervisor, GRACE)  # it writes the reason into the log
    raise TransientError(
        f"{served.files.slug}: the model server is gone; start the run again, what is done stays "
        f"done{_tail(served.log)}"
    )


def stop_idle(servers: Servers) -> list[str]:
    """Stop the servers of this machine (or allocation) that nobody uses; returns their slugs,
    sorted.

    Left-overs of a supervisor, or an allocation, that was killed are cleared away, too.
    """
    try:
        folder = run_dir(servers, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    _clear_left_overs(folder)
    return sorted(state.slug for state in _stop_unused(folder))


def stop_one(setup: Setup, servers: Servers) -> bool:
    """Stop a setup's server unless somebody uses it; whether it was stopped.

    Returns when it is gone, after `GRACE` seconds and a little at most.
    """
    try:
        folder = run_dir(servers, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return bool(_stop_unused(folder, lambda state: state.slug == setup.slug))


def make_way(servers: Servers) -> None:
    """`stop_idle` for those who need not know, nor fail, if it does not work."""
    try:
        stopped = stop_idle(servers)
    except (UserError, OSError) as error:
        logging.warning("idle model servers were left running: %s", error)
    else:
        if stopped:
            logging.info("stopped: %s", ", ".join(stopped))


# ---------------------------------------------------------------------------- somebody else's


def _find(setup: Setup, urls: Sequence[str], servers: Servers, key: str | None) -> Served:
    """Wait until one of the servers is ready; those that are not by then are left out."""
    deadline = time.monotonic() + servers.busy_budget
    pause, told = 0.1, False
    while True:
        looks = {}
        for url in urls:
            with probe.client(url, key) as http:
                looks[url] = probe.look(http, url, setup.health)
        if ready := [url for url, look in looks.items() if look.models]:
            break
        reasons = "; ".join(look.reason for look in looks.values())
        asked = [look.retry_after for look in looks.values() if look.retry_after is not None]
        wait = max(pause, min(asked, default=0))
        if all(look.final for look in looks.values()):
            raise UserError(f"{setup.slug}: {reasons}")
        if time.monotonic() + wait > deadline:
            raise TransientError(
                f"{setup.slug}: no model server within {servers.busy_budget:g} s "
                f"(servers.busy_budget): {reasons}; start it, or correct servers.base_url"
            )
        if not told:
            logging.info("%s: waiting for the model server: %s", setup.slug, reasons)
            told = True
        time.sleep(wait)
        pause = min(2 * pause, 5.0)
    for url in set(urls) - set(ready):
        logging.warning("%s: %s is left out: %s", setup.slug, url, looks[url].reason)
    chosen = [probe.choose(looks[url].models, setup.model, url) for url in ready]
    if len({model["id"] for model in chosen}) > 1:
        names = ", ".join(f"{u}: {m['id']}" for u, m in zip(ready, chosen, strict=True))
        raise UserError(f"{setup.slug}: the servers serve different models ({names}); name one")
    with probe.client(ready[0], key) as http:
        return _served(setup, ready, chosen[0], http)


def _served(
    setup: Setup, urls: Sequence[str], model: Mapping[str, Any], http: "httpx.Client"
) -> Served:
    version, info = probe.describe(http, urls[0], model, setup.backend)
    instance = hashlib.sha256(json.dumps([*urls, info, version]).encode()).hexdigest()[:32]
    return Served(tuple(urls), model["id"], version, instance, own=False, info=info)


# ---------------------------------------------------------------------------------------- ours


@dataclass(frozen=True)
class _Launch:
    """Everything that is needed to start a setup's server."""

    setup: Setup
    servers: Servers
    command: commandline.Command  # bound to loopback; its port is not final
    env: Mapping[str, str]
    notes: tuple[str, ...]
    host: str
    log: Path
    folder: Path
    key: str | None = field(repr=False)
    cancelled: threading.Event
    place: Allocation | None

    @property
    def files(self) -> Files:
        return Files(self.folder, f"{self.setup.slug}@{scope(self.place)}")

    @property
    def line(self) -> str:
        """Digest of the command, whatever its port."""
        command = commandline.with_port(self.command, 0)
        text = json.dumps([command.argv, sorted(command.env.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def timeout(self) -> float:
        return self.servers.start_timeout or self.setup.start_timeout

    def base_url(self, port: int) -> str:
        return _at(self.setup.base_url, self.host, port)


def _launch(
    setup: Setup,
    servers: Servers,
    environment: dict[str, str],
    log: Path,
    key: str | None,
    cancelled: threading.Event,
) -> _Launch:
    """Take the setup's command apart.

    Raises UserError if it cannot be run here.
    """
    environment.setdefault(MODELS, str(default_models_dir()))
    here = str(Path(sys.executable).parent)  # programs of our environment come first
    environment["PATH"] = os.pathsep.join([here, environment.get("PATH", os.defpath)])
    # the API key must not get onto a command line
    known = {key: value for key, value in environment.items() if key != servers.api_key_env}
    command = commandline.parse(setup.command, known)
    command, host, notes = _on_loopback(command, setup)
    environment |= command.env
    program = shutil.which(command.argv[0], path=environment["PATH"])
    if program is None:
        raise UserError(
            f"{setup.slug}: {command.argv[0]}: command not found; install it, put it on the PATH, "
            "or start the server yourself and name it by servers.base_url"
        )
    return _Launch(
        setup,
        servers,
        command,
        environment,
        notes,
        host,
        log.absolute(),
        run_dir(servers),
        key,
        cancelled,
        allocation.current(),
    )


def _on_loopback(
    command: commandline.Command, setup: Setup
) -> tuple[commandline.Command, str, tuple[str, ...]]:
    """The command bound to loopback, the address to reach it at, and what there is to say about it.

    A setup whose base URL is not on loopback wants to be reached from outside, and keeps its
    address.
    """
    host = urlsplit(setup.base_url).hostname or LOOPBACK
    if not probe.is_loopback(host):
        return command, host, ()
    told = command.host()
    if told is None and setup.backend not in _OPEN_BY_DEFAULT:
        return command, LOOPBACK, ()
    if told and told != "localhost" and probe.is_loopback(told):
        return command, told, ()
    note = f"bound to {LOOPBACK} instead of {told or 'all interfaces'}"
    return commandline.with_host(command, LOOPBACK), LOOPBACK, (note,)


def _join_or_start(launch: _Launch) -> tuple[Served, IO[bytes] | None]:
    """A ready server and our lease on it (None for somebody else's)."""
    files = launch.files
    _clear_left_overs(launch.folder)
    with take_patiently(files.lock, launch.cancelled):
        state = files.read()
        if state and not (_runs(state) and (_is_owned(state) or is_leased(files))):
            _clear(files, state)
            state = None
        if state and state.line != launch.line:
            if is_leased(files):
                raise TransientError(
                    f"{state.slug}: in use on this machine with another command; wait for that run "
                    "to end, or use another servers.run_dir"
                )
            _clear(files, state)
            state = None
        if state is None:
            # two want one port
            with take_patiently(launch.folder / f"{this_host()}.start", launch.cancelled):
                found = _start(launch)
            if isinstance(found, Served):
                return found, None
            state = found
        elif launch.place and launch.place.owner not in state.owners:
            state = replace(state, owners=(*state.owners, launch.place.owner))
            files.write(state)
        try:
            served = _wait_until_ready(launch, state)
        except BaseException:
            if not is_leased(files):
                _clear(files, state)
            raise
        return served, take(files.lease, fcntl.LOCK_SH)


def _start(launch: _Launch) -> State | Served:
    """Start the command under a supervisor; somebody else's server if one is already there."""
    port = _port(launch)
    base_url = launch.base_url(port)
    _make_room(launch, base_url)
    if not _any_port(launch) and (found := _already_there(launch, base_url)):
        return found
    files, instance = launch.files, uuid.uuid4().hex
    command = commandline.with_port(launch.command, port)
    lease = gpus.wait_for(launch.setup.gpus, launch.servers, launch.env, launch.cancelled)
    order = Order(
        folder=str(files.folder),
        name=files.name,
        argv=command.argv,
        env={**launch.env, **command.env, **lease.environment},
        idle=launch.servers.idle,
        grace=GRACE,
        notes=(f"starting {launch.setup.command}", f"on port {port}", *launch.notes),
        slug=launch.setup.slug,
        instance=instance,
        line=launch.line,
        base_url=base_url,
        gpus=launch.setup.gpus,
        log=str(launch.log),
        owner=launch.place.owner if launch.place else None,
        ends=launch.place.ends if launch.place else None,
    )
    with contextlib.closing(lease):  # the supervisor holds it from here on
        supervisor = _spawn(order, lease.descriptors)
    while (state := files.read()) is None or state.instance != instance:
        if (status := supervisor.poll()) is not None:
            kind = UserError if status == CANNOT_RUN else TransientError  # that ended at once
            raise kind(f"{launch.setup.slug}: the server did not start{_tail(launch.log)}")
        time.sleep(0.02)
    return state


def _spawn(order: Order, descriptors: Sequence[int] = ()) -> "subprocess.Popen[bytes]":
    """The order's supervisor; it and its guard keep the descriptors open, the server does not."""
    log = Path(order.log)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # not what the last one printed
    except OSError as error:
        raise TransientError(
            f"{log}: the server's log cannot be written ({error.strerror}); make room for it"
        ) from error
    scripts = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "phototagger.supervisor"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=descriptors,
        )
    with contextlib.suppress(BrokenPipeError), supervisor.stdin as pipe:
        pipe.write(json.dumps(asdict(order)).encode())
    threading.Thread(target=supervisor.wait, daemon=True).start()  # leave no zombie
    return supervisor


def _wait_until_ready(launch: _Launch, state: State) -> Served:
    """Wait for health and the model.

    Raises UserError if it serves something else; TransientError if it ends, takes too long, or
    nobody waits for it any more.
    """
    setup, began, pause = launch.setup, time.monotonic(), 0.02
    with probe.client(state.base_url, launch.key) as http:
        while True:
            look = probe.look(http, state.base_url, setup.health, own=True)
            seconds = time.monotonic() - began
            if not processes.alive(state.server):
                processes.wait_until_gone(state.supervisor, GRACE)  # it notes how it ended
                reason = f"the server ended after {seconds:.1f} s"
                raise _failed(launch, state, reason, TransientError)
            if look.models:
                break
            if look.final:
                raise _failed(launch, state, look.reason)
            if seconds > launch.timeout:
                reason = f"not ready after {launch.timeout:g} s (servers.start_timeout)"
                raise _failed(launch, state, f"{reason}: {look.reason}", TransientError)
            if launch.cancelled.wait(pause):
                raise TransientError(f"{setup.slug}: stopped while its server was starting")
            pause = min(1.5 * pause, 1.0)
        try:
            model = probe.choose(look.models, setup.model, "it")
        except UserError as error:
            raise _failed(launch, state, str(error)) from None
        served = _served(setup, [state.base_url], model, http)
    return Served(
        served.base_urls,
        served.model,
        served.version,
        state.instance,
        own=True,
        log=Path(state.log),
        info=served.info,
        files=launch.files,
    )


def _failed(
    launch: _Launch, state: State, reason: str, kind: type[UserError] = UserError
) -> UserError:
    return kind(f"{launch.setup.slug}: {reason}{_tail(Path(state.log))}")


def _any_port(launch: _Launch) -> bool:
    """Whether any free port will do: on a node, other allocations may have the setup's own."""
    if launch.servers.port is not None:
        return launch.servers.port == 0
    return launch.place is not None and probe.is_loopback(launch.host)


def _port(launch: _Launch) -> int:
    """The port to listen on."""
    wanted = 0 if _any_port(launch) else launch.servers.port
    if wanted is None:
        parts = urlsplit(launch.setup.base_url)
        return launch.command.port() or parts.port or (443 if parts.scheme == "https" else 80)
    if wanted:
        return wanted
    with socket.socket() as anywhere:
        anywhere.bind((LOOPBACK, 0))
        return anywhere.getsockname()[1]


def _make_room(launch: _Launch, base_url: str) -> None:
    """Stop idle servers of other setups that have our port, or a GPU if we need one.

    Raises TransientError if one that is in use has our port.
    """

    def in_the_way(state: State) -> bool:
        # Where GPUs can be told apart, `gpus` sees to it that one is free.
        rival = launch.setup.gpus and state.gpus and not gpus.visible(launch.env)
        return state.base_url == base_url or bool(rival)

    _stop_unused(launch.folder, in_the_way)
    for files in _all_files(launch.folder):
        state = files.read()
        if state and state.base_url == base_url:
            raise TransientError(
                f"{launch.setup.slug}: {base_url} belongs to the setup {state.slug}, which is in "
                "use; give each its own port (servers.port: 0 for any free one)"
            )


def _already_there(launch: _Launch, base_url: str) -> Served | None:
    """Somebody else's server with the wanted model at our address; None if nobody listens.

    Raises TransientError if another program, or another model, has the port.
    """
    setup, port = launch.setup, urlsplit(base_url).port
    try:
        socket.create_connection((launch.host, port), timeout=2).close()
    except OSError:
        return None
    with probe.client(base_url, launch.key) as http:
        deadline = time.monotonic() + launch.servers.busy_budget
        while True:
            look = probe.look(http, base_url, setup.health)
            if look.models or not look.busy or time.monotonic() > deadline:
                break
            time.sleep(look.retry_after or 0.5)
        why = look.reason
        if look.models:
            try:
                model = probe.choose(look.models, setup.model, base_url)
            except UserError as error:
                why = str(error)
            else:
                logging.info("%s: %s is already served there", setup.slug, base_url)
                return _served(setup, [base_url], model, http)
    raise TransientError(
        f"{setup.slug}: port {port} is taken by another program ({why}); "
        "stop it, or choose another port (servers.port, 0 for any free one)"
    )


# -------------------------------------------------------------------------------------- stopping


def _all_files(folder: Path) -> list[Files]:
    """Those of the servers of this machine (or allocation), running or left over."""
    here = scope(allocation.current())
    return [Files(folder, path.stem) for path in sorted(folder.glob(f"*@{here}.json"))]


def _clear_left_overs(folder: Path) -> None:
    """Clear away what allocations left on this machine that are over."""
    for path in sorted(folder.glob(f"*@{this_host()}.*.json")):
        files = Files(folder, path.stem)
        state = files.read()
        if state is None or _is_owned(state):
            continue
        with _briefly_locked(files, 0) as lock:
            state = files.read()
            if lock and state and not _is_owned(state) and not is_leased(files):
                _clear(files, state)


def _runs(state: State) -> bool:
    return processes.alive(state.supervisor) and processes.alive(state.server)


def _is_owned(state: State) -> bool:
    """Whether its allocation, if it has one, goes on."""
    return not state.owners or any(processes.alive(owner) for owner in state.owners)


def _stop_unused(folder: Path, wanted: Callable[[State], bool] = lambda state: True) -> list[State]:
    """Stop the servers that nobody uses, of those that are `wanted`; returns their states."""
    stopped = []
    for files in _all_files(folder):
        state = files.read()
        if state is None or not wanted(state):
            continue
        with _briefly_locked(files) as lock:
            state = files.read()
            if lock is None or state is None or is_leased(files):
                continue
            running = processes.alive(state.server)
            _clear(files, state)
            if running:
                stopped.append(state)
    return stopped


@contextmanager
def _briefly_locked(files: Files, seconds: float = 2.0) -> Iterator[IO[bytes] | None]:
    """Hold the lock, or None if somebody holds it for longer than a supervisor's look takes."""
    deadline = time.monotonic() + seconds
    while (lock := take(files.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
        if time.monotonic() > deadline:
            yield None
            return
        time.sleep(0.05)
    with lock:
        yield lock


def _clear(files: Files, state: State) -> None:
    """End a server and its supervisor, or what is left of them."""
    processes.end(state.supervisor)
    if not processes.wait_until_gone(state.supervisor, 2 * GRACE + 5):
        processes.end(state.supervisor, signal.SIGKILL)
    processes.end_group(state.server, state.supervisor, GRACE)
    files.forget(state.instance)


# --------------------------------------------------------------------------------------- details


def _at(base_url: str, host: str, port: int) -> str:
    """A base URL at another address; loopback by number, since localhost may mean ::1."""
    literal = f"[{host}]" if ":" in host else host
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(netloc=f"{literal}:{port}")).rstrip("/")


def _tail(log: Path | None) -> str:
    """The last lines of a log, to be put behind a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except (AttributeError, OSError):
        return ""
    lines = [line for line in _CONTROL.sub("", text).splitlines() if line.strip()]
    shown = "".join(f"\n  | {line[:300]}" for line in lines[-_TAIL_LINES:])
    return f"; the last lines of {log}:{shown}" if shown else ""
