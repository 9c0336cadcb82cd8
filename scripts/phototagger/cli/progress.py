"""Progress in photos, stage by stage: bars on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.text import Text

from phototagger.cli.events import Failure, RunState, group_failures
from phototagger.metrics import STAGES

_INTERVAL = 5.0  # seconds between two lines of a stage when there is no terminal
_STARTING = 5.0  # seconds that Python may take to start on this machine
_LIVE_FAILURES = 5  # causes below the bars while a run goes on; at its end all are printed


class Display(Protocol):
    """Shows a run; `update` is called about ten times a second."""

    def update(self, state: RunState) -> None: ...

    def close(self) -> None: ...


def display(console: Console) -> Display:
    return Bars(console) if console.is_terminal else Lines(console)


def stages(state: RunState) -> list[str]:
    """Stages to show, in the order of the pipeline: those that have jobs in this run."""
    return [rule for rule in STAGES if state.planned.get(rule)]


def other_work(state: RunState) -> str:
    """Running jobs that are not about single photos, by rule."""
    return ", ".join(sorted({job.rule for job in state.running() if job.rule not in STAGES}))


def queue(state: RunState, now: float | None = None) -> str:
    """How many jobs run and how many wait for a node; empty if none waits.

    Jobs that were all started a moment ago are not said to wait.
    """
    now = time.time() if now is None else now
    waiting = state.waiting() if state.submits else []
    if all(now - job.started < _STARTING for job in waiting):
        return ""
    return f"{len(state.running()) - len(waiting):,} jobs running, {len(waiting):,} waiting"


def describe(group: list[Failure]) -> str:
    """Failures with the same cause as one line (and what it quotes), with the log of the first."""
    first, shards = group[0], {failure.shard for failure in group}
    where = first.rule
    if len(shards) > 1:
        where += f", {len(shards)} shards"
    elif first.shard:
        where += f", shard {first.shard}"
    setups = sorted({failure.setup for failure in group if failure.setup})
    if setups and not first.cause.startswith(f"{setups[0]}: "):
        where += f", {' and '.join(setups)}"
    log = "" if not first.log else f" ({'log' if len(group) == 1 else 'first log'}: {first.log})"
    cause, _, quoted = first.cause.partition("\n")
    return f"failed: {where}: {cause}{log}" + (f"\n{quoted}" if quoted else "")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class Bars:
    """One bar per stage, and a line that names what else is being done."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("photos"),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
        )
        self._console = console
        self._failures: list[Failure] = []
        self._tasks: dict[str, TaskID] = {}
        self._spinner = Spinner("dots", "planning")
        self._busy = self._running = True
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)
        self._live.start()

    def _render(self) -> Group:
        parts: list[RenderableType] = [self._progress]
        if self._busy:
            parts.append(self._spinner)
        groups = group_failures(self._failures)[-_LIVE_FAILURES:] if self._running else []
        parts += [Text(describe(group), no_wrap=True, overflow="ellipsis") for group in groups]
        return Group(*parts)

    def update(self, state: RunState) -> None:
        for rule in stages(state):
            self._update_bar(rule, state)
        other = "; ".join(filter(None, (queue(state), other_work(state))))
        self._busy = bool(other) or not state.planned
        self._spinner.update(text=other or "planning")
        self._failures = list(state.failures)

    def _update_bar(self, rule: str, state: RunState) -> None:
        stage = state.stage(rule)
        if rule not in self._tasks:
            self._tasks[rule] = self._progress.add_task(rule, total=stage.total, start=False)
        task = self._tasks[rule]
        if any(job.rule == rule for job in state.jobs.values()):
            if not self._started(task):
                self._progress.start_task(task)
            self._progress.update(task, completed=stage.done, total=stage.total)

    def _started(self, task: TaskID) -> bool:
        return any(t.id == task and t.started for t in self._progress.tasks)

    def close(self) -> None:
        self._busy = self._running = False
        self._live.stop()
        for group in group_failures(self._failures):
            _say(self._console, describe(group))


class Lines:
    """For logs and pipes: a line per stage when it begins, every few seconds, and at its end.

    A cause of failure is told when it first occurs, and again at the end if it came again.
    """

    def __init__(self, console: Console, interval: float = _INTERVAL):
        self._console = console
        self._interval = interval
        self._failures: list[Failure] = []
        self._told: dict[tuple[str, str], int] = {}  # cause -> how often it had occurred
        self._last: dict[str, tuple[float, int]] = {}  # per stage: when, photos done
        self._queue, self._told_queue = "", 0.0

    def update(self, state: RunState) -> None:
        now = time.monotonic()
        for rule in stages(state):
            stage = state.stage(rule)
            when, done = self._last.get(rule, (now - self._interval, 0))
            complete = stage.done == stage.total
            if stage.done > done and (complete or now - when >= self._interval):
                self._last[rule] = (now, stage.done)
                _say(self._console, f"{rule}: {stage.done:,} of {stage.total:,} photos")
        if (waiting := queue(state)) != self._queue and now - self._told_queue >= self._interval:
            self._queue, self._told_queue = waiting, now
            _say(self._console, waiting or "no job waits")
        if state.failures != self._failures:
            self._failures = list(state.failures)
            self._tell(lambda told, _: not told)

    def _tell(self, wanted: Callable[[int, int], bool]) -> None:
        """Print the causes of which (times told, times occurred) is `wanted`."""
        for group in group_failures(self._failures):
            key = group[0].group
            if wanted(self._told.get(key, 0), len(group)):
                self._told[key] = len(group)
                _say(self._console, describe(group))

    def close(self) -> None:
        self._tell(lambda told, occurred: told < occurred)
        self._console.file.flush()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
