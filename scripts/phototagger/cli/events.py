"""What a Snakemake run is doing, from the events that the logger plugin writes."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phototagger import runtoken
from phototagger.job import read_counts, stats_path

QUOTE = "  | "  # before lines that an error quotes
KILLED = "killed (out of memory, time limit, lost node?)"
NOT_BEGUN = "ended before it could begin"


@dataclass
class Job:
    """A job that was started (or, in a dry run, would be)."""

    rule: str
    shard: str | None
    log: Path | None
    reason: str
    started: float  # seconds since the epoch
    setup: str | None = None  # of a job that asks a model
    ended: bool = False
    failed: bool = False
    begun: bool = False  # seen at work


@dataclass
class Failure:
    """A job that failed: where to read about it, and its last words."""

    rule: str
    shard: str | None
    log: Path | None
    cause: str
    setup: str | None = None
    job: int | None = field(default=None, compare=False)
    begun: bool = field(default=True, compare=False)

    @property
    def group(self) -> tuple[str, str]:
        """Equal for failures that one remedy mends: what only names the shard is left out."""
        return self.rule, self.cause.replace(self.shard, "") if self.shard else self.cause


@dataclass
class Stage:
    """Photos of a stage: done and to do in this run."""

    done: int
    total: int


@dataclass
class RunState:
    """Built event by event with `apply`. `shards` is the number of photos of every shard."""

    shards: dict[str, int] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)  # jobs to do, per rule
    jobs: dict[int, Job] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # errors that are not about a job
    token: str | None = None  # of the run (see `runtoken`); None: told by times
    submits: bool = True  # jobs may wait for a node
    _groups: dict[int, int] = field(default_factory=dict)  # job -> first job of its failed group

    def apply(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "run_info":
            jobs = event.get("jobs") or {}
            self.planned = {rule: count for rule, count in jobs.items() if rule != "total"}
        elif kind == "job_info":
            logs = event.get("log") or []
            wildcards = event.get("wildcards") or {}
            # tried again: what it failed of before is no failure yet
            self.failures = [f for f in self.failures if f.job is None or f.job != event["job"]]
            self.jobs[event["job"]] = Job(
                event["rule"],
                wildcards.get("shard"),
                Path(logs[0]) if logs else None,
                event.get("reason") or "",
                event.get("time", 0.0),
                wildcards.get("setup"),
            )
        elif kind == "job_finished" and event["job"] in self.jobs:
            self.jobs[event["job"]].ended = True
        elif kind == "job_error":
            self._failed(event)
        elif kind == "group_error":
            members = event.get("jobs") or []
            self._groups.update(dict.fromkeys(members, min(members, default=0)))
        elif kind in ("error", "message") and event.get("message"):
            self.messages.append(event["message"])

    def _failed(self, event: dict[str, Any]) -> None:
        logs = event.get("log") or []
        log = Path(logs[0]) if logs else None
        number = event.get("job")
        job = self.jobs.get(number)
        if job:
            job.ended = job.failed = True
        counts = live_counts(log, job.started if job else 0.0, self.token)
        if counts.get("finished"):
            return  # itself it did not fail, but another of its group
        shard, setup = (job.shard, job.setup) if job else (None, None)
        begun = bool(counts) or not self._tracked(log)
        cause = self._cause(log, counts, begun, event.get("said"))
        rule = event.get("rule") or "?"
        self.failures.append(Failure(rule, shard, log, cause, setup, number, begun))
        self._leave_out_bystanders(number)

    def _leave_out_bystanders(self, job: int | None) -> None:
        """Of a group that failed, only jobs that had begun are told, if there are any."""
        group = self._groups.get(job) if job is not None else None
        of_group = [f for f in self.failures if self._groups.get(f.job, -1) == group]
        if group is not None and any(failure.begun for failure in of_group):
            self.failures = [f for f in self.failures if f.begun or f not in of_group]

    def _tracked(self, log: Path | None) -> bool:
        """Whether jobs of this run leave counts that name it, from their first moment on."""
        return self.token is not None and log is not None and runtoken.current() == self.token

    def _cause(self, log: Path | None, counts: dict[str, Any], begun: bool, said: Any) -> str:
        status = said_by_batch_system(said)
        if log is None:
            return f"failed without a log{status}"
        if not begun:
            return NOT_BEGUN + status
        if counts.get("run") and not counts.get("error"):  # it had no time to say anything
            return KILLED + status
        return last_words(log) + status

    def rules(self) -> list[str]:
        """Rules of this run that have a job per shard."""
        seen = {job.rule for job in self.jobs.values() if job.shard}
        return [rule for rule in self.planned if rule in seen]

    def running(self) -> list[Job]:
        """Jobs that were started or submitted, and have not ended."""
        return [job for job in self.jobs.values() if not job.ended]

    def waiting(self) -> list[Job]:
        """Submitted jobs of which nothing has been heard: they wait for a node."""
        return [
            job for job in self.running() if job.log and not job.begun and not self._has_begun(job)
        ]

    def places(self) -> dict[str, Counter[str]]:
        """By node: how many jobs of each rule are at work there, as their counts say."""
        found: dict[str, Counter[str]] = {}
        for job in self.running():
            counts = live_counts(job.log, job.started, self.token)
            if node := counts.get("node") or counts.get("host"):
                found.setdefault(node, Counter())[job.rule] += 1
        return found

    def _has_begun(self, job: Job) -> bool:
        job.begun = bool(live_counts(job.log, job.started, self.token))
        return job.begun

    def stage(self, rule: str) -> Stage:
        """Photos of a shard rule, those within running jobs included; once for each model setup.

        Which shards are stale is known once their jobs start; until then the total is the mean
        shard times the number of jobs, which is exact when all are.
        """
        jobs = self._of(rule)
        photos = {(job.shard, job.setup): self.shards.get(job.shard or "", 0) for job in jobs}
        done = sum(self._photos_done(job) for job in jobs)
        seen, planned = sum(photos.values()), self.planned.get(rule, 0)
        unseen = planned - len(photos)
        setups = max(len({job.setup for job in jobs}), -(-planned // max(1, len(self.shards))))
        others = setups * len(self.shards) - len(photos)
        rest = setups * sum(self.shards.values()) - seen
        guess = round(unseen * rest / others) if others > 0 and unseen > 0 else 0
        return Stage(done, max(done, seen + guess))

    def _of(self, rule: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.rule == rule and job.shard]

    def _photos_done(self, job: Job) -> int:
        photos = self.shards.get(job.shard or "", 0)
        if job.ended:
            return 0 if job.failed else photos
        return min(photos, live_count(job, self.token))


def group_failures(failures: Iterable[Failure]) -> list[list[Failure]]:
    """Failures of one rule with the same cause together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.group, []).append(failure)
    return list(groups.values())


