"""Records and problems: the two files of which every planned photo is in exactly one.

`records.jsonl` has one JSON object per photo (config/schema/record.schema.json), `problems.csv` one
row per quarantined photo, and one per field that could not be described of a photo that has a
record. Both are in path order, and both are read and written as streams.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from phototagger import CLONE
from phototagger.errors import UserError
from phototagger.files import open_atomic

SCHEMA_VERSION = "1.2"
SCHEMA = CLONE / "config/schema/record.schema.json"

# Stages that can quarantine a photo, in the order in which a photo passes them.
STAGES = ("thumbs", "embed")

# A photo of which this stage left out a field is a record all the same; its problems are one row
# per field, beside the record.
DESCRIBE = "describe"

# Where a keyword comes from, in the order in which they stand: the photo's own metadata, a vision
# language model, CLIP.
SOURCES = ("person", "vlm", "clip")

# In the note of a photo that could be taken for another file of the same capture, and is none.
SAME_NAME = "has the same name but shows another picture"


class Score(TypedDict):
    """A label and how well it fits."""

    label: str
    cosine: float
    probability: float


class Keyword(TypedDict):
    """A word for the photo, with its place in the hierarchy if a vocabulary has it."""

    keyword: str
    path: list[str]  # from the top down to the keyword
    synonyms: list[str]
    rank: int  # from 1
    score: float | None  # cosine; None if CLIP did not find it
    source: str  # the first of SOURCES that has it


class Gps(TypedDict):
    """Degrees, north and east positive."""

    lat: float
    lon: float


class Own(TypedDict):
    """What the photo's own metadata says, embedded or in a sidecar beside it."""

    title: str | None
    caption: str | None
    description: str | None
    alt_text: str | None
    rating: str | None
    keywords: list[str]
    paths: list[list[str]]  # hierarchies, each from the top down


class Asked(TypedDict):
    """How a field of a photo came about; for a skipped field there is nothing from `request` on."""

    status: str  # done, skipped or failed
    setup: str
    setup_digest: str
    model: str | None
    server: str | None  # version
    profile: str
    prompt_digest: str
    request: str | None  # key of the kept answer
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    attempts: int | None
    finish_reason: str | None
    inherited_from: str | None  # rel_path of the photo that was asked about instead


class Record(TypedDict):
    """One line of `records.jsonl`; keys in the order in which they are written."""

    rel_path: str
    sha256: str
    bytes: int
    width: int
    height: int
    orientation: int
    format: str
    taken_at: str | None
    camera: str | None
    lens: str | None
    gps: Gps | None
    own: Own
    embedded: dict[str, list[str]]  # what of it the photo itself holds, by XMP tag
    thumb: str
    labels: list[Score]
    over_threshold: list[Score]
    caption: str | None
    description: str | None
    keywords: list[Keyword]
    models: dict[str, str]  # clip, and of each field that was done
    describe: dict[str, Asked]  # by field; empty if the stage is off
    inherited_from: str | None  # rel_path of the photo of the capture group whose labels these are
    tagged: bool  # already, so that it was left alone
    notes: list[str]
    schema_version: str


@dataclass(frozen=True)
class ProblemRow:
    """One row of `problems.csv`: a photo, the stage that failed on it, and the way out."""

    rel_path: str
    stage: str
    kind: str
    message: str
    what_to_do: str


PROBLEM_COLUMNS = tuple(field.name for field in fields(ProblemRow))
MEDOID_COLUMNS = ("folder", "medoid_rel_path", "cosine_to_centroid")


# -------------------------------------------------------------------------------------- records


def rounded(value: float) -> float:
    """A number as it stands in records: 6 decimals, no negative zero."""
    return round(value, 6) + 0.0


