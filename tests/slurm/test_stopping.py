"""Jobs cancelled, requeued and out of time: nothing is lost, nothing is left behind."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from servers.conftest import tiny_vlm  # noqa: F401 - a fixture
from servers.fault_server import running
from servers.test_pipeline import answers_kept, left_over, register, servers_checked, write_profile
from workflow.library import Library, make_library

from .cluster import Cluster, Job
from .runs import OnSlurm, apart_from_seconds

IN_FLIGHT = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_library(tmp_path_factory.mktemp("library") / "photos", 16, per_folder=8)


def until(ready: Callable[[], object], run, library: OnSlurm, seconds: float = 120):
    """The first true value of `ready` while the run goes on."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert run.poll() is None and time.monotonic() < deadline, library.output.read_text()[
            -6000:
        ]
        time.sleep(0.1)
    return found


def running_job(slurm: Cluster, rule: str, but: str = "") -> Job | None:
    """A job of the rule, or of the group of that name, that is running on its node."""
    found = (
        job
        for job in slurm.active()
        if rule in job.name + job.comment and job.state == "RUNNING" and job.id != but
    )
    return next(found, None)


def script_of(rule: str, work: Path) -> psutil.Process | None:
    """The process that does the work of a rule."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if f".{rule}.py" in line and str(work) in line and "bash" not in line:
            return process
    return None


def processes_of(job: Job, models: Path) -> list[psutil.Process]:
    """The job's processes that use these models: a server and what started it."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environ = process.info["cmdline"] or (), process.info["environ"] or {}
        if str(models) in " ".join(line) and environ.get("SLURM_JOB_ID") == job.id:
            found.append(process)
    return found


def test_jobs_cancelled_requeued_and_out_of_time(slurm, wiring, photos, tmp_path):
    """In one run; what fails is tried again by Snakemake, or by a second run.

    Every answer is asked for once, but for those in flight when a job was stopped.
    """
    dice = random.Random(5)
    with running(latency=0.5) as server:
        settings = {
            **wiring,
            "PHOTO_TAGGER__PLAN__SHARD_SIZE": "8",
            "PHOTO_TAGGER__DESCRIBE__MODEL": "tiny-vlm",
            "PHOTO_TAGGER__SERVERS__BASE_URL": json.dumps([server.base_url]),
            "PHOTO_TAGGER__SERVERS__CONCURRENCY": str(IN_FLIGHT),
            "PHOTO_TAGGER__SERVERS__PREFLIGHT": "false",
        }
        options = ("--set-resources", "labels:slurm_partition=gpu", "labels:runtime=attempt")
        library = OnSlurm(tmp_path / "work", photos, settings, options=options)
        run = library.launch()

        # out of time: the first attempt to embed the labels never ends
        frozen = until(lambda: script_of("labels", library.work), run, library)
        frozen.send_signal(signal.SIGSTOP)

        # cancelled, waiting or running
        until(lambda: running_job(slurm, "thumbs"), run, library)
        time.sleep(dice.uniform(0, 1.5))
        slurm.run("scancel", dice.choice([j for j in slurm.active() if "thumbs" in j.comment]).id)

        # cancelled while it asks
        asking = until(lambda: running_job(slurm, "describe"), run, library)
        until(lambda: server.stats.received > IN_FLIGHT, run, library)
        time.sleep(dice.uniform(0, 3))
        slurm.run("scancel", asking.id)

        # requeued, as one that is preempted
        asked = server.stats.received
        again = until(lambda: running_job(slurm, "describe", but=asking.id), run, library)
        until(lambda: server.stats.received > asked + IN_FLIGHT, run, library)
        slurm.run("scontrol", "requeue", again.id)

        # cancelled: many small jobs in one
        small = until(lambda: running_job(slurm, "shard_"), run, library, seconds=240)
        time.sleep(dice.uniform(0, 7))
        slurm.run("scancel", small.id)

        library.finish(run)
        slurm.wait()
        states = {job.id: job for job in slurm.jobs()}
        assert states[asking.id].state == states[small.id].state == "CANCELLED"
        assert (states[again.id].state, states[again.id].restarts) == ("COMPLETED", 1)
        tries = [job for job in states.values() if "labels" in job.comment]
        tries.sort(key=lambda job: int(job.id))
        assert [(job.state, job.minutes) for job in tries] == [("TIMEOUT", 1), ("COMPLETED", 2)]
        assert tries[1].mem_mb == 2 * tries[0].mem_mb
        assert not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE
        asked, questions = server.stats.received, server.stats.questions
        assert asked <= questions + 2 * IN_FLIGHT

        assert library.nothing_to_be_done()
        clean = Library(tmp_path / "clean", photos, settings)
        clean.snakemake()
        assert apart_from_seconds(library) == apart_from_seconds(clean)


def test_a_cancelled_job_takes_its_server_with_it(slurm, wiring, photos, tmp_path, tiny_vlm):  # noqa: F811
    """And so does a run that is stopped by Ctrl-C; the next one goes on from what was answered.

    Through plain sbatch, which is quicker to notice.
    """
    models = tmp_path / "models"
    models.symlink_to(tiny_vlm)
    settings = {
        **wiring,
        "PHOTO_TAGGER__PLAN__SHARD_SIZE": "8",
        "PHOTO_TAGGER__DESCRIBE__SETUP": "tiny",
        "PHOTO_TAGGER__DESCRIBE__PROFILE": "tiny",
        "PHOTO_TAGGER__DESCRIBE__REJECT": "[]",
        "PHOTO_TAGGER__SERVERS__PORT": "0",
        "PHOTO_TAGGER__SERVERS__CONCURRENCY": "1",
        "PHOTO_TAGGER_MODELS": str(models),
    }
    library = OnSlurm(tmp_path / "work", photos, settings, profile="slurm-generic")
    register(library, "tiny", 24181, gpus=1)
    write_profile(library)

    run = library.launch("describe_all")
    job = until(lambda: running_job(slurm, "describe"), run, library)
    until(lambda: answers_kept(library), run, library)
    slurm.run("scancel", job.id)
    until(lambda: job.id not in {other.id for other in slurm.active()}, run, library)
    kept = answers_kept(library)
    until(lambda: not processes_of(job, models), run, library, seconds=15)

    other = until(lambda: running_job(slurm, "describe", but=job.id), run, library)
    until(lambda: servers_checked(library), run, library)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) != 0
    slurm.wait()
    assert {j.id: j.state for j in slurm.jobs()}[other.id] == "CANCELLED"
    assert left_over(models, patience=10) == []
    assert answers_kept(library) >= kept > 0

    library.snakemake("describe_all", "--nolock")
    slurm.wait()
    assert answers_kept(library) == 48
    assert left_over(models) == []
