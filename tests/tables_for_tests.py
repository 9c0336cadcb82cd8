"""A library without photos: the plan and the shard tables that `record` and its followers read."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from check import check
from collect import collect
from export import export
from medoids import medoids
from record import record
from score import score
from summary import summary

from phototagger import config, plan
from phototagger.files import write_atomic
from phototagger.job import Stats
from phototagger.machine import Machine
from phototagger.manifest import Proposed, write_manifest
from phototagger.plan import Photo, Root, Roots, Shard
from phototagger.prompts import FIELDS
from phototagger.proposal import propose
from phototagger.records import read_records
from phototagger.tables import THUMBS, embeddings_schema, goes_on, write_table

MODEL = "demo-clip"
SETUP = "tiny-vlm_llama.cpp"
RUN_ID = "0123456789abcdef"
SWITCHES = config.load(None, {}, {}).metadata.fields
DIMENSION = 8
LABELS = [
    {"label": "cat", "path": ["animal", "cat"], "synonyms": ["kitty"]},
    {"label": "dog", "path": ["animal", "dog"]},
    {"label": 'boat, "red"', "path": ["boat"]},
    {"label": "crane (bird)", "path": ["animal", "crane"]},
    {"label": "bâteau 🚤", "path": ["bâteau 🚤"]},
    {"label": "mood", "path": [], "export": False},
    {"label": "sky", "path": ["sky"]},
]
_LABEL = {"group": "g", "threshold": None, "group_threshold": None, "synonym_group": None}


@dataclass
class Library:
    """A work directory, filled by `make_library`."""

    work: Path
    shards: list[Shard]

    @property
    def results(self) -> Path:
        return self.work / "results"

    @property
    def index(self) -> Path:
        return self.results / "plan/index.json"

    @property
    def machine(self) -> Machine:
        roots = Roots([Root("photos", "/photos/of somebody")])
        cache, unused = self.work / "cache", self.work / "unused"
        return Machine(roots, cache, unused, unused, "cpu", 8)

    def path(self, folder: str, shard: str, suffix: str) -> Path:
        return self.results / folder / f"{shard}{suffix}"

    def paths(self, folder: str, suffix: str) -> list[Path]:
        return [self.path(folder, shard.name, suffix) for shard in self.shards]

    def record_shard(self, shard: str, stats: Stats | None = None) -> None:
        record(
            self.path("plan/shards", shard, ".tsv"),
            self.path("thumbs", shard, ".parquet"),
            self.path("embeddings", shard, ".parquet"),
            self.path("scores", shard, ".parquet"),
            self.results / "labels.json",
            self.path("records", shard, ".jsonl"),
            self.path("problems", shard, ".csv"),
            model=MODEL,
            described=sorted((self.results / "describe").glob(f"*/{shard}.jsonl")),
            stats=stats,
        )

    def record(self) -> None:
        for shard in self.shards:
            self.record_shard(shard.name)

    def collect(self) -> None:
        collect(
            self.paths("records", ".jsonl"),
            self.paths("problems", ".csv"),
            self.results / "records.jsonl",
            self.results / "problems.csv",
        )

    def export(self) -> None:
        export(
            self.results / "records.jsonl",
            self.results / "tags.csv",
            machine=self.machine,
            run_id=RUN_ID,
            model=MODEL,
        )

    def medoids(self) -> None:
        medoids(
            self.paths("embeddings", ".parquet"),
            self.results / "records.jsonl",
            self.results / "folder_medoids.csv",
            self.results / "tag_medoids.csv",
            tag_aware=False,
            min_size=3,
        )

    def manifests(self) -> None:
        for shard in self.shards:
            rows = [
                Proposed(
                    r["rel_path"],
                    r["sha256"],
                    r["inherited_from"] or r["rel_path"],
                    "0" * 64 if propose(r, SWITCHES, ()) else None,
                )
                for r in read_records(self.path("records", shard.name, ".jsonl"))
                if not r["tagged"]
            ]
            write_manifest(self.path("sidecars-manifest", shard.name, ".tsv"), rows)

    def summary(self) -> None:
        summary(
            self.results / "records.jsonl",
            self.results / "problems.csv",
            self.results / "folder_medoids.csv",
            self.results / "summary.md",
            self.results / "folders",
            machine=self.machine,
            model=MODEL,
            labels="photographic",
            size=512,
            quality=85,
        )

    def check(self, fields: Sequence[str] | None = None) -> dict:
        output = self.results / "check.json"
        output.unlink(missing_ok=True)
        check(
            self.index,
            self.results / "records.jsonl",
            self.results / "problems.csv",
            self.results / "tags.csv",
            self.results / "folder_medoids.csv",
            output,
            manifests=self.paths("sidecars-manifest", ".tsv"),
            switches=SWITCHES,
            fields=fields,
        )
        return json.loads(output.read_text())

    def run(self) -> "Library":
        """All rules from `record` on, but `check`."""
        self.record()
        self.collect()
        self.export()
        self.medoids()
        self.manifests()
        self.summary()
        return self


def make_library(
    work: Path,
    rel_paths: Iterable[str],
    *,
    problems: Mapping[str, tuple[str, str]] | None = None,
    contents: Mapping[str, str] | None = None,
    shard_size: int = 4,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    fields: Sequence[str] = (),
    answers: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
) -> Library:
    """Write plan, thumbs, embeddings, labels and scores of photos that do not exist.

    `problems`: rel_path -> (stage, kind). `contents`: rel_path -> content, where it is not the
    rel_path itself; photos with equal content are copies. `own`: rel_path -> columns of thumbs that
    differ, such as what the photo's own metadata says. `fields` are described; `answers`:
    (rel_path, field) -> what differs from a good answer, see `failed` and `skipped`.
    """
    problems, contents, own, answers = problems or {}, contents or {}, own or {}, answers or {}
    photos = [Photo(path, 1000, 1) for path in sorted(set(rel_paths), key=plan.sort_key)]
    parts = plan.partition(photos, shard_size)
    results = work / "results"
    shards = plan.write_shards(results / "plan/shards", parts)
    plan.write_index(results / "plan/index.json", shards, RUN_ID)
    library = Library(work, shards)

    _write_labels(results)
    for name, members in parts:
        rows = [_thumb(p.rel_path, contents, problems) | own.get(p.rel_path, {}) for p in members]
        write_table(library.path("thumbs", name, ".parquet"), THUMBS, rows, {})
        embedded = {
            row["sha256"]: _embedding(row["sha256"], problems.get(row["rel_path"]))
            for row in rows
            if goes_on(row)
        }
        schema = embeddings_schema(DIMENSION)
        write_table(library.path("embeddings", name, ".parquet"), schema, embedded.values(), {})
        score(
            library.path("embeddings", name, ".parquet"),
            results / "labels.json",
            results / "labels.parquet",
            library.path("scores", name, ".parquet"),
            topk=6,
            measure="cosine",
            threshold=0.3,
            digests={},
        )
        if fields:
            lines = [
                answer(row, field) | answers.get((row["rel_path"], field), {})
                for row in rows
                if goes_on(row)
                for field in FIELDS
                if field in fields
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomic(library.path(f"describe/{SETUP}", name, ".jsonl"), text)
    return library


# ------------------------------------------------------------------------------------- describe

_AFTER_PROMPT = {
    "request": "a" * 64,
    "seed": 1,
    "max_tokens": 100,
    "temperature": 0.0,
    "top_p": 1.0,
    "prompt_tokens": 300,
    "completion_tokens": 20,
    "seconds": 0.25,
    "attempts": 1,
    "finish_reason": "stop",
}


def answer(row: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A line of `results/describe/<setup>/<shard>.jsonl`, of a field that was done."""
    text = f"A picture of {row['rel_path']}."
    keywords = ["Cat", "harbour"]
    return {
        "rel_path": row["rel_path"],
        "sha256": row["sha256"],
        "field": field,
        "status": "done",
        "text": None if field == "keywords" else text,
        "keywords": keywords if field == "keywords" else None,
        "paths": {},
        "kind": None,
        "message": None,
        "notes": [],
        "setup": SETUP,
        "setup_digest": "b" * 64,
        "model": "tiny-vlm",
        "server": "b6001",
        "profile": "default",
        "prompt_digest": "c" * 64,
        "inherited_from": None,
    } | _AFTER_PROMPT


