"""The life of a model server, with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from phototagger import processes, server
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.server import Served, check_alive, serve, stop_idle
from phototagger.setups import Setup
from phototagger.supervisor import Files, State
from servers.conftest import tiny_server

MARK = "PHOTO_TAGGER_TEST"

# A server of a few lines, for what a real one cannot be made to do.
STUB = """
import http.server, json, os, signal, subprocess, sys, time
kind, port = sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1])
print("loading", kind, flush=True)
if kind == "crash":
    sys.exit("CUDA out of memory")
if kind == "hang":
    time.sleep(600)
if kind == "family":  # a child of its own, and neither minds SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        time.sleep(600)
since = time.time()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code, body = 200, {"data": [{"id": "other" if kind == "other" else "tiny-vlm"}]}
        if kind == "locked" and self.headers.get("Authorization") != "Bearer secret-key":
            code = 401
        if kind == "loading" and self.path == "/v1/models" and time.time() - since < 1:
            code = 503
        if kind == "page":
            code = 404
        self.send_response(code)
        self.send_header("Retry-After", "0.1")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process that a test started, directly or not, is there a few seconds later."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield
    deadline = time.monotonic() + 15
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def marked(mark: str) -> list[int]:
    """Living processes whose environment has the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{MARK}={mark}".encode() in (
                (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


@pytest.fixture
def stub(tmp_path: Path, tiny_setup: Setup) -> Callable[[str], Setup]:
    """The tests' setup with a server that misbehaves in a named way."""
    script = tmp_path / "stub.py"
    script.write_text(STUB)

    def make(kind: str) -> Setup:
        port = tiny_setup.base_url.split(":")[2].split("/")[0]
        return replace(tiny_setup, command=f"python {script} {kind} --port {port}", health=None)

    return make


def states(servers: Servers) -> list[State]:
    folder = Path(servers.run_dir)
    return [Files(folder, path.stem).read() for path in sorted(folder.glob("*.json"))]


def state_of(servers: Servers) -> State:
    (state,) = states(servers)
    return state


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_gone(state: State) -> bool:
    return not processes.alive(state.server) and not processes.alive(state.supervisor)


def models_of(served: Served) -> list[str]:
    data = httpx.get(f"{served.base_urls[0]}/models", trust_env=False).json()["data"]
    return [model["id"] for model in data]


def port_of(served: Served) -> int:
    return httpx.URL(served.base_urls[0]).port


# ------------------------------------------------------------------------------------- the normal


def test_started_used_shared_and_stopped(tiny_setup: Setup, servers: Servers, log: Path):
    with serve(tiny_setup, servers, log=log) as first:
        assert first.own
        assert first.model == "tiny-vlm"
        assert first.version
        assert first.info["props"]["modalities"]["vision"] is True
        assert models_of(first) == ["tiny-vlm"]
        check_alive(first)
        state = state_of(servers)
        with serve(tiny_setup, servers, log=log) as second:
            assert second.instance == first.instance
        time.sleep(2 * servers.idle)  # longer than it may idle, but it is in use
        check_alive(first)
        assert stop_idle(servers) == []
    wait_for(lambda: is_gone(state))
    wait_for(lambda: not states(servers))
    assert "starting python -m phototagger.tiny_server" in log.read_text()
    assert f"nobody used it for {servers.idle:g} s" in log.read_text()
    with pytest.raises(UserError, match="model server is gone"):
        check_alive(first)


def test_a_later_job_gets_the_server_of_an_earlier(tiny_setup: Setup, servers: Servers, log: Path):
    slow = replace(servers, idle=60)
    with serve(tiny_setup, slow, log=log) as first:
        pass
    with serve(tiny_setup, slow, log=log) as second:
        assert second == first
    state = state_of(slow)
    assert stop_idle(slow) == [tiny_setup.slug]
    assert is_gone(state)
    assert stop_idle(slow) == []
    with serve(tiny_setup, slow, log=log) as third:
        assert third.instance != first.instance
    assert stop_idle(slow) == [tiny_setup.slug]


def test_two_clients_at_once_start_one_server(tiny_setup: Setup, servers: Servers, log: Path):
    together = threading.Barrier(4)

    def client(_: int) -> str:
        together.wait()
        with serve(tiny_setup, servers, log=log) as served:
            together.wait()
            return served.instance

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(client, range(4)))) == 1
    assert log.read_text().count("starting python") == 1


