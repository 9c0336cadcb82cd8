"""Model servers in the allocations of a batch system: real processes, real signals, a fake system.

An allocation is a shell (its owner, as slurmstepd's child is) with SLURM_JOB_ID in its environment;
its jobs are the rule's own script, below a process whose command line is Snakemake's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import yaml
from thumbs import thumbs
from workflow.library import make_photo

from phototagger import CLONE, allocation, config, plan, processes
from phototagger.errors import TransientError
from phototagger.files import write_atomic
from phototagger.machine import Machine, Servers
from phototagger.plan import Root, Roots
from phototagger.server import check_alive, serve, stop_idle
from phototagger.setups import Setup
from phototagger.supervisor import Files, State
from phototagger.tasks import plan_tasks
from servers.conftest import SLUG
from servers.test_pipeline import profile

SIZE, QUALITY = 128, 80
SHARDS = ("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc")
PHOTOS = 5  # of a shard
ANSWERS = PHOTOS * 3

# What Snakemake puts before a rule's script.
JOB = """
import os, runpy, sys, time
from types import SimpleNamespace
from phototagger.timeleft import TimeLeft
class Named(list):
    def __init__(self, **names):
        super().__init__(names.values())
        self.__dict__.update(names)
setup, shard, recipe = sys.argv[1:4]
snakemake = SimpleNamespace(
    rule="describe",
    wildcards=SimpleNamespace(setup=setup, shard=shard),
    input=Named(thumbs=f"results/thumbs/{shard}.parquet", before=[]),
    output=Named(answers=f"results/describe/{setup}/{shard}.jsonl"),
    log=[f"results/logs/describe/{setup}/{shard}.log"],
    resources=SimpleNamespace(attempt=1),
    params=SimpleNamespace(
        machine="results/plan/machine.json", tasks="results/plan/describe.json", recipe=recipe,
        size=SIZE, quality=QUALITY,
    ),
)
snakemake.input[:] = [snakemake.input[0]]
if enough := int(os.environ["ENOUGH"]):  # after so many answers, there are 50 seconds left
    def answered(self, seconds):
        global enough
        enough -= 1
        self.ends = time.time() + 50 if enough == 0 else self.ends
    TimeLeft.answered = answered
runpy.run_path(DESCRIBE, init_globals={"snakemake": snakemake}, run_name="__main__")
"""

# Runs the jobs it is told to, as the Snakemake on a node does.
SNAKEMAKE = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)  # waits for its jobs
targets = sys.argv[sys.argv.index("--target-jobs") + 1 : sys.argv.index("--mode")]
jobs = [dict(p.split("=") for p in target.partition(":")[2].split(",")) for target in targets]
start = lambda job: subprocess.Popen(
    [sys.executable, "job.py", job["setup"], job["shard"], os.environ["RECIPE"]]
)
if "--side-by-side" in sys.argv:
    failed = [job.wait() for job in [start(job) for job in jobs]]
else:
    failed = [start(job).wait() for job in jobs]
sys.exit(max(map(abs, failed)))
"""


