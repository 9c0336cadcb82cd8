"""`run` and the stage commands: settings in, Snakemake as a child, progress and a summary out."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from phototagger import CLONE, names, runtoken
from phototagger.cli import options as o
from phototagger.cli import profiles
from phototagger.cli.child import GRACE, locked, run_child
from phototagger.cli.describing import is_on
from phototagger.cli.errors import FailedError
from phototagger.cli.events import Follower, RunState, plain_error
from phototagger.cli.settings import (
    OVERRIDES,
    SNAKEFILE,
    TARGETS,
    Settings,
    from_options,
    preflight,
    preflight_servers,
    read_config,
    remember,
    remembered,
    split_arguments,
)
from phototagger.config import Config
from phototagger.errors import UserError

INDEX = Path("results/plan/index.json")
EVENTS = Path("results/logs/events.jsonl")
CONSOLE = Path("results/logs/snakemake.log")
CANCELLING = 60.0  # seconds for Snakemake to cancel the jobs that it has submitted

_CANCELLING = "stopping: cancelling the submitted jobs (Ctrl-C again leaves them to their end)"

STAGES = {
    "scan": ("Find the photos and plan the work.", None),  # happens before there are targets
    "thumbs": ("Read every photo once: metadata and thumbnail.", TARGETS["thumbs"]),
    "embed": ("Embed the photos with the CLIP model.", TARGETS["embed"]),
    "score": ("Score the photos against the labels.", TARGETS["score"]),
    "describe": ("Ask a model for captions, keywords and descriptions.", TARGETS["describe"]),
    "medoids": ("Find the photo that stands for each folder.", TARGETS["medoids"]),
    "export": ("Write results/tags.csv.", TARGETS["export"]),
    "sidecars": ("Propose XMP sidecars below results/sidecars.", TARGETS["sidecars"]),
}


@dataclass
class Request:
    """What one command asks for; the current directory is the work directory already."""

    settings: Settings
    targets: list[str]
    cores: int | None = None
    extras: list[str] = field(default_factory=list)  # Snakemake's own options

    @property
    def profile(self) -> profiles.Profile | None:
        """None: this machine, as profiles/default has it."""
        name = self.settings.profile
        return profiles.load(name) if name and name != profiles.DEFAULT.name else None

    @property
    def executor(self) -> str:
        """What runs the jobs: `local`, or what submits them."""
        for option, value in pairwise([*self.extras, ""]):
            name, _, joined = option.partition("=")
            if name in ("--executor", "-e"):
                return joined or value
        return self.profile.executor if self.profile else "local"


def run_command(stage: str | None) -> Callable[..., None]:
    """The Typer command for a stage, or for `run` (None)."""

    def command(
        context: typer.Context,
        options: dict[str, Any],
        photos: o.Photos = None,
        workdir: o.Workdir = Path(),
        cores: o.Cores = None,
        profile: o.Profile = None,
        config_file: o.ConfigFile = None,
        assignments: o.Assignments = None,
        dry_run: o.DryRun = False,
        target: o.Targets = None,
    ) -> None:
        found, targets = split_arguments(photos or ())
        if target:
            targets += [TARGETS.get(name, name) for name in target]
        if stage and STAGES[stage][1]:
            targets.append(STAGES[stage][1])
        if stage == "sidecars" and options["metadata.enabled"] is False:
            raise UserError("sidecars --no-meta: makes nothing; leave out one of the two")
        given = from_options(options, assignments or (), found, config_file)
        given.profile = profiles.canonical(profile, workdir) if profile else None
        enter(workdir)
        settings = recall(given)
        request = Request(settings, targets, cores, list(context.obj or ()))
        if dry_run:
            from phototagger.cli.status import show_status

            show_status(request)
            return
        keep = bool(given.roots) or settings is not given
        if stage == "scan":
            scan(settings, keep)
            return
        execute(request, keep)

    return o.configured(command)


def enter(workdir: Path) -> None:
    """Make the work directory the current one."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        os.chdir(workdir)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot be used ({error.strerror})") from error


def recall(given: Settings) -> Settings:
    """The given settings; without PHOTOS, on top of those the last run here was given."""
    if given.roots:
        return given
    before = remembered()
    if not before:
        return given
    roots = ", ".join(before.roots or ())
    settings = given.over(before)
    where = f", profile: {settings.profile}" if before.profile and not given.profile else ""
    print(f"photos: {roots}{where} (as in the last run here)", file=sys.stderr)
    return settings


def execute(request: Request, keep: bool) -> None:
    """Run Snakemake to the targets and tell what happened; raises FailedError if it failed.

    With `keep` the settings are remembered for later commands in this work directory.
    """
    here = child_environment(request.settings)
    preflight(request.settings, here)
    config = read_config(request.settings, here)
    preflight_servers(config, here, request.targets)
    python = profiles.interpreter(request.executor, sys.executable)
    submits = profiles.submits(request.executor)
    started, token = time.time(), runtoken.new()
    with locked() as lock:
        if keep:
            remember(request.settings)
        environment = request.settings.environment(OVERRIDES) | {runtoken.VARIABLE: token}
        EVENTS.parent.mkdir(parents=True, exist_ok=True)
        EVENTS.unlink(missing_ok=True)
        watch = Watch(token, submits)
        command = [python, *snakemake(request, EVENTS)[1:]]
        grace = CANCELLING if submits else GRACE
        try:
            status, stopped = run_child(command, environment, CONSOLE, lock, watch.tick, grace)
        finally:
            watch.close()
            stop_servers(config)
    watch.conclude(status, stopped, started, everything=not request.targets)