def format_record(record: Mapping[str, Any]) -> str:
    """A record as its line. Raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write records as they come; returns how many."""
    count = 0
    with open_atomic(path) as file:
        for record in records:
            file.write(format_record(record))
            count += 1
    return count


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line of a records file (with its end) and what it says.

    Raises UserError for a line that is not a JSON object or does not end.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        number = 1
        try:
            for line in file:
                record = _DECODER.decode(line)
                if not isinstance(record, dict) or not line.endswith("\n"):
                    raise ValueError("not a whole JSON object")
                yield line, record
                number += 1
        except ValueError as error:  # also what is not UTF-8
            raise UserError(
                f"{path}: line {number}: {error}; delete the file and run again"
            ) from error


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, one at a time. Raises UserError as `read_lines`."""
    return (record for _, record in read_lines(path))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@cache
def load_validator(schema: Path = SCHEMA) -> Callable[[Mapping[str, Any]], str | None]:
    """A function that says what is wrong with a record, or None.

    The schema is compiled to Python code: some 30 microseconds a record, where interpreting it
    takes twenty times as long, and calling a function for each reference in it three times.
    """
    import fastjsonschema

    content = json.loads(schema.read_text("utf-8"))
    validate = fastjsonschema.compile(_without_references(content, content.get("$defs", {})))

    def problem(record: Mapping[str, Any]) -> str | None:
        try:
            validate(record)
        except fastjsonschema.JsonSchemaValueException as error:
            return error.message.removeprefix("data.")
        return None

    return problem


def _without_references(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with its definitions put where it refers to them; none may refer to itself."""
    if isinstance(part, list):
        return [_without_references(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _without_references(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {k: _without_references(v, definitions) for k, v in part.items() if k != "$defs"}


# ------------------------------------------------------------------------------------- problems


def write_problems(path: Path, rows: Iterable[ProblemRow]) -> int:
    """Write the table of problems; returns how many there are."""
    count = 0
    with open_atomic(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(PROBLEM_COLUMNS)
        for row in rows:
            writer.writerow(astuple(row))
            count += 1
    return count


def read_problems(path: Path) -> Iterator[ProblemRow]:
    """The rows of a table of problems. Raises UserError as `read_csv`."""
    return (ProblemRow(*row) for row in read_csv(path, PROBLEM_COLUMNS))


# --------------------------------------------------------------------------------------- tables


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The rows of a CSV file that has exactly these columns.

    Raises UserError for another header, for a row that is longer or shorter, and for other bytes.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            if tuple(next(reader, ())) != columns:
                raise ValueError(f"the columns are not {','.join(columns)}")
            for row in reader:
                if len(row) != len(columns):
                    raise ValueError(f"{len(row)} fields instead of {len(columns)}")
                yield row
        except (ValueError, csv.Error) as error:  # also what is not UTF-8
            raise UserError(
                f"{path}: line {reader.line_num}: {error}; delete the file and run again"
            ) from error


def read_medoids(path: Path) -> Iterator[tuple[str, str, float]]:
    """Folder, rel_path of its medoid, cosine to the centroid. Raises UserError as `read_csv`."""
    for folder, rel_path, cosine in read_csv(path, MEDOID_COLUMNS):
        try:
            yield folder, rel_path, float(cosine)
        except ValueError as error:
            raise UserError(f"{path}: {folder}: {error}; delete the file and run again") from error


TAG_COLUMNS = (
    "path",
    "rel_path",
    "width",
    "height",
    "top1",
    "top1_score",
    "top5_labels",
    "top5_scores",
    "approved_labels",
    "run_id",
    "model_name",
)
_TOP = 5


def tag_fields(record: Mapping[str, Any]) -> list[str]:
    """What `tags.csv` says of a record: the columns from rel_path to top5_scores.

    Scores are cosines with 6 decimals. Lists are joined with bars, which labels cannot contain.
    """
    top = record["labels"][:_TOP]
    scores = [f"{score['cosine']:.6f}" for score in top]
    return [
        record["rel_path"],
        str(record["width"]),
        str(record["height"]),
        top[0]["label"] if top else "",
        scores[0] if top else "",
        "|".join(score["label"] for score in top),
        "|".join(scores),
    ]
