"""What works on all photos reads them as a stream: four times the photos, hardly more memory."""

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report import report
from tables_for_tests import MODEL, RUN_ID, Library, make_library

from phototagger import plan
from phototagger.plan import Shard
from phototagger.prune import prune_sidecars
from phototagger.tables import embeddings_schema, write_table

PHOTOS = 50  # per shard
FOLDERS = 5
DIMENSIONS = 512


def report_on(library: Library) -> None:
    report(
        library.results / "records.jsonl",
        library.results / "problems.csv",
        library.results / "folder_medoids.csv",
        library.results / "report.html",
        machine=library.machine,
        model=MODEL,
        run_id=RUN_ID,
        size=64,
        quality=80,
        max_photos=20,
        per_folder=4,
    )


def prune_of(library: Library) -> None:
    prune_sidecars(library.results / "sidecars", library.paths("sidecars-manifest", ".tsv"))


# Rule -> what it does, and bytes per photo that it may keep. A record is some thousand of them.
RULES: dict[str, tuple[Callable[[Library], object], int]] = {
    "collect": (Library.collect, 60),
    "export": (Library.export, 60),
    "medoids": (Library.medoids, 250),  # where each photo's line and embedding are
    "summary": (Library.summary, 60),
    "report": (report_on, 60),
    "check": (Library.check, 60),
    "prune": (prune_of, 200),  # a number per proposed sidecar
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Library]:
    """Libraries of 400 and 1,600 photos, as far as `medoids`, by their number of photos."""
    names = [f"f0/s000-{number:03}.jpg" for number in range(PHOTOS)]
    template = make_library(tmp_path_factory.mktemp("template"), names, shard_size=PHOTOS)
    assert len(template.shards) == 1
    template.record()
    template.manifests()
    found = {}
    for shards in (8, 32):
        library = multiplied(template, tmp_path_factory.mktemp(f"of-{shards}"), shards)
        for rule in ("collect", "export", "medoids"):
            RULES[rule][0](library)
        found[shards * PHOTOS] = library
    return found


def multiplied(template: Library, work: Path, shards: int) -> Library:
    """A library of as many shards, all like the template's one but for names and digests."""
    made = [_copy(template, Library(work, []), k, k * FOLDERS // shards) for k in range(shards)]
    plan.write_index(work / "results/plan/index.json", made, RUN_ID)
    return Library(work, made)


def _copy(template: Library, library: Library, number: int, folder: int) -> Shard:
    (before,) = template.shards
    name = f"{number:010x}"

    def changed(text: str) -> str:
        text = text.replace("f0/s000-", f"f{folder}/s{number:03}-")
        return re.sub(r"\b[0-9a-f]{4}(?=[0-9a-f]{60}\b)", f"{number:04x}", text)

    parts = {"plan/shards": ".tsv", "records": ".jsonl", "problems": ".csv"}
    for part, suffix in (parts | {"sidecars-manifest": ".tsv"}).items():
        text = changed(template.path(part, before.name, suffix).read_text())
        path = library.path(part, name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    table = pq.read_table(template.path("embeddings", before.name, ".parquet"))
    digests = [changed(digest) for digest in table["sha256"].to_pylist()]
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    vectors = np.tile(vectors, (1, DIMENSIONS // vectors.shape[1]))  # as long as a real model's
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [{"sha256": d, "embedding": v} for d, v in zip(digests, vectors, strict=True)]
    path = library.path("embeddings", name, ".parquet")
    write_table(path, embeddings_schema(vectors.shape[1]), rows, {})
    listing = library.path("plan/shards", name, ".tsv").read_bytes()
    return Shard(name, plan.digest(listing), PHOTOS)


def peak_of(run: Callable[[Library], object], library: Library) -> int:
    """Bytes that Python, NumPy and Arrow held at most; Python does not see Arrow's."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        run(library)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_the_photos(libraries, rule):
    run, allowed = RULES[rule]
    few, many = sorted(libraries)
    run(libraries[few])  # what is loaded once
    growth = peak_of(run, libraries[many]) - peak_of(run, libraries[few])
    assert growth / (many - few) < allowed
