"""Model servers on a machine with two GPUs, which are only names here: each has its own."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from phototagger import gpus, processes
from phototagger.machine import Servers
from phototagger.runfolder import run_dir
from phototagger.server import serve, stop_idle
from phototagger.setups import Setup
from phototagger.supervisor import Files, State

BOTH = {gpus.VISIBLE: "0,1"}


@pytest.fixture
def machine(servers: Servers) -> Servers:
    """Servers that stay for a while when nobody uses them, on any free port."""
    return replace(servers, idle=60, port=0)


@pytest.fixture
def on_gpu(tiny_setup: Setup) -> Setup:
    return replace(tiny_setup, gpus=1)


def state_of(slug: str, servers: Servers) -> State | None:
    found = (Files(run_dir(servers), path.stem) for path in run_dir(servers).glob("*.json"))
    return next((files.read() for files in found if files.slug == slug), None)


def gpu_of(state: State) -> str:
    """What the server itself sees."""
    content = Path(f"/proc/{state.server.pid}/environ").read_bytes().split(b"\0")
    return dict(line.decode().partition("=")[::2] for line in content if line)[gpus.VISIBLE]


def test_each_has_its_own_and_idle_ones_make_way(on_gpu: Setup, machine: Servers, tmp_path: Path):
    env, log = {**os.environ, **BOTH}, tmp_path / "server.log"
    other = replace(on_gpu, slug="other")
    try:
        with serve(on_gpu, machine, log=log, env=env):
            first = state_of(on_gpu.slug, machine)
            with serve(other, machine, log=log, env=env):
                second = state_of("other", machine)
                assert {gpu_of(first), gpu_of(second)} == {"0", "1"}
            with gpus.lease(1, machine, dict(BOTH)) as names:  # as an embed job does
                assert names == ("1",)
                assert not processes.alive(second.server)  # was idle
                assert processes.alive(first.server)  # is in use
    finally:
        stop_idle(machine)


def test_an_idle_server_stays_while_another_gpu_is_free(
    on_gpu: Setup, machine: Servers, tmp_path: Path
):
    env = {**os.environ, **BOTH}
    try:
        with serve(on_gpu, machine, log=tmp_path / "server.log", env=env):
            state = state_of(on_gpu.slug, machine)
        with gpus.lease(1, machine, dict(BOTH)) as names:
            assert names == ("1",)
            assert processes.alive(state.server)
    finally:
        stop_idle(machine)


def test_a_gpu_is_free_when_the_server_is_gone_not_when_its_supervisor_is(
    on_gpu: Setup, machine: Servers, tmp_path: Path
):
    env = {**os.environ, gpus.VISIBLE: "0"}
    with serve(on_gpu, machine, log=tmp_path / "server.log", env=env):
        state = state_of(on_gpu.slug, machine)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        with gpus.lease(1, machine, {gpus.VISIBLE: "0"}) as names:
            assert names == ("0",)
            assert not processes.alive(state.server)
