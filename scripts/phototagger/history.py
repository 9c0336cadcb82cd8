"""The story of one photo: where it is in the plan, and what every stage made of it.

Everything is read from `results/`: the listing and the tables of the photo's own shard, and the
counts that jobs left beside their logs. Nothing reads what there is of other photos, so a library
of 100,000 takes no longer than one of 100.
"""

import csv
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from phototagger import buckets, names
from phototagger.config import Config
from phototagger.job import read_counts, stats_path
from phototagger.manifest import read_manifest, sidecar_path
from phototagger.metrics import STAGES
from phototagger.plan import (
    NEVER_PHOTOS,
    Photo,
    Root,
    Roots,
    Shard,
    is_photo,
    read_listing,
    sort_key,
)
from phototagger.problems import KINDS
from phototagger.tables import read_table

RESULTS = Path("results")
OUTPUTS = {
    "thumbs": "thumbs/{shard}.parquet",
    "embed": "embeddings/{shard}.parquet",
    "score": "scores/{shard}.parquet",
    "describe": "describe/{setup}/{shard}.jsonl",
    "record": "records/{shard}.jsonl",
    "sidecars": "sidecars-manifest/{shard}.tsv",
}
# What a line of results/describe/<setup>/<shard>.jsonl says about how it came to be.
ANSWER = (
    "field",
    "status",
    "kind",
    "message",
    "attempts",
    "seconds",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "inherited_from",
)
_LISTED = 20  # photos at most that a name is said to stand for


# ------------------------------------------------------------------------------- where it is


@dataclass(frozen=True)
class Place:
    """A photo's place in the plan."""

    photo: Photo
    shard: Shard
    number: int  # in its shard, from 1


class Plan:
    """Finds photos in the listings, of which it reads no more than it needs."""

    def __init__(self, shards: Sequence[Shard], roots: Roots, folder: Path):
        self.shards, self.roots, self._folder = shards, roots, folder

    def find(self, rel_path: str) -> Place | None:
        """Shards are in path order, so half of them can be left out with each listing's begin."""
        key = sort_key(rel_path)
        low, high = 0, len(self.shards)
        while high - low > 1:
            middle = (low + high) // 2
            if sort_key(self._first(self.shards[middle])) <= key:
                low = middle
            else:
                high = middle
        if not self.shards:
            return None
        shard = self.shards[low]
        for number, photo in enumerate(read_listing(self._path(shard)), 1):
            if photo.rel_path == rel_path:
                return Place(photo, shard, number)
        return None

    def ending(self, text: str) -> list[str]:
        """The rel_paths that end with these whole parts of a path, `_LISTED` at most."""
        found: list[str] = []
        wanted = f"{text}\t".encode()
        for shard in self.shards:
            content = self._path(shard).read_bytes()
            at = content.find(wanted)
            while at >= 0:
                if content[at - 1 : at] in (b"/", b"\n"):
                    begin = content.rfind(b"\n", 0, at) + 1
                    found.append(content[begin : at + len(wanted) - 1].decode())
                at = content.find(wanted, at + 1)
            if len(found) >= _LISTED:
                break
        return found[:_LISTED]

    def rel_paths(self, path: Path) -> list[str]:
        """What a file may be called in the plan: by its path as given, and without symlinks."""
        found = []
        for resolve in (os.path.abspath, os.path.realpath):
            for root in self.roots.roots:
                inside = os.path.relpath(resolve(path), resolve(names.decode(root.path)))
                if not inside.startswith(".."):
                    found.append(self._called(root, inside))
        return list(dict.fromkeys(found))

    def keys(self, url: str) -> list[str]:
        """What an object in a bucket may be called in the plan, by its URL."""
        tops = [(root, f"{names.decode(root.path)}/") for root in self.roots.roots]
        found = [(root, url.removeprefix(top)) for root, top in tops if url.startswith(top)]
        return [self._called(*each) for each in found] if buckets.is_bucket(url) else []

    def _called(self, root: Root, inside: str) -> str:
        prefix = f"{root.name}/" if len(self.roots.roots) > 1 else ""
        return prefix + names.encode(inside)

    def last(self) -> str:
        """The rel_path of the last photo."""
        return read_listing(self._path(self.shards[-1]))[-1].rel_path if self.shards else ""

    def _first(self, shard: Shard) -> str:
        with self._path(shard).open(encoding="utf-8", newline="\n") as file:
            next(file)
            return next(file).partition("\t")[0]

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.name}.tsv"


def was_there(rel_paths: Sequence[str]) -> str | None:
    """Which of these photos the last run has left a record or a problem of."""
    for rel_path in rel_paths:
        key = json.dumps(rel_path, ensure_ascii=False)
        if _holds(RESULTS / "records.jsonl", f'"rel_path": {key}'):
            return rel_path
        if _holds(RESULTS / "problems.csv", f"\n{rel_path},"):
            return rel_path
    return None


def _holds(path: Path, text: str) -> bool:
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return content.find(text.encode()) >= 0
    except (OSError, ValueError):  # not there, or empty
        return False


