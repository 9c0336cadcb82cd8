"""vLLM itself, built for CPUs, with the tests' model: `make test-vllm`. Prints what it measures."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from phototagger import CLONE, processes, setups
from phototagger.machine import Servers
from phototagger.server import Served, check_alive, serve, stop_idle
from phototagger.supervisor import Files
from servers.conftest import tiny_server
from servers.test_tiny_vlm import SCHEMA, ask, picture, text_of

PYTHON = CLONE / ".venv-vllm" / "bin" / "python"
SLUG = "tiny-vlm_vllm"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM comes with `make test-vllm`")


def report(what: str, value: str) -> None:
    print(f"{what:<28}{value}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    return Servers(idle=600, port=0, run_dir=str(tmp_path_factory.mktemp("run") / "servers"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "vllm.log"


@pytest.fixture(scope="module")
def vllm(tiny_vlm: Path, servers: Servers, log: Path) -> Iterator[Served]:
    """vLLM as its registry entry starts it, but for the environment that it is installed in.

    In the end it is stopped, and nothing of it is left.
    """
    setup = setups.load(SLUG)
    setup = replace(setup, command=setup.command.replace(" python -m", f" {PYTHON} -m"))
    env = {**os.environ, "PHOTO_TAGGER_MODELS": str(tiny_vlm)}
    began = time.monotonic()
    with serve(setup, servers, log=log, env=env) as served:
        report("start to ready", f"{time.monotonic() - began:.1f} s")
        yield served
        check_alive(served)
        assert stop_idle(servers) == []  # it is in use
        ours = [processes.identify(pid) for pid in members(servers)]
    began = time.monotonic()
    assert stop_idle(servers) == [SLUG]
    report("stop", f"{time.monotonic() - began:.1f} s")
    assert len(ours) >= 2
    assert not any(processes.alive(each) for each in ours)


def members(servers: Servers) -> list[int]:
    """Processes of the running server."""
    (path,) = Path(servers.run_dir).glob("*.json")
    state = Files(path.parent, path.stem).read()
    return processes.members(state.server, state.supervisor)


def test_started_from_its_entry(vllm: Served, servers: Servers):
    assert vllm.own
    assert vllm.model == "tiny-vlm"
    assert vllm.info["model"]["max_model_len"] == 4096
    assert urlsplit(vllm.base_urls[0]).hostname == "127.0.0.1"
    pids = members(servers)
    report("version", str(vllm.version))
    report("processes", f"{len(pids)}, {sum(map(resident, pids)) / 1e9:.2f} GB resident")


def resident(pid: int) -> int:
    """Bytes of memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_sees_the_picture(vllm: Served):
    blind, first, second = (ask(vllm, image) for image in (None, picture(), picture(128)))
    assert first["usage"]["prompt_tokens"] > blind["usage"]["prompt_tokens"] + 10
    assert text_of(first) != text_of(second)


def test_keeps_to_a_schema(vllm: Served):
    form = {"type": "json_schema", "json_schema": {"name": "photo", "schema": SCHEMA}}
    for seed in range(4):
        answer = ask(
            vllm, picture(), seed=seed, temperature=0.7, max_tokens=256, response_format=form
        )
        assert set(json.loads(text_of(answer))) == {"caption", "tags"}


def test_says_the_same_as_llama_cpp(vllm: Served, tiny_vlm: Path):
    """The same weights in two programs, without a chance: temperature 0."""
    with tiny_server(tiny_vlm) as llama:
        for image in (None, picture()):
            assert text_of(ask(vllm, image)) == text_of(ask(llama, image))


def test_speed(vllm: Served):
    began = time.monotonic()
    for n in range(20):
        ask(vllm, picture(n), seed=n)
    report("s per request, one by one", f"{(time.monotonic() - began) / 20:.3f}")
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ask(vllm, picture(n), seed=n), range(100, 180)))
    report("s per request, 8 in flight", f"{(time.monotonic() - began) / 80:.3f}")
