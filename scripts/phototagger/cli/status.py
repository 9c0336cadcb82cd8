"""`status`: what is stale and why, from a dry run, in a person's words."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from phototagger import runtoken
from phototagger.cli import options as o
from phototagger.cli.child import holder
from phototagger.cli.errors import FailedError
from phototagger.cli.events import Follower, Job, RunState, group_failures, plain_error
from phototagger.cli.run import (
    EVENTS,
    Request,
    child_environment,
    dry_run,
    enter,
    read_shards,
    recall,
)
from phototagger.cli.settings import from_options, preflight
from phototagger.metrics import STAGES

FROZEN = Path("results/plan/config.json")

PHOTOS_CHANGED = "photos or sidecars were added, changed or removed"
_REASONS = (
    ("Missing output files", "not done yet"),
    ("Incomplete output files", "was interrupted"),
    ("Forced execution", "asked for"),
    ("Set of input files has changed", "photos were added or removed"),
    ("Software environment", "the software environment changed"),
    ("Code has changed", "the program changed"),
)
_FACTS = {
    "model_digest": "the CLIP model changed",
    "pack": "the labels changed",
    "roots": "the photos' folders moved",
}
_SETUP_FACTS = {
    "setup_digest": "the model setup changed",
    "prompt_digest": "the prompts changed",
}
ASKED_CHANGED = "what the model is asked changed"  # says less than those above


def status(
    context: typer.Context,
    workdir: o.Workdir = Path(),
    config_file: o.ConfigFile = None,
    assignments: o.Assignments = None,
) -> None:
    """Say what is stale and why, photos done per stage, and how many have problems."""
    given = from_options({}, assignments or (), (), config_file)
    enter(workdir)
    owner = holder()
    if owner:
        show_running(owner)
        return
    show_status(Request(recall(given), [], extras=list(context.obj or ())))


def show_status(request: Request) -> None:
    """Print the outcome of a dry run; raises FailedError if Snakemake cannot make one."""
    from rich.console import Console
    from rich.table import Table

    from phototagger.cli.summary import count_problems

    preflight(request.settings, child_environment(request.settings))
    code, state = dry_run(request)
    if code:
        raise failed_dry_run(state)
    console = Console()
    photos = sum(state.shards.values())
    if not state.planned:
        console.print(f"Everything is up to date: {photos:,} photos.", highlight=False)
    else:
        words = Words.load(state.shards)
        table = Table()
        table.add_column("stage")
        table.add_column("photos done", justify="right")
        table.add_column("to do, because", overflow="fold")
        for rule, done, why in rows(state, words):
            if request.targets and why == "-":
                continue  # perhaps done, perhaps not asked for
            table.add_row(rule, done, why)
        console.print(table)
    problems = count_problems(Path("results/problems.csv"))
    if problems:
        photos = "1 photo" if problems == 1 else f"{problems:,} photos"
        console.print(f"{photos} with problems: results/problems.csv", highlight=False)


def failed_dry_run(state: RunState) -> FailedError:
    return FailedError(plain_error(state.messages[-1]) if state.messages else "the dry run failed")


def rows(state: RunState, words: "Words") -> list[tuple[str, str, str]]:
    """(stage, photos done of all, what is to do and why) per stage, in pipeline order.

    A model setup counts every photo; without any setup the stage `describe` is off.
    """
    photos = sum(state.shards.values())
    jobs: dict[str, list[Job]] = {rule: [] for rule in STAGES}
    for job in state.jobs.values():
        jobs.setdefault(job.rule, []).append(job)
    result = []
    for rule, stale in jobs.items():
        setups = {*words.setups, *(job.setup for job in stale)} if rule == "describe" else {None}
        if rule.endswith("all") or not setups:
            continue
        done = ""
        if rule in STAGES:
            total = len(setups) * photos
            todo = sum(state.shards.get(job.shard or "", 0) for job in stale)
            done = f"{total - todo:,} of {total:,}"
        result.append((rule, done, words.why(stale)))
    return result


class Words:
    """Puts Snakemake's reasons into words.

    Snakemake names the new values of changed params, not their keys; so values are looked up among
    the listings' digests, the digests of model and labels, and the configuration.
    """

    def __init__(self, frozen: Mapping[str, Any], listings: Mapping[str, str]):
        self._values = dict.fromkeys(listings, PHOTOS_CHANGED)
        facts = frozen.get("facts", {})
        for name, meaning in _FACTS.items():
            if value := facts.get(name):
                self._values[value] = meaning
        self.setups: Mapping[str, Mapping[str, str]] = facts.get("setups") or {}
        for setup in self.setups.values():
            if recipe := setup.get("recipe"):
                self._values[recipe] = ASKED_CHANGED
            for name, meaning in _SETUP_FACTS.items():
                if value := setup.get(name):
                    self._values[value] = meaning
        for key, value in _flat(frozen.get("config", {})):
            if value is not None and not isinstance(value, bool):
                self._values.setdefault(str(value), f"{key} changed")
        if (threshold := frozen.get("threshold")) is not None:
            self._values[str(threshold)] = "score.threshold changed"

    @classmethod
    def load(cls, shards: Mapping[str, int]) -> "Words":
        """From the frozen configuration and the index that the dry run has just written."""
        from phototagger.cli.run import INDEX
        from phototagger.plan import read_index

        try:
            frozen = json.loads(FROZEN.read_text("utf-8"))
            listings = {shard.digest: shard.name for shard in read_index(INDEX)[0]}
        except (OSError, ValueError):
            return cls({}, {})
        return cls(frozen, listings)

    def why(self, jobs: list[Job]) -> str:
        """The reasons of a stage's stale jobs, the most frequent first."""
        if not jobs:
            return "-"
        found: Counter[str] = Counter()
        for job in jobs:
            found.update(self.reasons(job.reason))
        # what follows from an earlier stage needs no words when something of its own changed too
        own = [reason for reason, _ in found.most_common() if not reason.startswith("follows")]
        return "; ".join(own or [reason for reason, _ in found.most_common()])

    def reasons(self, reason: str) -> set[str]:
        """Snakemake's reason for one job as a set of short phrases."""
        found = {words for prefix, words in _REASONS if prefix in reason}
        if "Missing output files" in reason:
            return {"not done yet"}
        if "Updated input files" in reason:
            listing = "Updated input files: results/plan/shards/" in reason
            found.add(PHOTOS_CHANGED if listing else "its inputs changed")
        if "updated by another job" in reason:
            found.add("follows from an earlier stage")
        if "Params have changed" in reason:
            found |= self._params(reason)
        return found or {reason}

    def _params(self, reason: str) -> set[str]:
        _, _, text = reason.partition(" now: ")
        values = {value.strip(" '\"") for value in re.split(r"[,;]", text)}
        known = {self._values[value] for value in values if value in self._values}
        if any(value.startswith("again-") for value in values):
            known.add("a model server failed on some")
        if known & set(_SETUP_FACTS.values()):
            known.discard(ASKED_CHANGED)
        return known or {"the program or its settings changed"}


def _flat(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    from phototagger.config import flatten

    return list(flatten(config))


def show_running(owner: Mapping[str, Any]) -> None:
    """Print how far the run is that holds the work directory."""
    from phototagger.cli.progress import describe, queue

    state = RunState(read_shards(), token=runtoken.current())
    for event in Follower(EVENTS).new():
        state.apply(event)
    minutes = (time.time() - float(owner.get("started", time.time()))) / 60
    print(
        f"A run is under way: process {owner.get('pid', '?')} on {owner.get('host', '?')}, ", end=""
    )
    print(f"for {minutes:.0f} min.")
    for rule in STAGES:
        if state.planned.get(rule):
            stage = state.stage(rule)
            print(f"{rule}: {stage.done:,} of {stage.total:,} photos")
    if waiting := queue(state):
        print(waiting)
    for node, jobs in sorted(state.places().items()):
        print(f"on {node}: {', '.join(f'{rule} {n:,}' for rule, n in sorted(jobs.items()))}")
    for group in group_failures(state.failures):
        print(describe(group))
