"""Progress in photos, stage by stage: bars on a terminal, a line now and then elsewhere."""

import time
from typing import Protocol

from rich.console import Console, Group
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

from phototagger.cli.events import Failure, RunState
from phototagger.metrics import STAGES

_INTERVAL = 5.0  # seconds between two lines of a stage when there is no terminal


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


class Failures:
    """Prints each failed job once, when it fails."""

    def __init__(self, console: Console):
        self._console = console
        self._shown = 0

    def show(self, failures: list[Failure]) -> None:
        for failure in failures[self._shown :]:
            self._console.print(describe(failure), markup=False, highlight=False, soft_wrap=True)
        self._shown = len(failures)


def describe(failure: Failure) -> str:
    where = f"{failure.rule}, shard {failure.shard}" if failure.shard else failure.rule
    return f"failed: {where}: {failure.cause}" + (f" (log: {failure.log})" if failure.log else "")


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
        self._failures = Failures(console)
        self._tasks: dict[str, TaskID] = {}
        self._spinner = Spinner("dots", "planning")
        self._busy = True
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)
        self._live.start()

    def _render(self) -> Group:
        return Group(self._progress, self._spinner) if self._busy else Group(self._progress)

    def update(self, state: RunState) -> None:
        for rule in stages(state):
            self._update_bar(rule, state)
        other = other_work(state)
        self._busy = bool(other) or not state.planned
        self._spinner.update(text=other or "planning")
        self._failures.show(state.failures)

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
        self._busy = False
        self._live.stop()


class Lines:
    """For logs and pipes: a line per stage when it begins, every few seconds, and at its end."""

    def __init__(self, console: Console, interval: float = _INTERVAL):
        self._console = console
        self._interval = interval
        self._failures = Failures(console)
        self._last: dict[str, tuple[float, int]] = {}  # per stage: when, photos done

    def update(self, state: RunState) -> None:
        now = time.monotonic()
        for rule in stages(state):
            stage = state.stage(rule)
            when, done = self._last.get(rule, (now - self._interval, 0))
            complete = stage.done == stage.total
            if stage.done > done and (complete or now - when >= self._interval):
                self._last[rule] = (now, stage.done)
                self._say(f"{rule}: {stage.done:,} of {stage.total:,} photos")
        self._failures.show(state.failures)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._console.file.flush()
