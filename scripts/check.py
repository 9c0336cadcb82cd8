"""Rule `check`: prove that every planned photo is accounted for, and that the results agree.

What is proven, reading every file once, side by side, in path order:

* the listings are those of the plan: their digests and counts are the index's
* every planned photo is in `records.jsonl` or in `problems.csv`, once, and nothing else is; so for
  every stage: photos in = done + skipped (quarantined before) + quarantined
* every record satisfies its schema, its scores are numbers and descend, its ranks count up, and its
  keywords are those of the sources they name; one that is tagged already has nothing else, and one
  that inherits has what it inherits
* for every field that a vision language model was to be asked for: records = done + skipped (the
  photo says it itself, or is tagged already) + failed; what was done is in the record and nothing
  else is; what failed is a note of the record and a row in `problems.csv`, and there is no such row
  without
* `tags.csv` has the records' rows, in their order, with this run's run_id
* every folder with records that are not tagged has one medoid, which is one of them
* the sidecars' manifests have a row for each such record, with a sidecar if there is something to
  write (or word that it could not be written), and only then
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phototagger import names
from phototagger.contradictions import Inheritance, contradiction, field_problem
from phototagger.errors import UserError
from phototagger.files import write_atomic
from phototagger.job import Stats, job
from phototagger.manifestcheck import ManifestCheck
from phototagger.plan import INDEX, Photo, digest, read_index, read_listing
from phototagger.problems import KINDS
from phototagger.prompts import FIELDS
from phototagger.records import (
    DESCRIBE,
    SCHEMA,
    STAGES,
    TAG_COLUMNS,
    ProblemRow,
    load_validator,
    read_csv,
    read_medoids,
    read_problems,
    read_records,
    tag_fields,
)

NAMED = 5  # discrepancies named in the message


class Discrepancies:
    """The first few things that do not agree, and how many there are."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(text)

    def error(self) -> UserError:
        more = f" and {self.count - len(self.named)} more" if self.count > len(self.named) else ""
        return UserError(
            f"the results do not add up: {'; '.join(self.named)}{more}. Delete the files named, "
            "or results/records and results/problems to make all of them anew, and run again"
        )


def check(
    index: Path,
    records: Path,
    problems: Path,
    tags: Path,
    medoids: Path,
    output: Path,
    *,
    manifests: Sequence[Path] | None = None,
    switches: Mapping[str, bool] | None = None,
    carry_over: Sequence[str] = (),
    fields: Sequence[str] | None = None,
    schema: Path = SCHEMA,
    stats: Stats | None = None,
) -> None:
    """Prove what the module's docstring says and write the counts.

    `index` is `index.json` of the plan, with the listings in `shards/` beside it. If `manifests` is
    None, sidecars are not looked at; `switches` and `carry_over` say what sidecars hold (see
    `proposal.propose`). `fields` are those that were to be described; if None, those of the first
    record that is not tagged.

    Raises UserError that names the first discrepancies; nothing is written then.
    """
    stats = stats or Stats()
    found = Discrepancies()
    shards, run_id = read_index(index)
    planned = _planned(index, found)
    proposals = ManifestCheck(found.add, manifests, switches or {}, carry_over)
    audit = _Audit(found, tags, medoids, proposals, load_validator(schema), run_id, fields)
    quarantined: Counter[str] = Counter()

    record_rows, problem_rows = read_records(records), read_problems(problems)
    record, problem = next(record_rows, None), next(problem_rows, None)
    for photo in planned:
        stats.photos += 1
        stats.progress()
        if record is not None and record.get("rel_path") == photo.rel_path:
            failed = []
            while problem is not None and _is_beside(problem, photo.rel_path):
                _check_problem(problem, found)
                failed.append(problem.message)
                problem = next(problem_rows, None)
            audit.record(record, failed)
            record = next(record_rows, None)
        elif problem is not None and problem.rel_path == photo.rel_path:
            if problem.stage == DESCRIBE:
                raise _diagnosis(index, records, problems)
            _check_problem(problem, found)
            quarantined[problem.stage] += 1
            problem = next(problem_rows, None)
        else:
            raise _diagnosis(index, records, problems)
    if record is not None or problem is not None:
        raise _diagnosis(index, records, problems)
    audit.finish()
    if found.count:
        raise found.error()

    counts = {
        "folders": len(audit.folders),
        "inherited": audit.inheritance.count,
        "keywords": audit.keywords,
        "ok": True,
        "photos": stats.photos,
        "problems": quarantined.total(),
        "records": audit.count,
        "run_id": run_id,
        "shards": len(shards),
        "sidecars": proposals.count,
        "sidecars_failed": proposals.failed,
        "stages": ledger(stats.photos, quarantined, audit.tagged)
        | audit.fields.ledger(quarantined.total() + audit.tagged),
        "tagged": audit.tagged,
    }
    write_atomic(output, json.dumps(counts, indent=1, sort_keys=True) + "\n")
    stats.computed, stats.skipped = audit.count, quarantined.total()


