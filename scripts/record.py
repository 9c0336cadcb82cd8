"""Rule `record`: bring together what the stages found out about the photos of a shard.

Every photo of the listing becomes either a record or a row of the table of problems. A photo that
could not be described keeps its record, with a note, and has a row per field that failed. Stages
are joined by the photo's SHA-256 or path, never by position; copies of a photo are records of their
own.

A photo that is tagged already has a record of its own metadata only. The photos of a capture group
have one picture, so they get the labels of its leader; what was described, they inherited already.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phototagger.errors import UserError
from phototagger.groups import capture_groups
from phototagger.job import Stats, job
from phototagger.plan import listing_path, read_listing
from phototagger.problems import KINDS, one_line
from phototagger.prompts import FIELDS
from phototagger.records import (
    DESCRIBE,
    SAME_NAME,
    SCHEMA_VERSION,
    Asked,
    Gps,
    Keyword,
    Own,
    ProblemRow,
    Record,
    Score,
    read_records,
    rounded,
    write_problems,
    write_records,
)
from phototagger.tables import goes_on, read_table

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Lines = Mapping[str, Row]  # field -> what the describe stage says of it

LEFT_ALONE = "already tagged: left alone"
_UNSCORED: Row = {"top": [], "over_threshold": []}


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
    described: Sequence[Path] = (),
    stats: Stats | None = None,
) -> None:
    """Write the records (JSON lines) and the problems (CSV) of a shard, in path order.

    `described`: `results/describe/<setup>/<shard>.jsonl` of every setup; none if the stage is off.

    Raises UserError if a table lacks a photo, which means that it belongs to another listing.
    """
    stats = stats or Stats()
    vocabulary = {entry["label"]: entry for entry in _read_json(labels)["labels"]}
    by_path = {row["rel_path"]: row for row in read_table(thumbs).to_pylist()}
    embedded = _by_sha256(embeddings, ["sha256", "problem_kind", "problem"])
    scored = _by_sha256(scores)
    lines = _read_described(described)
    groups = capture_groups(
        row
        for row in by_path.values()
        if goes_on(row) and embedded.get(row["sha256"], {}).get("problem_kind") is None
    )

    records: list[Record] = []
    problems: list[ProblemRow] = []
    for photo in read_listing(listing):
        stats.photos += 1
        thumb = _find(by_path, photo.rel_path, photo.rel_path, thumbs)
        if thumb["status"] != "ok":
            problems.append(_problem(photo.rel_path, "thumbs", thumb))
            stats.skipped += 1
            continue
        if thumb["tagged"]:
            records.append(make_record(thumb, _UNSCORED, vocabulary, model, notes=[LEFT_ALONE]))
            continue
        embedding = _find(embedded, thumb["sha256"], photo.rel_path, embeddings)
        if embedding["problem_kind"] is not None:
            problems.append(_problem(photo.rel_path, "embed", embedding))
            stats.skipped += 1
            continue
        leader = groups.leader(photo.rel_path)
        score = _find(scored, by_path[leader]["sha256"], leader, scores)
        answers = {
            field: _find(by_photo, (photo.rel_path, thumb["sha256"]), photo.rel_path, path)
            for field, (path, by_photo) in lines.items()
        }
        clashes = [_clash(other) for other in groups.clashes.get(photo.rel_path, ())]
        for note in clashes:
            log.warning("%s: %s", photo.rel_path, note)
        inherited = {
            "inherited_from": leader if leader != photo.rel_path else None,
            "notes": clashes,
        }
        records.append(make_record(thumb, score, vocabulary, model, answers, **inherited))
        problems += [
            ProblemRow(photo.rel_path, DESCRIBE, line["kind"], _failure(line), KINDS[line["kind"]])
            for line in answers.values()
            if line["status"] == "failed"
        ]

    stats.computed = write_records(records_output, records)
    write_problems(problems_output, problems)


def make_record(
    thumb: Row,
    score: Row,
    vocabulary: Mapping[str, Row],
    model: str,
    answers: Lines | None = None,
    *,
    inherited_from: str | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """The record of a photo from its rows in thumbs and scores, and from a model's answers.

    `answers` has a line for each of `FIELDS` that is described, in that order. `score` is the row
    of the photo `inherited_from`, if there is one. Floats get 6 decimals.
    """
    answers = answers or {}
    done = {field: line for field, line in answers.items() if line["status"] == "done"}
    own_keywords = thumb["own_keywords"] or []
    over_threshold = [_score(entry) for entry in score["over_threshold"]]
    exported = [
        _clip_keyword(s, vocabulary[s["label"]])
        for s in over_threshold
        if vocabulary[s["label"]]["export"]
    ]
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
        own=Own(
            title=thumb["own_title"],
            caption=thumb["own_caption"],
            description=thumb["own_description"],
            alt_text=thumb["own_alt_text"],
            rating=thumb["own_rating"],
            keywords=own_keywords,
            paths=thumb["own_paths"] or [],
        ),
        embedded=json.loads(thumb["embedded"] or "{}"),
        thumb=thumb["thumb"],
        labels=[_score(entry) for entry in score["top"]],
        over_threshold=over_threshold,
        caption=done["caption"]["text"] if "caption" in done else None,
        description=done["description"]["text"] if "description" in done else None,
        keywords=join_keywords(own_keywords, done.get("keywords"), exported),
        models={"clip": model} | {field: line["model"] for field, line in done.items()},
        describe={field: _asked(line) for field, line in answers.items()},
        inherited_from=inherited_from,
        tagged=bool(thumb["tagged"]),
        notes=[*notes, *(note for line in answers.values() for note in _notes(line))],
        schema_version=SCHEMA_VERSION,
    )


def _score(entry: Row) -> Score:
    return Score(
        label=entry["label"],
        cosine=rounded(entry["cosine"]),
        probability=rounded(entry["probability"]),
    )


def _clip_keyword(score: Score, label: Row) -> Keyword:
    return Keyword(
        keyword=label["path"][-1],
        path=label["path"],
        synonyms=label["synonyms"],
        rank=0,  # among those of all sources, once they are joined
        score=score["cosine"],
        source="clip",
    )


def join_keywords(own: Iterable[str], answer: Row | None, clip: Sequence[Keyword]) -> list[Keyword]:
    """The keywords of all sources, ranked: the photo's own, the model's `answer`, CLIP's.

    One that several sources have (in whatever case) stands once, as the first of them spells it,
    with CLIP's score and place in the hierarchy; without those, with the model's place.
    """
    answered = answer["keywords"] if answer else []
    paths = answer["paths"] if answer else {}
    paths = {keyword.casefold(): path for keyword, path in paths.items()}
    by_word: dict[str, Keyword] = {}
    for keyword in clip:
        by_word.setdefault(keyword["keyword"].casefold(), keyword)
    joined: dict[str, Keyword] = {}
    for source, words in (("person", own), ("vlm", answered)):
        for word in words:
            key = word.casefold()
            known = by_word.get(key)
            path = known["path"] if known else paths.get(key, [word])
            entry = Keyword(
                keyword=word,
                path=[*path[:-1], word],
                synonyms=known["synonyms"] if known else [],
                rank=0,
                score=known["score"] if known else None,
                source=source,
            )
            joined.setdefault(key, entry)
    rest = [keyword for keyword in clip if keyword["keyword"].casefold() not in joined]
    ranked = [*joined.values(), *rest]
    return [Keyword(**keyword | {"rank": rank}) for rank, keyword in enumerate(ranked, 1)]


def _asked(line: Row) -> Asked:
    asked = {key: line[key] for key in Asked.__annotations__}
    if asked["seconds"] is not None:
        asked["seconds"] = rounded(asked["seconds"])
    return Asked(**asked)


def _notes(line: Row) -> list[str]:
    notes = [one_line(f"{line['field']}: {note}") for note in line["notes"]]
    failed = [_failure(line)] if line["status"] == "failed" else []
    return list(dict.fromkeys(notes + failed))


def _clash(other: str) -> str:
    return one_line(f"{other.rpartition('/')[2]} {SAME_NAME}: each is on its own")


def _failure(line: Row) -> str:
    return one_line(f"{line['field']}: {line['message'] or line['kind']}")


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


def _read_described(paths: Sequence[Path]) -> dict[str, tuple[Path, dict[tuple[str, str], Row]]]:
    """By field, in the order of `FIELDS`: the file, and its lines by photo (rel_path, sha256).

    Raises UserError for a field that two setups were asked for.
    """
    found: dict[str, tuple[Path, dict[tuple[str, str], Row]]] = {}
    for path in paths:
        for line in read_records(path):
            first, lines = found.setdefault(line["field"], (path, {}))
            if first != path:
                raise UserError(f"{path}: {line['field']} is in {first} too; delete it, run again")
            lines[line["rel_path"], line["sha256"]] = line
    return {field: found[field] for field in FIELDS if field in found}


def _find(rows: Mapping[Any, Row], key: Any, rel_path: str, table: Path) -> Row:
    if key not in rows:
        raise UserError(
            f"{table}: {rel_path} is missing, so it is of another listing; delete it and run again"
        )
    return rows[key]


if __name__ == "__main__":
    with job(snakemake) as stats:
        record(
            listing_path(snakemake.wildcards.shard),
            Path(snakemake.input.thumbs),
            Path(snakemake.input.embeddings),
            Path(snakemake.input.scores),
            Path(snakemake.input.labels),
            Path(snakemake.output.records),
            Path(snakemake.output.problems),
            model=snakemake.params.model,
            described=[Path(path) for path in snakemake.input.get("described", [])],
            stats=stats,
        )
