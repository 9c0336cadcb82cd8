"""A job's connection to a model server: stopped while the server is still starting."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from phototagger.machine import Servers
from phototagger.server import stop_idle

JOB = """
import asyncio, json, signal, sys
from pathlib import Path
from phototagger.connection import connect
from phototagger.machine import Servers
from phototagger.setups import Setup

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
servers = json.loads(sys.argv[1])
servers["base_url"] = tuple(servers["base_url"])
command = f"{sys.executable} -c 'import time; time.sleep(600)'"
setup = Setup("slow", "test", "vllm", "slow", command, "http://127.0.0.1:1/v1", canary=False)


async def main():
    async with connect(setup, Servers(**servers), Path(sys.argv[2]), Path(sys.argv[3])):
        pass


asyncio.run(main())
"""


def test_a_job_that_is_told_to_stop_does_not_wait_for_the_server(servers: Servers, tmp_path: Path):
    log = tmp_path / "server.log"
    settings = asdict(servers) | {"port": 0, "idle": 30}
    arguments = [json.dumps(settings), str(log), str(tmp_path / "verdicts")]
    job = subprocess.Popen([sys.executable, "-c", JOB, *arguments], stderr=subprocess.DEVNULL)
    state = Path(servers.run_dir) / f"slow@{os.uname().nodename}.json"
    deadline = time.monotonic() + 30
    while not state.exists():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(5) == 143
    server = json.loads(state.read_text())["server"]["pid"]
    assert Path(f"/proc/{server}").exists()  # another job may be waiting for it
    assert stop_idle(servers) == ["slow"]
    assert not Path(f"/proc/{server}").exists()