def ledger(photos: int, quarantined: Counter[str], tagged: int) -> dict[str, dict[str, int]]:
    """Per stage how many photos came in, were done, skipped, quarantined.

    Skipped are those that were quarantined before and, but by `thumbs` and `record`, those that
    are tagged already.
    """
    stages, before = {}, 0
    for stage in (*STAGES, "score", "record"):
        here = quarantined[stage]
        skipped = before + (tagged if stage in ("embed", "score") else 0)
        stages[stage] = {
            "in": photos,
            "done": photos - skipped - here,
            "skipped": skipped,
            "quarantined": here,
        }
        before += here
    return stages


# ----------------------------------------------------------------------------------------- plan


def _planned(index: Path, found: Discrepancies) -> Iterator[Photo]:
    for shard in read_index(index)[0]:
        listing = index.parent / "shards" / f"{shard.name}.tsv"
        try:
            content = listing.read_bytes()
            photos = read_listing(listing)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"{listing}: not a listing ({error}); run again to plan anew"
            ) from error
        if digest(content) != shard.digest or len(photos) != shard.photos:
            found.add(f"{listing}: not the listing of the plan, which changed meanwhile")
        yield from photos


def _diagnosis(index: Path, records: Path, problems: Path) -> UserError:
    """Name the photos that are missing, doubled or unknown; needs all names in memory.

    Nothing else is named: what else differs mostly follows from it.
    """
    found = Discrepancies()
    in_plan = Counter(photo.rel_path for photo in _planned(index, found))
    in_records = Counter(str(record.get("rel_path")) for record in read_records(records))
    rows = list(read_problems(problems))
    in_problems = Counter(row.rel_path for row in rows if row.stage != DESCRIBE)
    for rel_path, times in in_plan.items():
        if times > 1:
            found.add(f"{rel_path}: {times} times in the plan")
        if rel_path in in_records and rel_path in in_problems:
            found.add(f"{rel_path}: in {records} and in {problems}")
        if rel_path not in in_records and rel_path not in in_problems:
            found.add(f"{rel_path}: planned, but neither in {records} nor in {problems}")
    for path, listed in ((records, in_records), (problems, in_problems)):
        for rel_path, times in listed.items():
            if times > 1:
                found.add(f"{path}: {rel_path}: {times} times")
            if rel_path not in in_plan:
                found.add(f"{path}: {rel_path}: not in the plan")
    for row in rows:
        if row.stage == DESCRIBE and row.rel_path not in in_records:
            found.add(f"{problems}: {row.rel_path}: {row.message!r}, but there is no such record")
    if not found.count:
        found.add(f"{records} or {problems}: not in the order of the plan")
    return found.error()


def _is_beside(row: ProblemRow, rel_path: str) -> bool:
    return row.stage == DESCRIBE and row.rel_path == rel_path


def _check_problem(row: ProblemRow, found: Discrepancies) -> None:
    if row.stage not in (*STAGES, DESCRIBE):
        found.add(f"problems: {row.rel_path}: unknown stage {row.stage!r}")
    if row.kind not in KINDS or not row.what_to_do:
        found.add(f"problems: {row.rel_path}: unknown kind {row.kind!r}, or no way out")


# -------------------------------------------------------------------------------------- records


class _Fields:
    """Counts what became of each field that a model was to be asked for."""

    def __init__(self, names: Sequence[str] | None):
        self.names = None if names is None else [name for name in FIELDS if name in names]
        self._counts: Counter[tuple[str, str]] = Counter()

    def problem(self, record: dict[str, Any], failed: Sequence[str]) -> str | None:
        """Count a record that satisfies its schema; what is wrong with its fields, or None.

        `failed`: the messages of the rows of problems beside it.
        """
        asked = record["describe"]
        if record["tagged"]:
            return field_problem(record, failed)
        if self.names is None:
            self.names = [name for name in FIELDS if name in asked]
        if list(asked) != self.names:
            return f"describe has {', '.join(asked) or 'nothing'} instead of {self.names}"
        self._counts.update((field, how["status"]) for field, how in asked.items())
        return field_problem(record, failed)

    def ledger(self, left_out: int) -> dict[str, dict[str, int]]:
        """Per field; photos that were left out before count as skipped."""
        stages = {}
        for field in self.names or ():
            done, skipped, failed = (
                self._counts[field, status] for status in ("done", "skipped", "failed")
            )
            stages[field] = {
                "in": done + skipped + failed + left_out,
                "done": done,
                "skipped": skipped + left_out,
                "quarantined": failed,
            }
        return stages