def scan(settings: Settings, keep: bool) -> None:
    """Make the plan, as Snakemake does before anything else, and say how many photos there are."""
    from phototagger.workflow import prepare

    preflight(settings, child_environment(settings))
    with locked():
        if keep:
            remember(settings)
        os.environ.update(settings.environment(OVERRIDES))
        plan = prepare({}, main=True)
    photos = sum(shard.photos for shard in plan.shards)
    print(f"{photos:,} photos, {len(plan.shards):,} jobs per stage: {INDEX.parent.absolute()}")


def stop_servers(config: Config) -> None:
    """Stop the model servers that were started for us, unless another run is using them."""
    if not is_on(config):
        return
    from phototagger.server import stop_idle

    try:
        stopped = stop_idle(config.servers)
    except UserError as error:  # a run's own error matters more; an idle server stops by itself
        print(f"photo-tagger: {error}", file=sys.stderr)
        return
    if stopped:
        print(f"model server stopped: {', '.join(stopped)}")


def child_environment(settings: Settings) -> dict[str, str]:
    """Our environment, with the file that --config-file named."""
    named = {"PHOTO_TAGGER_CONFIG": settings.config_file} if settings.config_file else {}
    return {**os.environ, **named}


def snakemake(
    request: Request, events: Path, *flags: str, profile: Path | None = None
) -> list[str]:
    """The command line; extras come last, so that they win.

    `profile` stands for the request's own in a dry run.
    --nolock: our own lock is held (see `child`), and needs no unlocking after a kill.
    """
    default = str(CLONE / "profiles/default")
    own = request.profile
    if own:  # of several profiles the last one wins, but a workflow profile outranks them all
        chosen = ["--profile", default, "--profile", str(profile or own.path)]
        chosen += ["--workflow-profile", "none"]
    else:
        chosen = ["--workflow-profile", default]
    # Where jobs are submitted, cores cap what one of them asks for: not by what this machine has.
    limited = own is not None and own.limits_itself
    elsewhere = profile is None and (limited or profiles.submits(request.executor))
    cores = str(request.cores) if request.cores else "" if elsewhere else "all"
    return [
        *(sys.executable, "-P", "-m", "snakemake", "--snakefile", str(SNAKEFILE)),
        *chosen,
        *(("--cores", cores) if cores else ()),
        *("--logger", "phototagger", "--logger-phototagger-path", str(events)),
        *flags,
        "--nolock",
        *request.targets,
        *request.extras,
    ]


def dry_run(request: Request) -> tuple[int, RunState]:
    """What Snakemake would do: its exit status and the RunState after a dry run."""
    with tempfile.TemporaryDirectory(prefix="photo-tagger-") as folder:
        events = Path(folder, "events.jsonl")
        environment = request.settings.environment(Path(folder, "overrides.json"))
        own = request.profile
        harmless = own.write_for_dry_run(Path(folder)) if own else None
        command = snakemake(request, events, "--dry-run", profile=harmless)
        status, _ = run_child(command, environment, Path(folder, "log"), None, lambda _: None)
        state = RunState(read_shards())
        for event in Follower(events).new():
            state.apply(event)
    return status, state


def read_shards() -> dict[str, int]:
    """Photos of every shard of the plan; empty if there is none yet."""
    from phototagger.plan import read_index

    try:
        shards, _ = read_index(INDEX)
    except FileNotFoundError:
        return {}
    return {shard.name: shard.photos for shard in shards}


class Watch:
    """Follows a run's events and shows its progress."""

    def __init__(self, token: str | None = None, submits: bool = False) -> None:
        from rich.console import Console

        from phototagger.cli.progress import display

        self._console = Console()
        self._state = RunState(token=token, submits=submits)
        self._token, self._submits = token, submits
        self._stopping = False
        self._next = 0.0
        self._follower = Follower(EVENTS)
        self._display = display(self._console)

    def tick(self, stopping: bool) -> None:
        if stopping:  # jobs that we interrupt are no failures
            if not self._stopping:
                what = "stopping" if not self._submits else _CANCELLING
                self._console.print(what, highlight=False)
            self._stopping = True
            return
        if time.monotonic() >= self._next:
            self._look()

    def _look(self) -> None:
        began = time.monotonic()
        for event in self._follower.new():
            if not self._state.shards or event.get("event") == "run_info":
                self._state.shards = read_shards()
            self._state.apply(event)
        self._display.update(self._state)
        now = time.monotonic()  # with thousands of jobs a look takes a while: a tenth of our time
        self._next = now + 9 * (now - began)

    def close(self) -> None:
        if not self._stopping:
            self._look()
        self._display.close()

    def conclude(self, status: int, stopped: bool, started: float, everything: bool) -> None:
        """Print the summary, or raise FailedError with the reason."""
        from phototagger.cli.summary import show_summary

        if stopped and status:
            raise FailedError("stopped; what is done is kept, and the next run goes on from there")
        if status == 0:
            if not self._state.planned:
                photos = sum(read_shards().values())
                self._console.print(f"Everything is up to date: {photos:,} photos.")
            show_summary(self._console, started, everything, self._token)
            return
        show_summary(self._console, started, everything=False, token=self._token)
        failures = self._state.failures
        if failures:
            jobs = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
            raise FailedError(f"{jobs} failed, see above; what is done is kept")
        if self._state.messages:
            raise FailedError(plain_error(self._state.messages[-1]))
        raise FailedError(f"Snakemake: {_tail(CONSOLE)} (status {status}, log: {CONSOLE})")


def _tail(path: Path) -> str:
    lines = path.read_text("utf-8", errors="backslashreplace").split("\n")
    return next(
        (names.encode(line.strip()) for line in reversed(lines) if line.strip()), "no output"
    )