def file_state(roots: Roots, photo: Photo) -> str:
    """Whether the file is as the plan has it: `as planned`, `changed`, or `gone`; of one in a
    bucket, `not looked at`."""
    if roots.url(photo.rel_path):
        return "not looked at"
    try:
        info = roots.locate(photo.rel_path).stat()
    except OSError:
        return "gone"
    same = (info.st_size, info.st_mtime_ns) == (photo.size, photo.mtime_ns)
    return "as planned" if same else "changed"


def why_not(path: Path, plan: Plan, config: Config, own: Sequence[Path]) -> str:
    """Why a file is not in the plan. `own`: folders that are never scanned."""
    photos = config.photos
    candidates = plan.rel_paths(path)
    if not candidates:
        roots = ", ".join(root.path for root in plan.roots.roots)
        return f"it lies outside of the photos' folders ({roots})"
    real = Path(os.path.realpath(path))
    if folder := next((f for f in own if real.is_relative_to(f.resolve())), None):
        return f"it lies in a folder of the program's own ({folder})"
    rel_path = candidates[0]
    parts = rel_path.split("/")
    if hidden := next((part for part in parts if part.startswith(".")), None):
        return f"{hidden} is hidden: its name starts with a dot"
    name = parts[-1].lower()
    if name.endswith(NEVER_PHOTOS):
        return "files with this ending are never photos"
    if not is_photo(names.decode(parts[-1]), tuple(e.lower() for e in photos.extensions)):
        return f"its name ends with none of photos.extensions ({', '.join(photos.extensions)})"
    pattern = next((each for each in photos.exclude if fnmatchcase(rel_path, each)), None)
    if pattern:
        return f"photos.exclude leaves it out with {pattern!r}"
    if any(root.only is not None for root in plan.roots.roots):
        return "only single photos of its folder were named"
    if len(parts) > (2 if len(plan.roots.roots) > 1 else 1) and not photos.recursive:
        return "it lies in a subfolder, and photos.recursive is off"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is no file, but a folder, a pipe or a device"
    except OSError:
        return "there is no such file any more; its results go with the next run"
    if photos.max_images and sort_key(rel_path) > sort_key(plan.last()):
        return f"photos.max_images takes the first {photos.max_images:,} only, in path order"
    return "it came after the plan was made; the next run takes it along"


# ------------------------------------------------------------------------------- what was made


@dataclass
class Row:
    """What one stage made of the photo, and the job that did."""

    stage: str
    setup: str | None
    state: str  # done, problem, failed, killed, not yet, skipped; stale, running, waiting
    because: str | None = None
    job: dict[str, Any] = field(default_factory=dict)  # see `job_facts`
    log: Path | None = None
    problem: dict[str, str] | None = None  # kind, message, what_to_do
    answers: list[dict[str, Any]] = field(default_factory=list)
    proposal: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in vars(self).items() if value not in (None, {}, [])}
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}


def log_path(stage: str, shard: str, setup: str | None = None) -> Path:
    return RESULTS / "logs" / stage / (setup or "") / f"{shard}.log"


def job_facts(counts: Mapping[str, Any], ended: float | None) -> dict[str, Any]:
    """What a job's counts say about it; `ended` in seconds since the epoch."""
    if not counts:
        return {}
    photos, seconds = counts.get("photos") or 0, counts.get("seconds")
    facts = {key: counts.get(key) for key in ("host", "node", "job", "attempt", "error", "final")}
    facts |= {key: counts.get(key) for key in ("photos", "computed", "cached", "problems")}
    facts |= {"seconds": seconds, "ended": ended, "finished": bool(counts.get("finished"))}
    if photos and seconds is not None:
        facts["seconds_per_photo"] = round(seconds / photos, 4)
    return {key: value for key, value in facts.items() if value is not None}


def story(place: Place, config: Config, setups: Sequence[str]) -> list[Row]:
    """A row per stage, in pipeline order; `describe` once per setup, and not if it is off."""
    shard = place.shard.name
    reader = _Reader(place.photo.rel_path, shard)
    rows = [_row_of(stage, setup, shard) for stage, setup in _stages(setups)]
    for row in rows:
        if row.stage == "sidecars" and not config.metadata.enabled:
            row.state, row.because = "skipped", "metadata.enabled is off"
        elif row.state == "done":
            reader.look(row)
        if row.problem is None and not row.answers:
            row.problem = reader.problems.get(row.stage)
    return rows