def test_any_free_port(tiny_setup: Setup, servers: Servers, log: Path):
    with (
        serve(tiny_setup, replace(servers, port=0), log=log) as served,
        serve(tiny_setup, servers, log=log) as again,
    ):
        assert f":{port_of(served)}/" not in tiny_setup.base_url
        assert again.base_urls == served.base_urls


def test_bound_to_loopback_whatever_the_line_says(
    tiny_setup: Setup, servers: Servers, log: Path, free_port: int
):
    line = tiny_setup.command.replace("--host 127.0.0.1", "--host 0.0.0.0")
    with serve(replace(tiny_setup, command=f"nohup {line} > x.log 2>&1 &"), servers, log=log):
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{free_port:04X} 00000000:0000 0A" in listening
        assert f"00000000:{free_port:04X} 00000000:0000 0A" not in listening
    assert "bound to 127.0.0.1 instead of 0.0.0.0" in log.read_text()
    assert not Path("x.log").exists()


def test_a_setup_that_wants_to_be_reached_from_outside(
    tiny_setup: Setup, servers: Servers, log: Path, free_port: int
):
    setup = replace(
        tiny_setup,
        command=tiny_setup.command.replace("--host 127.0.0.1", "--host 0.0.0.0"),
        base_url=f"http://0.0.0.0:{free_port}/v1",
    )
    with serve(setup, servers, log=log):
        assert f"00000000:{free_port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def test_environment_of_the_line(tiny_setup: Setup, servers: Servers, log: Path):
    setup = replace(tiny_setup, command=f"OMP_NUM_THREADS=3 {tiny_setup.command}")
    with serve(setup, servers, log=log):
        environ = Path(f"/proc/{state_of(servers).server.pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=3" in environ
    assert f"PHOTO_TAGGER_MODELS={os.environ['PHOTO_TAGGER_MODELS']}".encode() in environ


def test_another_command_waits_for_nobody_but_users(tiny_setup: Setup, servers: Servers, log: Path):
    other = replace(tiny_setup, command=f"{tiny_setup.command} --threads 2")
    slow = replace(servers, idle=60)
    with (
        serve(tiny_setup, slow, log=log) as first,
        pytest.raises(UserError, match="in use on this machine with another command"),
        serve(other, slow, log=log),
    ):
        pass
    with serve(other, servers, log=log) as second:
        assert second.instance != first.instance


def test_a_server_on_a_gpu_makes_idle_ones_leave(tiny_setup: Setup, servers: Servers, log: Path):
    slow, on_gpu = replace(servers, idle=60, port=0), replace(tiny_setup, gpus=1)
    with serve(on_gpu, slow, log=log):
        pass
    with serve(tiny_setup, servers, log=log):  # the same line, so it joins
        first = state_of(servers)
    with serve(replace(on_gpu, slug="second"), replace(slow, idle=0.5), log=log):
        assert [state.slug for state in states(servers)] == ["second"]
        assert is_gone(first)


def test_two_setups_with_one_port(tiny_setup: Setup, servers: Servers, log: Path):
    slow, second = replace(servers, idle=60), replace(tiny_setup, slug="second")
    with (
        serve(tiny_setup, slow, log=log),
        pytest.raises(UserError, match=f"belongs to the setup {tiny_setup.slug}, which is in use"),
        serve(second, slow, log=log),
    ):
        pass
    with serve(second, servers, log=log) as served:  # the first one idles: it makes room
        assert served.own
        assert [state.slug for state in states(servers)] == ["second"]


# ------------------------------------------------------------------------------------- deaths


CLIENT = """
import sys, time
from pathlib import Path
from phototagger import setups
from phototagger.machine import Servers
from phototagger.server import serve
setup = setups.Setup(**eval(sys.argv[1]))
with serve(setup, Servers(idle=0.3, run_dir=sys.argv[2]), log=Path(sys.argv[3])):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def client_process(setup: Setup, servers: Servers, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server."""
    keys = ("slug", "purpose", "backend", "model", "command", "base_url", "health")
    known = repr({key: getattr(setup, key) for key in keys})
    command = [sys.executable, "-c", CLIENT, known, servers.run_dir, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_killed_client_frees_the_server(tiny_setup: Setup, servers: Servers, log: Path):
    with client_process(tiny_setup, servers, log) as client:
        state = state_of(servers)
        time.sleep(2 * servers.idle)
        assert processes.alive(state.server)
        client.kill()
        client.wait()
        wait_for(lambda: is_gone(state), 5)


def test_killed_client_leaves_the_server_to_others(tiny_setup: Setup, servers: Servers, log: Path):
    with (
        client_process(tiny_setup, servers, log) as client,
        serve(tiny_setup, servers, log=log) as served,
    ):
        client.kill()
        client.wait()
        time.sleep(2 * servers.idle)
        check_alive(served)


def test_client_killed_while_starting(stub: Callable[[str], Setup], servers: Servers, log: Path):
    setup = replace(stub("hang"), start_timeout=60)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(client_that_is_killed, setup, servers, log)
        wait_for(lambda: states(servers))
        state = state_of(servers)
        started.result()
        wait_for(lambda: is_gone(state), 10)


def client_that_is_killed(setup: Setup, servers: Servers, log: Path) -> None:
    known = repr({key: getattr(setup, key) for key in ("slug", "purpose", "backend", "model")})
    known = known[:-1] + f", 'command': {setup.command!r}, 'base_url': {setup.base_url!r}}}"
    command = [sys.executable, "-c", CLIENT, known, servers.run_dir, str(log)]
    with subprocess.Popen(command) as process:
        wait_for(lambda: states(servers))
        process.kill()


def test_death_in_mid_run(tiny_setup: Setup, servers: Servers, log: Path):
    with serve(tiny_setup, servers, log=log) as served:
        os.kill(state_of(servers).server.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="gone; start the run again") as raised:
            wait_for(lambda: check_alive(served))
    assert "it ended by itself: SIGKILL" in str(raised.value)
    with serve(tiny_setup, servers, log=log) as again:
        assert again.instance != served.instance


def test_killed_supervisor_takes_the_server_along(tiny_setup: Setup, servers: Servers, log: Path):
    with serve(tiny_setup, servers, log=log) as first:
        state = state_of(servers)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        wait_for(lambda: not processes.alive(state.server), 5)
        with pytest.raises(UserError, match="gone"):
            check_alive(first)
    assert states(servers) == [state]  # nobody was left to remove it
    with serve(tiny_setup, servers, log=log) as second:
        assert second.instance != first.instance
        assert state_of(servers).instance == second.instance


@pytest.mark.parametrize("stop", ["idle", "killed"])
def test_server_that_minds_no_sigterm(
    stub: Callable[[str], Setup],
    servers: Servers,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
):
    """It and its child are killed: by the supervisor, or by the guard if that one is killed."""
    monkeypatch.setattr(server, "GRACE", 0.3)
    with serve(stub("family"), servers, log=log):
        state = state_of(servers)
        group = processes.members(state.server, state.supervisor)
        assert len(group) == 2
        if stop == "killed":
            os.kill(state.supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, group)), 5)