@dataclass
class Place:
    """A work directory, and allocations that ask about its photos."""

    work: Path
    models: Path
    recipe: str
    owners: list[subprocess.Popen] = field(default_factory=list)

    def allocation(
        self,
        *shards: str,
        number: int = 7,
        seconds: float = 3600,
        enough: int = 0,
        how: str = "--in-a-row",
    ) -> subprocess.Popen:
        """Start one of so many `seconds` (or almost over after `enough` answers) that asks about
        these shards.
        """
        targets = " ".join(f"describe:setup={SLUG},shard={shard}" for shard in shards)
        line = f"{sys.executable} snakemake --target-jobs {targets} --mode remote {how}"
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_END_TIME": f"{time.time() + seconds:.0f}",
            "ENOUGH": str(enough),
            "PHOTO_TAGGER_MODELS": str(self.models),
            "PYTHONPATH": str(CLONE / "scripts"),
            "RECIPE": self.recipe,
        }
        owner = subprocess.Popen(
            ["sh", "-c", f"{line}; exit $?"],
            cwd=self.work,
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(self.work / "stderr").open("ab"),
        )
        self.owners.append(owner)
        return owner

    @property
    def kept(self) -> int:
        """Answers in the cache."""
        return len(list((self.work / "cache/describe").glob("*/*.json")))

    def counts(self, shard: str) -> dict:
        return json.loads((self.work / f"results/logs/describe/{SLUG}/{shard}.json").read_text())

    def is_done(self, shard: str) -> bool:
        return (self.work / f"results/describe/{SLUG}/{shard}.jsonl").exists()

    @property
    def states(self) -> list[State]:
        files = sorted((self.work / "run").glob("*@*.json"))
        return [state for path in files if (state := Files(path.parent, path.stem).read())]

    @property
    def starts(self) -> int:
        """How often a server was started."""
        logs = (self.work / "results/logs/servers").glob("*.log")
        return sum(path.read_text().count("photo-tagger: starting") for path in logs)

    def jobs(self) -> list[psutil.Process]:
        """The describe jobs that run."""
        found = []
        for owner in self.owners:
            try:
                below = psutil.Process(owner.pid).children(recursive=True)
                found += [job for job in below if "job.py" in job.cmdline()]
            except psutil.NoSuchProcess:
                continue
        return found

    def running(self) -> list[str]:
        """Command lines of our servers."""
        lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        return [line for line in lines if str(self.models) in line and "tiny_server" in line]


@pytest.fixture
def place(tmp_path: Path, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Three shards of photos to ask about; nothing may be left running."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"  # a name of its own, by which our servers are known
    models.symlink_to(tiny_vlm)
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(models))
    for number, shard in enumerate(SHARDS):
        for n in range(PHOTOS):
            make_photo(tmp_path / f"photos/{shard}/{n}.jpg", PHOTOS * number + n)
    servers = Servers(idle=60, run_dir=str(tmp_path / "run"), concurrency=1, preflight=False)
    roots = Roots([Root("", str(tmp_path / "photos"), None)])
    machine = Machine(
        roots, tmp_path / "cache", tmp_path / "no", tmp_path / "no", "cpu", None, servers
    )
    machine.write()
    options = plan.ScanOptions((".jpg",), True, (), None)
    photos = plan.scan(roots, options)
    for shard in SHARDS:
        path = tmp_path / f"results/plan/shards/{shard}.tsv"
        write_atomic(path, plan.format_listing([p for p in photos if shard in p.rel_path]))
        limits = {"max_pixels": 10**8, "max_bytes": 10**8, "threads": 1}
        table = tmp_path / f"results/thumbs/{shard}.parquet"
        thumbs(path, table, machine=machine, size=SIZE, quality=QUALITY, **limits)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile()))
    questions = {"setup": SLUG, "profile": str(tmp_path / "tiny.yaml"), "reject": ()}
    settings = replace(config.load(None, {}, {}).describe, **questions)
    (task,) = plan_tasks(settings, servers).values()
    planned = {SLUG: task.as_dict()}
    planned[SLUG]["setup"]["entry"] = {}  # its weights' digest is another test's concern
    (tmp_path / "results/plan/describe.json").write_text(json.dumps(planned))
    (tmp_path / "snakemake").write_text(SNAKEMAKE)
    known = f"SIZE, QUALITY, DESCRIBE = {SIZE}, {QUALITY}, {str(CLONE / 'scripts/describe.py')!r}\n"
    (tmp_path / "job.py").write_text(known + JOB)
    found = Place(tmp_path, models, task.recipe)
    yield found
    for owner in found.owners:
        owner.wait(30)
    wait_for(lambda: not found.running())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# ------------------------------------------------------------------------------------ the normal


