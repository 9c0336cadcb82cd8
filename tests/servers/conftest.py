"""A real model server, small enough to start for a single test: llama.cpp with random weights."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from phototagger import setups
from phototagger import tiny_vlm as tiny
from phototagger.machine import Servers
from phototagger.server import Served
from phototagger.setups import Setup

collect_ignore = ["vllm"]  # 3 GB to install: `make test-vllm` names it

SLUG = "tiny-vlm_llama.cpp"
START_TIMEOUT = 60.0


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `tiny-vlm` in it."""
    folder = tmp_path_factory.mktemp("vlm")
    tiny.build(folder / tiny.NAME)
    return folder


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def tiny_setup(tiny_vlm: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The tests' setup on a free port; PHOTO_TAGGER_MODELS names its weights."""
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(tiny_vlm))
    setup = setups.load(SLUG)
    port = urlsplit(setup.base_url).port
    return replace(
        setup,
        command=setup.command.replace(f"--port {port}", f"--port {free_port}"),
        base_url=setup.base_url.replace(f":{port}/", f":{free_port}/"),
    )


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    """Settings with a run folder of the test's own and a short idle time."""
    return Servers(idle=0.3, busy_budget=5, run_dir=str(tmp_path / "run"))


@contextmanager
def tiny_server(models: Path, alias: str = tiny.NAME) -> Iterator[Served]:
    """Run llama.cpp's server directly, as somebody else would, on a free port."""
    folder = models / tiny.NAME
    command = [
        *(sys.executable, "-m", "phototagger.tiny_server", "--port", "0", "--alias", alias),
        *("--model", str(folder / "model.gguf"), "--mmproj", str(folder / "mmproj.gguf")),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("listening on")), "")
            assert line, f"the server ended with {process.wait()}"
            root = line.split()[-1].rstrip("/")
            _wait_until_healthy(root)
            yield Served((f"{root}/v1",), alias, None, f"pid {process.pid}", own=False)
        finally:
            process.terminate()
            process.stdout.close()


def _wait_until_healthy(root: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{root}/health", timeout=5).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, f"{root} is not ready after {START_TIMEOUT} s"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def served(tiny_vlm: Path) -> Iterator[Served]:
    """A running server that serves `tiny-vlm`; shared by all tests, so leave it as it is."""
    os.environ.pop("http_proxy", None)  # urllib would ask it also for loopback
    with tiny_server(tiny_vlm) as running:
        yield running