def is_running(pid: int) -> bool:
    try:
        return processes.alive(processes.identify(pid))
    except ProcessLookupError:
        return False


def test_killed_supervisor_and_guard(tiny_setup: Setup, servers: Servers, log: Path):
    """The kernel's turn."""
    with serve(tiny_setup, servers, log=log):
        state = state_of(servers)
        children = Path(f"/proc/{state.supervisor.pid}/task/{state.supervisor.pid}/children")
        (guard,) = {int(pid) for pid in children.read_text().split()} - {state.server.pid}
        os.kill(guard, signal.SIGKILL)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        wait_for(lambda: not processes.alive(state.server), 5)
    assert stop_idle(servers) == []
    assert states(servers) == []


def test_state_of_another_process_with_the_same_number(
    tiny_setup: Setup, servers: Servers, log: Path
):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        with serve(tiny_setup, servers, log=log):
            state = state_of(servers)
        wait_for(lambda: not states(servers))
        there = processes.identify(stranger.pid)
        other = processes.Process(there.pid, there.started + "0")
        (path,) = Path(servers.run_dir).glob("*.lock")
        files = Files(Path(servers.run_dir), path.stem)
        files.write(replace(state, supervisor=other, server=other))
        with serve(tiny_setup, servers, log=log):
            assert processes.alive(there)
        assert stranger.poll() is None
        stranger.kill()


def test_group_that_minds_no_sigterm(stub: Callable[[str], Setup], tmp_path: Path):
    """SIGKILL after the grace, also to processes that the server started."""
    command = [sys.executable, str(tmp_path / "stub.py"), "family", "--port", "0"]
    stub("family")
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        group = processes.identify(process.pid)
        wait_for(lambda: len(processes.members(group, group)) == 2)
        assert processes.members(group, processes.identify(os.getpid())) == []  # another session
        threading.Thread(target=process.wait).start()
        processes.end_group(group, group, grace=0.3)
        assert processes.members(group, group) == []
        assert process.wait() == -signal.SIGKILL