class _Reader:
    """Reads what the tables of the shard say of one photo, stage by stage."""

    def __init__(self, rel_path: str, shard: str):
        self._rel_path, self._shard = rel_path, shard
        self.problems = _problems(shard, rel_path)
        self._sha256: str | None = None
        self._missing = False  # it is newer than what was made of its shard
        self._left_out: str | None = None  # why later stages have nothing of it
        self._tagged = False

    def look(self, row: Row) -> None:
        """Correct the state of a stage whose job is done: what about this photo?"""
        if self._missing:
            row.state = "not yet"
        elif self._left_out and not (self._tagged and row.stage == "record"):
            row.state, row.because = "skipped", self._left_out
        elif row.stage == "thumbs":
            self._thumbs(row)
        elif row.stage == "embed":
            self._embed(row)
        elif row.stage == "describe":
            row.answers = list(_answers(row.setup or "", self._shard, self._rel_path))
            row.state = "done" if row.answers else "not yet"
        elif row.stage == "record":
            self._record(row)
        elif row.stage == "sidecars":
            _proposal(row, self._shard, self._rel_path)

    def _thumbs(self, row: Row) -> None:
        columns = ["rel_path", "sha256", "status", "problem_kind", "problem", "tagged"]
        found = _find(RESULTS / f"thumbs/{self._shard}.parquet", self._rel_path, columns)
        if found is None:
            row.state, self._missing = "not yet", True
        elif found["status"] != "ok":
            self._quarantined(row, found)
        else:
            self._sha256 = found["sha256"]
            if found["tagged"]:
                self._left_out, self._tagged = "it is tagged already (see tagged.fields)", True

    def _embed(self, row: Row) -> None:
        columns = ["sha256", "problem_kind", "problem"]
        found = _find(RESULTS / f"embeddings/{self._shard}.parquet", self._sha256, columns)
        if found is None:
            row.state = "not yet"
        elif found["problem_kind"]:
            self._quarantined(row, found)

    def _record(self, row: Row) -> None:
        record = next(_lines(RESULTS / f"records/{self._shard}.jsonl", self._rel_path), None)
        if record is None:
            row.state = "not yet"
        elif leader := record.get("inherited_from"):
            row.because = f"it has the labels and answers of {leader}, the same picture"

    def _quarantined(self, row: Row, found: Mapping[str, Any]) -> None:
        row.state = "problem"
        row.problem = _problem(found["problem_kind"], found["problem"])
        self._left_out = f"it has a problem (see {row.stage})"


def _stages(setups: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for stage in STAGES:
        if stage == "describe":
            yield from ((stage, setup) for setup in setups)
        else:
            yield stage, None


def _row_of(stage: str, setup: str | None, shard: str) -> Row:
    log = log_path(stage, shard, setup)
    counts_path = stats_path(log)
    counts = read_counts(counts_path)
    ended = counts_path.stat().st_mtime if counts else None
    made = (RESULTS / OUTPUTS[stage].format(shard=shard, setup=setup)).exists()
    row = Row(stage, setup, "done" if made else "not yet", None, job_facts(counts, ended))
    row.log = log if log.exists() else None
    if counts.get("error"):
        row.state, row.because = "failed", str(counts["error"])
    elif counts and not counts.get("finished"):
        row.state, row.because = "killed", "its job ended without a word"
    return row


def _find(table: Path, value: str | None, columns: list[str]) -> dict[str, Any] | None:
    """The row of a table whose first column has that value; None if there is neither."""
    try:
        rows = read_table(table, columns).to_pylist()
    except FileNotFoundError:
        return None
    return next((row for row in rows if row[columns[0]] == value), None)


def _problem(kind: str, message: str | None) -> dict[str, str]:
    return {"kind": kind, "message": message or "", "what_to_do": KINDS.get(kind, "")}


def _problems(shard: str, rel_path: str) -> dict[str, dict[str, str]]:
    """By stage: what the shard's problems say of the photo."""
    try:
        with (RESULTS / f"problems/{shard}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["rel_path"] == rel_path]
    except OSError:
        return {}
    keys = ("kind", "message", "what_to_do")
    return {row["stage"]: {key: row[key] for key in keys} for row in rows}


def _answers(setup: str, shard: str, rel_path: str) -> Iterator[dict[str, Any]]:
    for answer in _lines(RESULTS / f"describe/{setup}/{shard}.jsonl", rel_path):
        facts = {key: answer.get(key) for key in ANSWER if answer.get(key) is not None}
        kind = facts.get("kind")
        yield facts | ({"what_to_do": KINDS[kind]} if kind in KINDS else {})


def _lines(path: Path, rel_path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file that are about the photo."""
    try:
        text = path.read_text("utf-8")
    except OSError:
        return
    wanted = json.dumps(rel_path, ensure_ascii=False)
    for line in text.split("\n"):
        if wanted in line and (row := json.loads(line))["rel_path"] == rel_path:
            yield row


def _proposal(row: Row, shard: str, rel_path: str) -> None:
    """Which sidecar is proposed for the photo, or why none is."""
    proposals = read_manifest(RESULTS / f"sidecars-manifest/{shard}.tsv")
    mine = next((each for each in proposals if each.rel_path == rel_path), None)
    if mine is None:
        row.state, row.because = "skipped", "it has no record to propose from, or is tagged already"
    elif mine.failed:
        row.state, row.because = "failed", "the proposal could not be written; see the log"
    elif mine.sidecar_sha256 is None:
        row.because = "there is nothing to say in a sidecar"
    else:
        row.proposal = sidecar_path(RESULTS / "sidecars", rel_path)