def failed(kind: str, message: str) -> dict[str, Any]:
    """What `answer` says differently of a field that failed."""
    nothing = {"text": None, "keywords": None}
    return nothing | {"status": "failed", "kind": kind, "message": message}


def skipped() -> dict[str, Any]:
    """What `answer` says differently of a field that the photo's own metadata has."""
    nothing = {"text": None, "keywords": None, "status": "skipped", "kind": "own_metadata"}
    return nothing | dict.fromkeys(_AFTER_PROMPT)


def sha256_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _vector(seed: str) -> np.ndarray:
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])
    return np.random.default_rng(number).normal(size=DIMENSION).astype(np.float32)


def _write_labels(results: Path) -> None:
    labels = [{"synonyms": [], "export": True} | _LABEL | label for label in LABELS]
    content = {"pack": "abc", "model": MODEL, "logit_scale": 27.0, "labels": labels}
    write_atomic(results / "labels.json", json.dumps(content))
    rows = [{"label": e["label"], "embedding": _vector(e["label"])} for e in labels]
    schema = pa.schema([("label", pa.string()), ("embedding", pa.list_(pa.float32(), DIMENSION))])
    write_table(results / "labels.parquet", schema, rows, {})


def _thumb(
    rel_path: str, contents: Mapping[str, str], problems: Mapping[str, tuple[str, str]]
) -> dict:
    stage, kind = problems.get(rel_path, (None, None))
    sha256 = sha256_of(contents.get(rel_path, rel_path))
    if stage == "thumbs":
        return {
            "rel_path": rel_path,
            "bytes": 10,
            "status": "problem",
            "problem_kind": kind,
            "problem": f'what is wrong, "{kind}"',
        }
    day = int(sha256[:2], 16) % 28 + 1
    return {
        "rel_path": rel_path,
        "sha256": sha256,
        "bytes": 1000,
        "width": 4000,
        "height": 3000,
        "orientation": 1,
        "format": "JPEG",
        "taken_at": f"2024-05-{day:02}T12:00:00+02:00" if day % 2 else None,
        "camera": "Canon EOS R5" if day % 3 else None,
        "lens": None,
        "gps": {"lat": 48.1234567, "lon": -11.5} if day % 5 else None,
        "own_title": None,
        "own_caption": None,
        "own_description": None,
        "own_alt_text": None,
        "own_rating": None,
        "own_keywords": [],
        "own_paths": [],
        "place": None,
        "embedded": "{}",
        "tagged": False,
        "dhash": sha256[:16],
        "thumb": f"512/{sha256[:2]}/{sha256[:40]}.jpg",
        "status": "ok",
    }


def _embedding(sha256: str, problem: tuple[str, str] | None) -> dict:
    if problem and problem[0] == "embed":
        return {"sha256": sha256, "problem_kind": problem[1], "problem": "does not fit"}
    return {"sha256": sha256, "embedding": _vector(sha256)}