@pytest.mark.parametrize("how", ["--in-a-row", "--side-by-side"])
def test_the_jobs_of_an_allocation_share_one_server(place: Place, how: str):
    owner = place.allocation(*SHARDS, how=how)
    assert owner.wait(60) == 0, (place.work / "stderr").read_text()
    # Not a moment later, though the server may idle for a minute: the last job saw to it.
    assert (place.running(), place.states) == ([], [])
    assert place.starts == 1
    assert all(place.is_done(shard) for shard in SHARDS)
    assert place.kept == 3 * ANSWERS
    (log,) = (place.work / "results/logs/servers").glob("*.log")
    assert log.name.endswith(".slurm-7.log")


def test_two_allocations_on_one_machine(place: Place):
    first = place.allocation(SHARDS[0], number=7)
    second = place.allocation(SHARDS[1], number=8)
    wait_for(lambda: len(place.states) == 2)
    one, other = place.states
    assert one.base_url != other.base_url  # though the setup names a port
    assert one.owners[0].pid == first.pid
    assert other.owners[0].pid == second.pid
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert (place.running(), place.states) == ([], [])
    assert place.starts == 2


# ------------------------------------------------------------------------------------ cut short


def go_on(place: Place, shard: str) -> None:
    """The next attempt, in another allocation; asks what was not answered."""
    before = place.kept
    assert place.allocation(shard, number=9).wait(60) == 0, (place.work / "stderr").read_text()
    assert place.counts(shard)["extra"]["requests"] == ANSWERS - before
    assert place.kept == ANSWERS


def test_sigterm_twice(place: Place):
    """As at Slurm's time limit, which signals all processes of a step, and again 10 ms later."""
    owner = place.allocation(SHARDS[0])
    wait_for(lambda: place.kept >= 3)
    (job,) = place.jobs()
    began = time.monotonic()
    job.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert owner.wait(10) == 143
    assert time.monotonic() - began < 5
    assert (place.running(), place.states) == ([], [])
    assert not place.is_done(SHARDS[0])
    assert "SIGTERM" in place.counts(SHARDS[0])["error"]
    assert 3 <= place.kept < ANSWERS
    go_on(place, SHARDS[0])


def test_sigterm_while_the_server_is_starting(place: Place):
    slow = json.loads((place.work / "results/plan/describe.json").read_text())
    slow[SLUG]["setup"]["command"] = (
        f"{sys.executable} -c 'import time; time.sleep(600)' tiny_server {place.models}"
    )
    (place.work / "results/plan/describe.json").write_text(json.dumps(slow))
    owner = place.allocation(SHARDS[0])
    wait_for(lambda: place.states)
    (job,) = place.jobs()
    job.send_signal(signal.SIGTERM)
    assert owner.wait(10) == 143
    assert (place.running(), place.states) == ([], [])


def test_the_owner_is_killed(place: Place):
    owner = place.allocation(SHARDS[0])
    wait_for(lambda: place.kept >= 3)
    (job,) = place.jobs()
    owner.kill()  # as when proctrack kills what it finds, but does not find all
    wait_for(lambda: not place.running(), 3)
    job.wait(20)
    assert "the model server is gone" in place.counts(SHARDS[0])["error"]
    assert place.counts(SHARDS[0])["final"] is False
    log = next((place.work / "results/logs/servers").glob("*.log")).read_text()
    assert "its allocation is over" in log
    go_on(place, SHARDS[0])


def test_all_are_killed(place: Place):
    owner = place.allocation(SHARDS[0])
    wait_for(lambda: place.kept >= 3)
    os.killpg(owner.pid, signal.SIGKILL)
    wait_for(lambda: not place.running(), 3)
    go_on(place, SHARDS[0])


# ---------------------------------------------------------------------------------- out of time