# -------------------------------------------------------------------------------------- errors


def refuse(setup: Setup, servers: Servers, log: Path) -> str:
    """The message with which a server cannot be had; nothing of it may be left."""
    with pytest.raises(UserError) as raised, serve(setup, servers, log=log):
        pass
    assert states(servers) == []
    return str(raised.value)


def test_command_not_found(tiny_setup: Setup, servers: Servers, log: Path):
    message = refuse(replace(tiny_setup, command="no-such-server --port 1"), servers, log)
    assert message.startswith(f"{tiny_setup.slug}: no-such-server: command not found; install it")


def test_command_that_cannot_be_run(tiny_setup: Setup, servers: Servers, log: Path, tmp_path: Path):
    program = tmp_path / "server"
    program.write_bytes(b"\x7fELF but not really")
    program.chmod(0o755)
    message = refuse(replace(tiny_setup, command=f"{program} --port 1"), servers, log)
    assert "did not start" in message
    assert f"{program} cannot be run: Exec format error" in message


def test_early_exit(stub: Callable[[str], Setup], servers: Servers, log: Path):
    message = refuse(stub("crash"), servers, log)
    assert "CUDA out of memory" in message
    assert "it ended by itself: status 1" in message
    assert str(log) in message


def test_early_exit_of_the_real_server(tiny_setup: Setup, servers: Servers, log: Path):
    message = refuse(
        replace(tiny_setup, command=tiny_setup.command.replace("mmproj.gguf", "none.gguf")),
        servers,
        log,
    )
    assert "none.gguf" in message


def test_never_ready(stub: Callable[[str], Setup], servers: Servers, log: Path):
    began = time.monotonic()
    message = refuse(stub("hang"), replace(servers, start_timeout=0.5), log)
    assert time.monotonic() - began < 5
    assert "not ready after 0.5 s (servers.start_timeout)" in message
    assert "| loading hang" in message


def test_wrong_model(stub: Callable[[str], Setup], servers: Servers, log: Path):
    assert "it serves other, not tiny-vlm" in refuse(stub("other"), servers, log)


