"""What a person is told when a run has ended: the table of stages, top labels, where to look."""

import csv
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from phototagger.metrics import STAGES, Stage, stages_since

_TOP_LABELS = 10
_PAGES = (
    ("results/report.html", "pictures, by folder"),
    ("results/summary.md", "the library in figures"),
    ("results/tags.csv", "one row per photo"),
)


def show_summary(console: Console, started: float, everything: bool) -> None:
    """Print what the run since `started` did in the current (= work) directory.

    With `everything` (a run to the end, not to one stage) also top labels and where to look.
    """
    stages = stages_since(Path("results"), started)
    of_photos = {rule: stages[rule] for rule in STAGES if rule in stages}
    if of_photos:
        console.print(stage_table(of_photos))
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
    problems = count_problems(Path("results/problems.csv"))
    if problems:
        photos = "1 photo" if problems == 1 else f"{problems:,} photos"
        path = Path("results/problems.csv").absolute()
        _say(console, f"{f'{photos} with problems:':<24}{path}")


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
    """Rows of problems.csv, 0 if there is none yet."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return max(0, sum(1 for _ in csv.reader(file)) - 1)
    except FileNotFoundError:
        return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