def live_counts(log: Path | None, started: float, token: str | None) -> dict[str, Any]:
    """The counts beside a job's log, if they are of this run and not of an earlier one."""
    if log is None:
        return {}
    path = stats_path(log)
    try:
        written = path.stat().st_mtime
    except OSError:
        return {}
    counts = read_counts(path)
    return counts if runtoken.belongs(counts, written, token, started) else {}


def live_count(job: Job, token: str | None = None) -> int:
    """Photos that a running job has dealt with, by the counts beside its log; 0 if none yet."""
    counts = live_counts(job.log, job.started, token)
    try:
        return sum(int(counts[name]) for name in ("computed", "cached", "problems", "skipped"))
    except (ValueError, KeyError, TypeError):
        return 0


def said_by_batch_system(said: Any) -> str:
    """What an executor says about a job's end, to be put after a cause: `; SLURM: TIMEOUT`."""
    found = re.search(r"(\w+) status is: '([^']+)'", str(said or ""))
    return f"; {found[1]}: {found[2]}" if found else ""


def last_words(log: Path) -> str:
    """The last error in a job's log, else its last line.

    A line, and below it the lines that the error quotes (from the log of a model server).
    """
    try:
        text = log.read_text("utf-8", errors="backslashreplace")
    except OSError:
        return "ended before it could write its log (killed, or out of memory?)"
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(QUOTE) and lines:
            lines[-1] += f"\n{line.rstrip()}"
        elif line.strip():
            lines.append(line.strip())
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    return (errors or lines or ["ended without a word (killed, or out of memory?)"])[-1]


class Follower:
    """Reads the lines that were added to a file since the last look; half lines wait."""

    def __init__(self, path: Path):
        self._path = path
        self._position = 0
        self._rest = b""

    def new(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # cut off by a full disk or a kill; nothing but the display depends on it


def plain_error(message: str) -> str:
    """A Snakemake error as one line: a UserError's own words, else all but the traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith('File "')]
    if not lines:
        return "failed without a message"
    if "UserError in " in lines[0] or "TransientError in " in lines[0]:
        return lines[1] if len(lines) > 1 else lines[0]
    return " ".join(lines)
