"""The whole pipeline on two nodes: where jobs run, with what, and that the results are the same.

One run through Snakemake's Slurm executor, with a model server started on the GPU node by a job,
one through plain sbatch, and one on this machine to compare them with.
"""

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers.conftest import tiny_vlm  # noqa: F401 - a fixture
from servers.test_pipeline import left_over, register, servers_checked, write_profile
from workflow.library import Library, make_library, make_photo

from phototagger import resources

from .cluster import Cluster, Job
from .runs import OnSlurm, apart_from_seconds

SETUP = "tiny"
GPU_RULES = {"embed", "labels", "describe"}


@dataclass(frozen=True)
class Done:
    """A finished run on the cluster."""

    library: OnSlurm
    jobs: dict[str, Job]  # by Slurm's id
    models: Path
    plan_changed: bool


@pytest.fixture(scope="module")
def settings(wiring, tiny_vlm, tmp_path_factory) -> dict[str, str]:  # noqa: F811
    models = tmp_path_factory.mktemp("for-slurm") / "models"
    models.symlink_to(tiny_vlm)
    return {
        **wiring,
        "PHOTO_TAGGER__PLAN__SHARD_SIZE": "8",
        "PHOTO_TAGGER__DESCRIBE__SETUP": SETUP,
        "PHOTO_TAGGER__DESCRIBE__PROFILE": "tiny",
        "PHOTO_TAGGER__DESCRIBE__REJECT": "[]",
        "PHOTO_TAGGER__DESCRIBE__FIELDS": "[caption]",
        "PHOTO_TAGGER__SERVERS__PORT": "0",
        "PHOTO_TAGGER_MODELS": str(models),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_library(tmp_path_factory.mktemp("library") / "photos", 16, per_folder=8)


def prepared(library: Library) -> Library:
    register(library, SETUP, 24180, gpus=1)
    write_profile(library)
    return library


@pytest.fixture(scope="module")
def local(settings, photos, tmp_path_factory) -> dict[str, str]:
    """What a run on this machine makes."""
    library = prepared(Library(tmp_path_factory.mktemp("local") / "work", photos, dict(settings)))
    library.settings["PHOTO_TAGGER__CLIP__DEVICE"] = "cpu"
    library.snakemake()
    return apart_from_seconds(library)


@pytest.fixture(scope="module")
def done(slurm: Cluster, settings, photos, tmp_path_factory) -> Iterator[Done]:
    work = tmp_path_factory.mktemp("slurm-run") / "work"
    library = prepared(OnSlurm(work, photos, dict(settings)))
    run = library.launch()
    index = library.results / "plan/index.json"
    while not slurm.jobs():
        assert run.poll() is None, library.output.read_text()[-6000:]
        time.sleep(0.2)
    planned = hashlib.sha256(index.read_bytes()).hexdigest()
    late = make_photo(photos / "shoot 00" / "too late.jpg", 4711)
    try:
        library.finish(run)
    finally:
        late.unlink()
    slurm.wait()
    jobs = {job.id: job for job in slurm.jobs()}
    changed = planned != hashlib.sha256(index.read_bytes()).hexdigest()
    models = Path(settings["PHOTO_TAGGER_MODELS"])
    yield Done(library, jobs, models, changed)
    assert left_over(models) == []


def test_results_are_those_of_a_local_run(done: Done, local: dict[str, str]):
    assert apart_from_seconds(done.library) == local


def test_every_job_ran_on_a_node_and_only_planning_here(done: Done):
    ran = dict.fromkeys((rule for rule, _ in done.library.counts()), 0)
    for rule, counts in done.library.counts():
        ran[rule] += 1
        job = done.jobs[counts["job"].rpartition("-")[2]]
        assert counts["node"] == job.node == ("gpu1" if rule in GPU_RULES else "cpu1")
        assert counts["host"] == socket.gethostname()
    shards = len(json.loads((done.library.results / "plan/index.json").read_text())["shards"])
    assert shards > 1
    once = {"labels", "collect", "export", "medoids", "summary", "report", "check"}
    assert ran == {rule: 1 if rule in once else shards for rule in resources.NEEDS}
    assert {job.state for job in done.jobs.values()} == {"COMPLETED"}


def test_jobs_plan_nothing(done: Done):
    """A photo that came after planning is not noticed by any job."""
    assert not done.plan_changed


# Members of a group job that run beside each other, and after those of the line before.
TOGETHER = (
    {"score"},
    {"record"},
    {"sidecars"},
    {"collect"},
    {"export", "medoids"},
    {"summary", "report", "check"},
)


def rules_by_job(library: OnSlurm, jobs: dict[str, Job]) -> dict[str, list[str]]:
    """What each of Slurm's jobs did; every job has done something."""
    found: dict[str, list[str]] = {}
    for rule, counts in library.counts():
        found.setdefault(counts["job"].rpartition("-")[2], []).append(rule)
    assert found.keys() == jobs.keys()
    return found


def declared(rules: list[str], index: dict) -> tuple[int, int, int]:
    """CPUs, MB and minutes that a job of these rules has to ask for."""
    photos = [shard["photos"] for shard in index["shards"]]
    of_library = set.union(*TOGETHER[3:])
    if not set(rules) & set.union(*TOGETHER):
        in_turn = [[rule] for rule in rules]  # one alone, or all on one GPU
    else:
        in_turn = [[rule for rule in rules if rule in level] for level in TOGETHER]
    needs = {r: resources.of(r, sum(photos) if r in of_library else max(photos)) for r in rules}
    server = resources.SERVER_PER_GPU if "describe" in rules else 0
    return (
        max(sum(resources.NEEDS[rule].threads for rule in level) for level in in_turn),
        max(sum(needs[rule]["mem_mb"](None, 1) for rule in level) for level in in_turn) + server,
        sum(max((needs[r]["runtime"](None, 1) for r in level), default=0) for level in in_turn),
    )


def assert_asked_for(library: OnSlurm, jobs: dict[str, Job]) -> None:
    """The controller was asked for what the rules declare, alone and in groups."""
    index = json.loads((library.results / "plan/index.json").read_text())
    for number, rules in rules_by_job(library, jobs).items():
        job = jobs[number]
        cpus, megabytes, minutes = declared(rules, index)
        assert (job.cpus, job.minutes) == (cpus, minutes), rules
        # CLIP's weights are on top, and the tests' are 1 MB
        assert 0 <= job.mem_mb - megabytes <= 20, rules
        assert job.gpus == bool(GPU_RULES & set(rules)), rules
        assert job.partition == ("gpu" if GPU_RULES & set(rules) else "cpu"), rules


def test_the_controller_was_asked_for_what_the_rules_declare(done: Done):
    assert_asked_for(done.library, done.jobs)


def test_tiny_jobs_share_an_allocation(done: Done):
    together: dict[str, list[str]] = {}
    for rule, counts in done.library.counts():
        together.setdefault(counts["job"], []).append(rule)
    groups = sorted(sorted(set(rules)) for rules in together.values() if len(rules) > 1)
    last = ["check", "collect", "export", "medoids", "report", "summary"]
    assert groups == [last, ["describe"], ["record", "score", "sidecars"]]


def test_one_server_serves_all_shards_of_an_allocation(done: Done):
    (job,) = {counts["job"] for rule, counts in done.library.counts() if rule == "describe"}
    assert done.jobs[job.rpartition("-")[2]].gpus == 1
    assert servers_checked(done.library) == 1


def test_jobs_never_share_a_gpu(done: Done, slurm: Cluster):
    held = slurm.gpus_held()
    users = [job for job in done.jobs.values() if job.gpus]
    assert len(users) >= 3
    assert {len(held[job.id]) for job in users} == {1}
    assert {index for job in users for index in held[job.id]} == {0, 1}  # both were used
    for one in users:
        for other in users:
            shared = set(held[one.id]) & set(held[other.id])
            if one.id < other.id and shared:
                assert one.end <= other.start or other.end <= one.start


def test_the_command_through_plain_sbatch_makes_the_same(
    slurm: Cluster, settings, photos, local, done, tmp_path
):
    """`photo-tagger run --profile slurm-generic`, as a person types it, `status` and `why`."""
    library = prepared(OnSlurm(tmp_path / "work", photos, dict(settings), profile="slurm-generic"))
    before = {job.id for job in slurm.jobs()}
    run = library.launch_as_typed()
    while not any(job.node == "gpu1" and job.id not in before for job in slurm.active()):
        assert run.poll() is None, library.output.read_text()[-6000:]
        time.sleep(0.2)
    said = ""
    while "\non gpu1: " not in said:
        assert run.poll() is None, said
        said = library.photo_tagger("status")  # from another terminal
    assert said.startswith("A run is under way")
    assert "\nthumbs: " in said and " of 16 photos\n" in said
    library.finish(run)
    slurm.wait()
    assert apart_from_seconds(library) == local
    jobs = {job.id: job for job in slurm.jobs() if job.id not in before}
    assert_asked_for(library, jobs)
    for number, rules in rules_by_job(library, jobs).items():
        assert jobs[number].node == ("gpu1" if GPU_RULES & set(rules) else "cpu1")
    assert servers_checked(library) == 1

    photo = photos / "shoot 00/IMG_0000.jpg"
    answer = json.loads(library.photo_tagger("why", str(photo), "--json", "--quick"))
    told = [row["job"] for row in answer["stages"]]
    assert len(told) == 6
    for job in told:
        assert jobs[job["job"].rpartition("-")[2]].node == job["node"]