class _Audit:
    """Checks records one at a time, and beside each its row in the files made from it."""

    def __init__(
        self,
        found: Discrepancies,
        tags: Path,
        medoids: Path,
        proposals: ManifestCheck,
        problem_of: Callable[[dict[str, Any]], str | None],
        run_id: str,
        fields: Sequence[str] | None,
    ):
        self.found = found
        self.fields = _Fields(fields)
        self.count = 0
        self.keywords = 0  # records that have one
        self.tagged = 0
        self.inheritance = Inheritance()
        self.folders: set[str] = set()
        self._with_medoid: set[str] = set()
        self._proposals = proposals
        self._problem_of = problem_of
        self._run_id = run_id
        self._tags_path, self._tags = tags, read_csv(tags, TAG_COLUMNS)
        self._tags_in_step = True
        self._medoids_path, self._medoids = medoids, self._read_medoids(medoids)
        self._medoids_found: set[str] = set()

    def _read_medoids(self, path: Path) -> dict[str, str]:
        medoids: dict[str, str] = {}
        for folder, rel_path, cosine in read_medoids(path):
            if folder in medoids:
                self.found.add(f"{path}: folder {folder} has two medoids")
            if not -1 <= cosine <= 1:  # also if it is no number
                self.found.add(f"{path}: folder {folder}: the cosine is {cosine}")
            medoids[folder] = rel_path
        return medoids

    def record(self, record: dict[str, Any], failed: Sequence[str]) -> None:
        self.count += 1
        rel_path = record["rel_path"]
        folder = names.folder_of(rel_path)
        self.folders.add(folder)
        if record.get("tagged") is not True:
            self._with_medoid.add(folder)
            if self._medoids.get(folder) == rel_path:
                self._medoids_found.add(folder)
        if problem := (
            self._problem_of(record) or contradiction(record) or self.fields.problem(record, failed)
        ):
            self.found.add(f"records: {rel_path}: {problem}")
            next(self._tags, None)
            self._proposals.skip(rel_path)
            return
        self._check_tags(record)
        self._check_inheritance(self.inheritance.add(record))
        self.keywords += bool(record["keywords"])
        if record["tagged"]:
            self.tagged += 1
            return
        self._proposals.record(record)

    def _check_inheritance(self, problems: Iterator[tuple[str, str]]) -> None:
        for rel_path, problem in problems:
            self.found.add(f"records: {rel_path}: {problem}")

    def _check_tags(self, record: dict[str, Any]) -> None:
        if not self._tags_in_step:
            return
        row = next(self._tags, None)
        if row is None:
            self.found.add(f"{self._tags_path}: {record['rel_path']}: no row")
            return
        values = dict(zip(TAG_COLUMNS, row, strict=True))
        expected = [*tag_fields(record), self._run_id, record["models"]["clip"]]
        columns = [*TAG_COLUMNS[1:8], "run_id", "model_name"]
        for column, value in zip(columns, expected, strict=True):
            if values[column] != value:
                self.found.add(
                    f"{self._tags_path}: {record['rel_path']}: {column} is {values[column]!r}, "
                    f"but {value!r} by its record"
                )
                if column == "rel_path":
                    self._tags = iter(())  # all that follow would be off as well
                    self._tags_in_step = False
                return

    def finish(self) -> None:
        for row in self._tags:
            self.found.add(f"{self._tags_path}: {row[1]}: a row without a record")
        self._check_inheritance(self.inheritance.finish())
        for folder in sorted(self._with_medoid - self._medoids.keys()):
            self.found.add(f"{self._medoids_path}: folder {folder} has no medoid")
        for folder in sorted(self._medoids.keys() - self._medoids_found):
            rel_path = self._medoids[folder]
            self.found.add(f"{self._medoids_path}: {rel_path}: not a record of folder {folder}")
        self._proposals.finish()


if __name__ == "__main__":
    with job(snakemake) as stats:
        manifests = [Path(path) for path in snakemake.input.get("manifests", [])]
        check(
            INDEX,
            Path(snakemake.input.records),
            Path(snakemake.input.problems),
            Path(snakemake.input.tags),
            Path(snakemake.input.medoids),
            Path(snakemake.output.report),
            manifests=manifests or None,
            switches=snakemake.params.switches,
            carry_over=snakemake.params.carry_over,
            fields=snakemake.params.get("fields"),
            stats=stats,
        )