def test_asks_no_more_when_the_allocation_is_about_to_end(place: Place):
    assert place.allocation(SHARDS[0], enough=4).wait(30) == 1
    assert (place.running(), place.states) == ([], [])
    counts = place.counts(SHARDS[0])
    assert "the allocation ends in" in counts["error"]
    assert counts["final"] is False
    assert place.kept == 4
    go_on(place, SHARDS[0])


def test_starts_no_server_when_there_is_no_time_left(place: Place):
    assert place.allocation(SHARDS[0], seconds=40).wait(30) == 1
    assert "the allocation ends in" in place.counts(SHARDS[0])["error"]
    assert place.starts == 0


# ------------------------------------------------------------------------------ the server alone


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have this process be in an allocation."""

    def enter(number: int, ends: float = 3600) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", str(number))
        monkeypatch.setenv("SLURM_JOB_END_TIME", f"{time.time() + ends:.0f}")

    return enter


def test_ends_before_the_allocation_also_when_in_use(
    tiny_setup: Setup, servers: Servers, tmp_path: Path, inside: Callable[..., None]
):
    inside(7, ends=17)
    log = tmp_path / "server.log"
    with serve(tiny_setup, servers, log=log) as served:
        check_alive(served)
        wait_for(lambda: "its allocation ends" in log.read_text(), 10)
        with pytest.raises(TransientError, match="the model server is gone"):
            wait_for(lambda: check_alive(served))


def test_the_machine_s_servers_and_an_allocation_s_are_kept_apart(
    tiny_setup: Setup,
    servers: Servers,
    tmp_path: Path,
    inside: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
):
    slow = replace(servers, idle=60)
    with serve(tiny_setup, slow, log=tmp_path / "one.log") as machines:
        pass
    inside(7)
    assert stop_idle(slow) == []
    with serve(tiny_setup, slow, log=tmp_path / "two.log") as ours:
        assert ours.instance != machines.instance
    monkeypatch.delenv("SLURM_JOB_ID")
    assert stop_idle(slow) == [tiny_setup.slug]
    check_alive(ours)
    inside(7)
    assert stop_idle(slow) == [tiny_setup.slug]


def test_a_port_that_the_user_has_chosen_is_kept(
    tiny_setup: Setup, servers: Servers, tmp_path: Path, free_port: int, inside: Callable[..., None]
):
    inside(7)
    log = tmp_path / "log"
    with serve(tiny_setup, replace(servers, port=free_port), log=log) as served:
        assert f":{free_port}/" in served.base_urls[0]


def test_a_second_step_keeps_the_server_when_the_first_has_ended(
    tiny_setup: Setup,
    servers: Servers,
    tmp_path: Path,
    inside: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
):
    inside(7)
    log = tmp_path / "log"
    with subprocess.Popen(["sleep", "60"]) as step, monkeypatch.context() as patched:
        first = processes.identify(step.pid)
        patched.setattr(allocation, "_owner", lambda *_: first)
        try:
            with serve(tiny_setup, servers, log=log):
                patched.undo()
                with serve(tiny_setup, servers, log=log) as second:
                    step.kill()
                    step.wait()
                    time.sleep(1)
                    check_alive(second)
        finally:
            step.kill()


def test_what_a_killed_allocation_left_is_cleared_away(
    tiny_setup: Setup, servers: Servers, tmp_path: Path, inside: Callable[..., None]
):
    """Should its supervisor, guard and kernel all have failed: by the next one on the node."""
    with subprocess.Popen(["true"]) as gone:
        owner = processes.identify(gone.pid)
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        process = processes.identify(left.pid)
        with serve(tiny_setup, servers, log=tmp_path / "log"):
            (path,) = Path(servers.run_dir).glob("*.json")
            files = Files(path.parent, f"{path.stem}.slurm-6")
            state = Files(path.parent, path.stem).read()
        files.write(replace(state, supervisor=process, server=process, owners=(owner,)))
        inside(7)
        assert stop_idle(servers) == []
        assert not processes.alive(process)
        assert files.read() is None
    finally:
        left.kill()
        left.wait()
