"""Embeds the photos of one shard with the CLIP model: one row per distinct content.

Photos that are tagged already are left out.

What the cache knows (by the photo's SHA-256, the model's digest and the recipe) is not computed
again, and if it knows all, neither torch nor open_clip is imported. What is computed is put into
the cache batch by batch, so that a job that was killed loses only what was in flight. Photos are
decoded in background threads while the model works on the batch before.

A photo that cannot be embedded is a row without an embedding, and with the problem.

Loading a model takes longer than using it on a shard. So a job that had to load it works ahead for
a while: photos of other shards whose thumbnails are done are embedded into the cache, where the
jobs of those shards find them.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from phototagger import images, tables, thumbnails
from phototagger.aliases import picture_of
from phototagger.files import explain, keep
from phototagger.job import Stats, is_under_way, job
from phototagger.machine import Machine
from phototagger.models import card
from phototagger.problems import PhotoProblem, Problem, one_line

if TYPE_CHECKING:
    import torch

    from phototagger.clip import Clip

log = logging.getLogger(__name__)

RECIPE = "1"  # raised when the way from photo to pixels changes
BATCHES_AHEAD = 2  # decoded batches that may wait for the model
AHEAD_SECONDS = 60  # a job may go on that long for other shards' photos
LONGEST = 8  # width : height (or the reverse) beyond which only the middle is looked at

Row = Mapping[str, Any]  # of the thumbs table


# ---------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class Cache:
    """Kept embeddings, `ab/<SHA-256 of the picture>.f32`: raw little-endian float32."""

    folder: Path
    dimension: int

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}.f32"

    def get(self, sha256: str) -> np.ndarray | None:
        """Float32 [D], or None if it is not known or the file is damaged."""
        try:
            data = self.path(sha256).read_bytes()
        except OSError:
            return None
        if len(data) != 4 * self.dimension:
            return None
        vector = np.frombuffer(data, "<f4")
        return vector if np.isfinite(vector).all() else None

    def put(self, sha256: str, vector: np.ndarray) -> bool:
        """Whether it was kept: not in a cache that may only be read."""
        return keep(self.path(sha256), vector.astype("<f4").tobytes())


def open_cache(cache: Path, model_digest: str, dimension: int, *, size: int, quality: int) -> Cache:
    """The embeddings kept of a model, and of everything else that shapes the pixels it sees."""
    recipe = f"{RECIPE}-{thumbnails.PIXELS}-{size}-{quality}"
    return Cache(cache / "embeddings" / model_digest[:16] / recipe, dimension)


# --------------------------------------------------------------------------------------- pixels


def load_picture(
    row: Row, image_size: int, *, machine: Machine, size: int, quality: int
) -> Image.Image:
    """What the model is shown of a photo: its thumbnail if that is large enough, else the photo.

    Raises PhotoProblem.
    """
    width, height = row["width"], row["height"]
    if min(images.fit(width, height, size)) >= image_size:
        picture = thumbnails.load_thumb(row, machine=machine, size=size, quality=quality)
    else:
        # a panorama: twice the pixels the model needs, not all of them
        long_edge = ceil(2 * image_size * max(width, height) / min(width, height))
        picture = thumbnails.load_photo(row, machine=machine, long_edge=long_edge)
    return images.middle(picture, LONGEST)


def _pixels(load: Callable[[Row], Image.Image], clip: "Clip", row: Row) -> "torch.Tensor | Problem":
    try:
        return clip.preprocess(load(row))
    except PhotoProblem as error:
        return error.problem
    except MemoryError:
        return Problem("out_of_memory", "not enough memory to decode the picture")
    except (
        Exception
    ) as error:  # whatever a decoder may think of: this photo is left out, not the job
        if explain(error):  # the disk, not the photo
            raise
        log.exception("%s", row["rel_path"])
        return Problem("embed_failed", one_line(f"{type(error).__name__}: {error}"))


def _prefetch(
    function: Callable, items: Iterable, threads: int, depth: int
) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) in order, computed in threads up to `depth` items ahead."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Any, Future]] = deque(
            (item, pool.submit(function, item)) for item in islice(remaining, depth)
        )
        try:
            while waiting:
                item, future = waiting.popleft()
                result = future.result()
                waiting.extend((more, pool.submit(function, more)) for more in islice(remaining, 1))
                yield item, result
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------- model


def compute(
    rows: Iterable[Row],
    clip: "Clip",
    load: Callable[[Row], Image.Image],
    *,
    batch_size: int | None,
    threads: int,
) -> Iterator[tuple[Row, np.ndarray | Problem]]:
    """Embedding (float32 [D]) or Problem of each row, in order, batch by batch."""
    import torch

    from phototagger.clip import ImageEncoder

    torch.set_num_threads(threads)
    encoder = ImageEncoder(clip.model, clip.device, batch_size)
    depth = (BATCHES_AHEAD + 1) * encoder.batch_size
    decoded = _prefetch(lambda row: _pixels(load, clip, row), rows, threads, depth)
    while batch := list(islice(decoded, encoder.batch_size)):
        good = [pixels for _, pixels in batch if not isinstance(pixels, Problem)]
        vectors = iter(encoder(torch.stack(good)) if good else ())
        for row, pixels in batch:
            yield row, pixels if isinstance(pixels, Problem) else _finite(next(vectors))


def _finite(vector: np.ndarray) -> np.ndarray | Problem:
    if np.isfinite(vector).all():
        return vector
    return Problem("embed_failed", "the model gave numbers that are not finite")


# ----------------------------------------------------------------------------------------- rule


def embed(
    thumbs: Path,
    output: Path,
    *,
    model: str,
    model_digest: str,
    machine: Machine,
    threads: int,
    size: int,
    quality: int,
    digests: Mapping[str, str],
    take_gpu: Callable[[], object] = lambda: None,
    works_ahead: bool = True,
    stats: Stats | None = None,
) -> None:
    """Write the embeddings of a shard: float32 [D], not normalised, one row per distinct SHA-256.

    `size` and `quality` are those of the thumbnails; `take_gpu` is called before the model is
    loaded. Not to be `works_ahead` where other nodes have jobs of their own for the other shards.

    Raises UserError if the model is unknown or not there and something has to be computed.
    """
    stats = stats or Stats()
    known = card(model, machine.models)
    cache = open_cache(machine.cache, model_digest, known.embedding_dim, size=size, quality=quality)
    rows = tables.read_table(thumbs).to_pylist()
    copies = Counter(row["sha256"] for row in rows if tables.goes_on(row))
    first = {row["sha256"]: row for row in reversed(rows) if tables.goes_on(row)}
    found: dict[str, np.ndarray | Problem | None] = {
        sha256: cache.get(picture_of(first[sha256])) for sha256 in copies
    }
    missing = [first[sha256] for sha256, vector in found.items() if vector is None]

    stats.photos = len(rows)
    stats.skipped = len(rows) - copies.total()
    stats.cached = sum(copies[sha256] for sha256, vector in found.items() if vector is not None)
    stats.progress()
    kept = True  # also by the cache, so that other shards' jobs find it
    if missing:
        take_gpu()
        from phototagger.clip import load_card_model  # seconds; not needed if all is known

        def load(row: Row) -> Image.Image:
            return load_picture(row, known.image_size, machine=machine, size=size, quality=quality)

        clip = load_card_model(model, machine.models, machine.device, machine.scratch)

        def embeddings(rows: Iterable[Row]) -> Iterator[tuple[Row, np.ndarray | Problem]]:
            return compute(rows, clip, load, batch_size=machine.batch_size, threads=threads)

        for row, result in embeddings(missing):
            sha256 = row["sha256"]
            found[sha256] = result
            if isinstance(result, Problem):
                stats.problems += copies[sha256]
            else:
                kept = cache.put(picture_of(row), result)
                stats.computed += 1
                stats.cached += copies[sha256] - 1
            stats.progress()
    schema = tables.embeddings_schema(known.embedding_dim)
    tables.write_table(output, schema, (_row(*item) for item in found.items()), digests)
    if missing and kept and works_ahead:
        deadline = time.monotonic() + AHEAD_SECONDS
        for row, result in embeddings(rows_ahead(thumbs, output, cache, deadline, stats)):
            if not isinstance(result, Problem):
                cache.put(picture_of(row), result)
                stats.extra["ahead"] = stats.extra.get("ahead", 0) + 1


def rows_ahead(
    thumbs: Path, output: Path, cache: Cache, deadline: float, stats: Stats
) -> Iterator[Row]:
    """Photos of other shards that wait to be embedded, until `deadline` (monotonic seconds).

    Every job begins with the shards that follow its own, and leaves out those whose own job is at
    work, so that jobs side by side (on two GPUs) seldom meet.
    """
    others = sorted(path for path in thumbs.parent.glob("*.parquet") if path != thumbs)
    later = [path for path in others if path > thumbs]
    seen: set[str] = set()
    for table in later + others[: len(others) - len(later)]:
        if output.with_name(table.name).exists() or not table.exists():
            continue
        if stats.path and is_under_way(stats.path.with_stem(table.stem), stats.run):
            continue
        for row in tables.read_table(table).to_pylist():
            if time.monotonic() > deadline:
                return
            picture = picture_of(row)
            if not tables.goes_on(row) or picture in seen or cache.path(picture).exists():
                continue
            seen.add(picture)
            yield row


def _row(sha256: str, result: np.ndarray | Problem) -> dict[str, Any]:
    problem = result if isinstance(result, Problem) else None
    return {
        "sha256": sha256,
        "embedding": None if problem else result,
        "problem_kind": problem and problem.kind,
        "problem": problem and problem.message,
    }


if __name__ == "__main__":
    from contextlib import ExitStack

    from phototagger import allocation
    from phototagger.gpus import lease
    from phototagger.lastjob import has_whole_run

    with job(snakemake) as stats, ExitStack() as held:
        machine = Machine.load(snakemake.params.machine)
        gpu = lease(snakemake.resources.gpu, machine.servers)
        embed(
            Path(snakemake.input.thumbs),
            Path(snakemake.output.table),
            model=snakemake.params.model,
            model_digest=snakemake.params.model_digest,
            machine=machine,
            threads=snakemake.threads,
            size=snakemake.params.size,
            quality=snakemake.params.quality,
            digests={
                "listing": snakemake.params.listing,
                "model": snakemake.params.model_digest,
                "code": snakemake.params.code,
            },
            take_gpu=lambda: held.enter_context(gpu),
            works_ahead=has_whole_run(allocation.current()),
            stats=stats,
        )
