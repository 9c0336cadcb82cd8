"""kill -9 at any moment: the next run finishes, and nothing of it can be seen in the results."""

import os
import random
import signal
import time

import pytest

from workflow.library import Library, make_library

KILLS = 20
ROUNDS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, wiring) -> tuple[Library, float]:
    """A finished run to compare with, and how long it took."""
    base = tmp_path_factory.mktemp("undisturbed")
    library = Library(base / "work", make_library(base / "photos", 150), wiring)
    started = time.monotonic()
    library.snakemake()
    return library, time.monotonic() - started


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_runs_resume_to_the_same_bytes(undisturbed, tmp_path, seed):
    reference, seconds = undisturbed
    library = Library(tmp_path / "work", reference.photos, reference.settings)
    moments = random.Random(seed)
    for _ in range(KILLS // ROUNDS):
        run = library.start("--nolock")
        time.sleep(moments.uniform(0.05, 0.6) * seconds)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    library.snakemake("--nolock")
    assert library.promised() == reference.promised()
    leftovers = [p for p in library.results.rglob("*.tmp*") if "logs" not in p.parts]
    assert leftovers == []
    assert library.nothing_to_be_done()
