"""What a person is told when a run has ended: the table of stages, top labels, where to look."""

import csv
import json
from collections import Counter
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from phototagger.metrics import STAGES, Describe, Stage, stages_since

_TOP_LABELS = 10
_PAGES = (
    ("results/report.html", "pictures, by folder"),
    ("results/summary.md", "the library in figures"),
    ("results/tags.csv", "one row per photo"),
)


def show_summary(
    console: Console, started: float, everything: bool, token: str | None = None
) -> None:
    """Print what the run since `started`, with that token, did in the current (= work) directory.

    With `everything` (a run to the end, not to one stage) also top labels and where to look.
    """
    stages = stages_since(Path("results"), started, token)
    of_photos = {rule: stages[rule] for rule in STAGES if rule in stages}
    if of_photos:
        console.print(stage_table(of_photos))
        described = of_photos.get("describe")
        if isinstance(described, Describe) and described.fields:
            console.print(field_table(described))
            _say(console, requests_line(described))
    elif stages:
        _say(console, f"Done: {', '.join(stages)}.")
    if everything:
        labels = top_labels(Path("results/records.jsonl"))
        if labels:
            text = ", ".join(f"{label} ({count})" for label, count in labels)
            _say(console, f"Top labels: {text}")
        for path, what in _PAGES:
            if Path(path).exists():
                _say(console, f"{what + ':':<24}{Path(path).absolute()}")
        if Path("results/sidecars").is_dir():
            _say(console, "beside the photos:      photo-tagger diff shows what apply would write")
    if isinstance(described := stages.get("describe"), Describe) and described.server_failed:
        count = described.server_failed
        answers = "1 answer" if count == 1 else f"{count:,} answers"
        _say(console, f"The model server failed on {answers}; the next run asks again.")
    table = Path("results/problems.csv")
    fresh = table.exists() and (everything or not stages or "collect" in stages)
    problems = count_problems(table) if fresh else 0
    if problems:
        photos = "1 photo" if problems == 1 else f"{problems:,} photos"
        path = Path("results/problems.csv").absolute()
        _say(console, f"{f'{photos} with problems:':<23} {path}")


def stage_table(stages: dict[str, Stage]) -> Table:
    """A row per stage of what this run did."""
    table = Table()
    table.add_column("stage")
    for heading in ("photos", "computed", "cached", "problems", "seconds", "photos/s"):
        table.add_column(heading, justify="right")
    for rule, stage in stages.items():
        table.add_row(
            rule,
            f"{stage.photos:,}",
            f"{stage.computed:,}",
            f"{stage.cached:,}",
            f"{stage.problems:,}",
            f"{stage.seconds:,.1f}",
            rate(stage.photos_per_second),
        )
    return table


def field_table(stage: Describe) -> Table:
    """A row per field of what models were asked: of those done, how many were known already."""
    table = Table()
    table.add_column("field")
    for heading in ("done", "cached", "failed", "skipped", "tokens", "p50 s", "p95 s"):
        table.add_column(heading, justify="right")
    setups = {asked.setup for asked in stage.fields.values()}
    if len(setups) > 1:  # else it is named below the table, where there is room
        table.add_column("setup", overflow="fold")
    for name, asked in stage.fields.items():
        row = (
            name,
            f"{asked.done:,}",
            f"{asked.cached:,}",
            f"{asked.failed:,}",
            f"{asked.skipped:,}",
            f"{asked.tokens:,}",
            _seconds(asked.seconds_p50),
            _seconds(asked.seconds_p95),
        )
        table.add_row(*row, *([Text(asked.setup or "")] if len(setups) > 1 else []))  # no markup
    return table


def requests_line(stage: Describe) -> str:
    """What the answers cost: `tiny-vlm_llama.cpp: 120 requests, 3 retries (429: 2, timeout: 1).`"""
    parts = ["1 request" if stage.requests == 1 else f"{stage.requests:,} requests"]
    if stage.retries:
        total = sum(stage.retries.values())
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in stage.retries.items())
        parts.append(f"{'1 retry' if total == 1 else f'{total:,} retries'} ({reasons})")
    if stage.reseeds:
        parts.append(f"{stage.reseeds:,} asked again with another seed")
    if stage.raised:
        parts.append(f"{stage.raised:,} asked again with more tokens")
    setups = {asked.setup or "" for asked in stage.fields.values()}
    who = setups.pop() if len(setups) == 1 else ""
    return f"{who or 'Model servers'}: {', '.join(parts)}."


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def rate(per_second: float) -> str:
    """Two or more digits: `0.4`, `7.3`, `1,418`."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def top_labels(records: Path, count: int = _TOP_LABELS) -> list[tuple[str, int]]:
    """The labels most photos are over the threshold of, as (label, photos), most first."""
    found: Counter[str] = Counter()
    try:
        with records.open(encoding="utf-8") as file:
            for line in file:
                found.update({item["label"] for item in json.loads(line)["over_threshold"]})
    except FileNotFoundError:
        return []
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]


def count_problems(path: Path) -> int:
    """Photos in problems.csv, whose rows are in path order; 0 if there is none yet."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            photos = sum(1 for _ in groupby(csv.reader(file), key=itemgetter(slice(1))))
            return max(0, photos - 1)  # the header is a group of its own
    except FileNotFoundError:
        return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