def test_no_list_of_models(stub: Callable[[str], Setup], servers: Servers, log: Path):
    assert "HTTP 404 without a list of models" in refuse(stub("page"), servers, log)


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_port_taken_by_another_program(
    tiny_setup: Setup, servers: Servers, log: Path, free_port: int, says: bytes
):
    with socket.create_server(("127.0.0.1", free_port)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(says)
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        message = refuse(tiny_setup, servers, log)
        listener.shutdown(socket.SHUT_RDWR)
    assert f"port {free_port} is taken by another program" in message
    assert "servers.port" in message


def test_port_taken_by_another_model(
    tiny_vlm: Path, tiny_setup: Setup, servers: Servers, log: Path
):
    with tiny_server(tiny_vlm, alias="other") as other:
        message = refuse(tiny_setup, replace(servers, port=port_of(other)), log)
        assert models_of(other) == ["other"]
    assert "serves other, not tiny-vlm" in message


def test_needs_a_shell(tiny_setup: Setup, servers: Servers, log: Path):
    message = refuse(replace(tiny_setup, command="cat x | python y"), servers, log)
    assert "needs a shell" in message


def test_a_run_dir_that_cannot_be_one(tiny_setup: Setup, servers: Servers, log: Path):
    file = log.parent.parent / "file"
    file.write_text("")
    message = refuse(tiny_setup, replace(servers, run_dir=str(file / "run")), log)
    assert "servers.run_dir" in message
    assert stop_idle(replace(servers, run_dir=str(file / "run"))) == []


def test_missing_key(tiny_setup: Setup, servers: Servers, log: Path):
    message = refuse(tiny_setup, replace(servers, api_key_env="NO_SUCH_KEY"), log)
    assert "no environment variable of that name is set" in message


def test_key_is_used_and_not_shown(
    stub: Callable[[str], Setup], servers: Servers, log: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "it refuses the API key (HTTP 401)" in refuse(stub("locked"), servers, log)
    monkeypatch.setenv("TAGGER_KEY", "secret-key")
    keyed = replace(servers, api_key_env="TAGGER_KEY")
    with serve(stub("locked"), keyed, log=log) as served:
        check_alive(served)
        written = [path.read_text() for path in Path(servers.run_dir).iterdir()]
    assert "secret-key" not in "".join([log.read_text(), repr(served), *written])
    monkeypatch.setenv("TAGGER_KEY", "wrong-key")
    message = refuse(stub("locked"), keyed, log)
    assert "refuses the API key" in message
    assert "wrong-key" not in message + log.read_text()


# ------------------------------------------------------------------------ somebody else's server


def test_server_of_somebody_else(tiny_vlm: Path, tiny_setup: Setup, servers: Servers, log: Path):
    with tiny_server(tiny_vlm) as running:
        theirs = replace(servers, base_url=running.base_urls)
        for _ in range(2):
            with serve(tiny_setup, theirs, log=log) as served:
                assert not served.own
                assert served.base_urls == running.base_urls
                assert served.version
                check_alive(served)
        assert stop_idle(theirs) == []
        assert models_of(running) == ["tiny-vlm"]
    assert not log.exists()


def test_server_that_already_has_our_port(
    tiny_vlm: Path, tiny_setup: Setup, servers: Servers, log: Path
):
    with tiny_server(tiny_vlm) as running:
        here = replace(servers, port=port_of(running))
        with serve(tiny_setup, here, log=log) as served:
            assert not served.own
        assert stop_idle(here) == []
        assert models_of(running) == ["tiny-vlm"]


def test_one_of_two_is_away(tiny_vlm: Path, tiny_setup: Setup, servers: Servers, log: Path):
    with tiny_server(tiny_vlm) as running:
        urls = (tiny_setup.base_url, *running.base_urls)
        with serve(tiny_setup, replace(servers, base_url=urls), log=log) as served:
            assert served.base_urls == running.base_urls


def test_the_only_model_or_a_named_one(tiny_vlm: Path, tiny_setup: Setup, servers: Servers):
    nameless = replace(tiny_setup, model=None, command=None, adhoc=True)
    with tiny_server(tiny_vlm, alias="whatever") as running:
        theirs = replace(servers, base_url=running.base_urls)
        with serve(nameless, theirs, log=Path("unused")) as served:
            assert served.model == "whatever"
        with (
            pytest.raises(UserError, match="serves whatever, not tiny-vlm"),
            serve(tiny_setup, theirs, log=Path("unused")),
        ):
            pass


def test_waits_for_a_server_that_loads(
    stub: Callable[[str], Setup], servers: Servers, tmp_path: Path, free_port: int
):
    setup = replace(stub("loading"), command=None)
    script = tmp_path / "stub.py"
    command = [sys.executable, str(script), "loading", "--port", str(free_port)]

    def later() -> subprocess.Popen[bytes]:
        time.sleep(0.5)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(1) as pool:
        process = pool.submit(later)
        try:
            with serve(setup, replace(servers, busy_budget=20), log=Path("unused")) as served:
                assert served.model == "tiny-vlm"
        finally:
            process.result().kill()
            process.result().wait()


def test_waits_no_longer_than_the_budget(tiny_setup: Setup, servers: Servers, log: Path):
    nobody = replace(servers, base_url=(tiny_setup.base_url,), busy_budget=0.4)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no model server within 0\.4 s"):
        serve(tiny_setup, nobody, log=log).__enter__()
    assert time.monotonic() - began < 3


# -------------------------------------------------------------------------------- run folder


def test_run_folder_is_private(
    tiny_setup: Setup, servers: Servers, log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    default = replace(servers, run_dir=None)
    assert stop_idle(default) == []
    assert not (tmp_path / "photo-tagger").exists()
    with serve(tiny_setup, default, log=log):
        assert (tmp_path / "photo-tagger").stat().st_mode & 0o777 == 0o700
        for path in (tmp_path / "photo-tagger").glob("*.json"):
            assert json.loads(path.read_text())["slug"] == tiny_setup.slug


def make_link(folder: Path) -> None:
    folder.symlink_to(folder.parent)


def make_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def make_foreign(folder: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("make", [make_link, make_open, make_foreign])
def test_run_folder_that_others_could_write_to(
    tiny_setup: Setup, servers: Servers, log: Path, make: Callable[[Path], None]
):
    make(Path(servers.run_dir))
    with pytest.raises(UserError, match="nobody else can write to"):
        serve(tiny_setup, servers, log=log).__enter__()
    with pytest.raises(UserError, match="nobody else can write to"):
        stop_idle(servers)
