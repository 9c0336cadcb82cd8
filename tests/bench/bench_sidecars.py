"""Sidecars per second of one job, and against one ExifTool process per photo."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from sidecars import sidecars

from phototagger import xmp
from phototagger.machine import Machine
from phototagger.plan import Root, Roots

PHOTOS = 600
SINGLE = 15


def _record(number: int) -> dict:
    """Five keywords of three levels; no two photos have equal ones."""
    keywords = [
        {"keyword": f"k{number}-{n}", "path": ["thing", f"group {n}", f"k{number}-{n}"]}
        for n in range(5)
    ]
    return {"rel_path": f"{number:04d}.jpg", "keywords": keywords}


def _one_process_each(records: list[dict], folder: Path) -> float:
    """Sidecars per second when every photo starts its own ExifTool."""
    folder.mkdir()
    start = time.perf_counter()
    for record in records:
        values = xmp.assignments(xmp.sidecar_values(record))
        target = folder / f"{record['rel_path']}.xmp"
        command = ["exiftool", "-E", "-sep", "\x1f", *values, target]
        subprocess.run(command, check=True, capture_output=True)
    return len(records) / (time.perf_counter() - start)


def run(tmp: Path) -> list[dict]:
    """Rows of the benchmark table; everything is written below `tmp`."""
    records = [_record(number) for number in range(PHOTOS)]
    listing = tmp / "records.jsonl"
    listing.write_text("".join(json.dumps(record) + "\n" for record in records))
    roots = Roots([Root("photos", str(tmp))])
    machine = Machine(roots, tmp / "cache", tmp, tmp, "cpu", 1)

    single = _one_process_each(records[:SINGLE], tmp / "single")
    rates = []
    for _ in range(2):  # nothing is kept the first time, everything the second
        start = time.perf_counter()
        sidecars(listing, tmp / "manifest.tsv", machine=machine, folder=tmp / "sidecars")
        rates.append(PHOTOS / (time.perf_counter() - start))
    cold, warm = rates
    row = {"unit": "sidecars/s", "ours": cold}
    return [
        row | {"name": "sidecars", "theirs": None, "ratio": None, "goal": ">= 300 sidecars/s"},
        row
        | {
            "name": "sidecars against one ExifTool per photo",
            "theirs": single,
            "ratio": cold / single,
            "goal": ">= 30x",
        },
        row
        | {
            "name": "sidecars, values known, against one ExifTool per photo",
            "ours": warm,
            "theirs": single,
            "ratio": warm / single,
            "goal": None,
        },
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for row in run(Path(folder)):
            print(row)
