"""Every benchmark, as ratios within this one run; prints a table and rewrites docs/performance.md.

    python tests/bench/run.py [NAME ...]     names: describe embed plan scale sidecars thumbs

A benchmark is a module `bench_<name>.py` with `run(tmp) -> list of rows`. A row has `name`, `ours`,
`theirs` (None where a limit is the peer), `ratio`, `unit`, `goal` and optionally `note`.
"""

import importlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/performance.md"
BEGIN, END = "<!-- bench {} -->", "<!-- end {} -->"
BY_THEMSELVES = {"slurm"}  # wants root and Slurm, and takes half an hour
COLUMNS = ("name", "ours", "theirs", "unit", "ratio", "goal")

Row = dict[str, Any]


def main(names: list[str]) -> None:
    found = {path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")}
    known = sorted(found - BY_THEMSELVES)
    if unknown := set(names) - set(known):
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; valid are: {', '.join(known)}")
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts"), str(HERE.parent)]
    for name in names or known:
        with tempfile.TemporaryDirectory(prefix="photo-tagger-bench-") as tmp:
            rows = importlib.import_module(f"bench_{name}").run(Path(tmp))
        show(name, rows)
        write(name, rows)


def show(name: str, rows: list[Row]) -> None:
    table = Table(*COLUMNS, title=name)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=140).print(table)


def cells(row: Row) -> list[str]:
    return [_text(row.get(column)) for column in COLUMNS]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def write(name: str, rows: list[Row]) -> None:
    """Replace this benchmark's table in the page."""
    lines = [
        f"{measured_on()}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- " * len(COLUMNS) + "|",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        *(f"\n{row['name']}: {row['note']}" for row in rows if row.get("note")),
    ]
    replace_lines(PAGE, name, lines)


def measured_on() -> str:
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}"
    )


def replace_lines(page: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between a benchmark's marks in a page."""
    begin, end = BEGIN.format(name), END.format(name)
    text = page.read_text("utf-8")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(before + "\n".join([begin, *lines, end]) + after, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
