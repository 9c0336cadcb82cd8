"""Rule `record`: bring together what the stages found out about the photos of a shard.

Every photo of the listing becomes either a record or a row of the table of problems. Stages are
joined by the photo's SHA-256, never by position; copies of a photo are records of their own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phototagger.errors import UserError
from phototagger.job import Stats, job
from phototagger.plan import read_listing
from phototagger.problems import KINDS, one_line
from phototagger.records import (
    SCHEMA_VERSION,
    Gps,
    Keyword,
    ProblemRow,
    Record,
    Score,
    rounded,
    write_problems,
    write_records,
)
from phototagger.tables import read_table

Row = Mapping[str, Any]


def record(
    listing: Path,
    thumbs: Path,
    embeddings: Path,
    scores: Path,
    labels: Path,
    records_output: Path,
    problems_output: Path,
    *,
    model: str,
    stats: Stats | None = None,
) -> None:
    """Write the records (JSON lines) and the problems (CSV) of a shard, in path order.

    Raises UserError if a table lacks a photo, which means that it belongs to another listing.
    """
    stats = stats or Stats()
    vocabulary = {entry["label"]: entry for entry in _read_json(labels)["labels"]}
    by_path = {row["rel_path"]: row for row in read_table(thumbs).to_pylist()}
    embedded = _by_sha256(embeddings, ["sha256", "problem_kind", "problem"])
    scored = _by_sha256(scores)

    records: list[Record] = []
    problems: list[ProblemRow] = []
    for photo in read_listing(listing):
        stats.photos += 1
        thumb = _find(by_path, photo.rel_path, photo.rel_path, thumbs)
        if thumb["status"] != "ok":
            problems.append(_problem(photo.rel_path, "thumbs", thumb))
            continue
        embedding = _find(embedded, thumb["sha256"], photo.rel_path, embeddings)
        if embedding["problem_kind"] is not None:
            problems.append(_problem(photo.rel_path, "embed", embedding))
            continue
        score = _find(scored, thumb["sha256"], photo.rel_path, scores)
        records.append(make_record(thumb, score, vocabulary, model))

    stats.computed = write_records(records_output, records)
    stats.skipped = write_problems(problems_output, problems)


def make_record(thumb: Row, score: Row, vocabulary: Mapping[str, Row], model: str) -> Record:
    """The record of a photo from its row in thumbs and in scores; floats with 6 decimals."""
    over_threshold = [_score(entry) for entry in score["over_threshold"]]
    exported = [s for s in over_threshold if vocabulary[s["label"]]["export"]]
    return Record(
        rel_path=thumb["rel_path"],
        sha256=thumb["sha256"],
        bytes=thumb["bytes"],
        width=thumb["width"],
        height=thumb["height"],
        orientation=thumb["orientation"],
        format=thumb["format"],
        taken_at=thumb["taken_at"],
        camera=thumb["camera"],
        lens=thumb["lens"],
        gps=_gps(thumb["gps"]),
        thumb=thumb["thumb"],
        labels=[_score(entry) for entry in score["top"]],
        over_threshold=over_threshold,
        keywords=[
            _keyword(entry, rank, vocabulary[entry["label"]])
            for rank, entry in enumerate(exported, 1)
        ],
        models={"clip": model},
        notes=[],
        schema_version=SCHEMA_VERSION,
    )


def _score(entry: Row) -> Score:
    return Score(
        label=entry["label"],
        cosine=rounded(entry["cosine"]),
        probability=rounded(entry["probability"]),
    )


def _keyword(score: Score, rank: int, label: Row) -> Keyword:
    return Keyword(
        keyword=label["path"][-1],
        path=label["path"],
        synonyms=label["synonyms"],
        rank=rank,
        score=score["cosine"],
        source="clip",
    )


def _gps(position: Row | None) -> Gps | None:
    if position is None:
        return None
    return Gps(lat=rounded(position["lat"]), lon=rounded(position["lon"]))


def _problem(rel_path: str, stage: str, row: Row) -> ProblemRow:
    kind = row["problem_kind"]
    return ProblemRow(rel_path, stage, kind, one_line(row["problem"] or ""), KINDS[kind])


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _by_sha256(table: Path, columns: list[str] | None = None) -> dict[str, Row]:
    return {row["sha256"]: row for row in read_table(table, columns).to_pylist()}


def _find(rows: Mapping[str, Row], key: str, rel_path: str, table: Path) -> Row:
    if key not in rows:
        raise UserError(
            f"{table}: {rel_path} is missing, so it is of another listing; delete it and run again"
        )
    return rows[key]


if __name__ == "__main__":
    with job(snakemake) as stats:
        record(
            Path(snakemake.input.listing),
            Path(snakemake.input.thumbs),
            Path(snakemake.input.embeddings),
            Path(snakemake.input.scores),
            Path(snakemake.input.labels),
            Path(snakemake.output.records),
            Path(snakemake.output.problems),
            model=snakemake.params.model,
            stats=stats,
        )
