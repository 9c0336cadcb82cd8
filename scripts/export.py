"""Rule `export`: the table of tags, one row per record, for spreadsheets and other programs.

The one result with absolute paths. Fields are quoted as CSV asks for and otherwise left as they
are: a file name that begins with `=` is a formula to some spreadsheets, so import them as text.
"""

import csv
import json
from pathlib import Path

from phototagger import names
from phototagger.files import open_atomic
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.records import TAG_COLUMNS, read_records, tag_fields


def export(
    records: Path,
    output: Path,
    *,
    machine: Machine,
    run_id: str,
    model: str,
    decisions: Path | None = None,
    stats: Stats | None = None,
) -> None:
    """Write `tags.csv` (columns `TAG_COLUMNS`), in the order of the records.

    `decisions` (JSON lines: sha256, decision, labels) is what a person decided in review; the
    labels of approved photos fill `approved_labels`.
    """
    stats = stats or Stats()
    approved = read_approved(decisions) if decisions else {}
    with open_atomic(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TAG_COLUMNS)
        for record in read_records(records):
            path = names.encode(machine.roots.address(record["rel_path"]))
            labels = "|".join(approved.get(record["sha256"], []))
            writer.writerow([path, *tag_fields(record), labels, run_id, model])
            stats.photos += 1
            stats.computed += 1
            stats.progress()


def read_approved(decisions: Path) -> dict[str, list[str]]:
    """The approved labels by SHA-256 of the photo; a later line outranks an earlier one."""
    approved: dict[str, list[str]] = {}
    with decisions.open(encoding="utf-8") as file:
        for decision in map(json.loads, file):
            labels = decision["labels"] if decision["decision"] == "approved" else []
            approved[decision["sha256"]] = labels
    return approved


if __name__ == "__main__":
    with job(snakemake) as stats:
        review = snakemake.input.get("decisions")
        export(
            Path(snakemake.input.records),
            Path(snakemake.output.table),
            machine=Machine.load(snakemake.params.machine),
            run_id=snakemake.params.run_id,
            model=snakemake.params.model,
            decisions=Path(review) if review else None,
            stats=stats,
        )
