"""Search over the embeddings of a library: by words, or by likeness to a photo.

What is already embedded is only compared: looking for photos like one of the library's own needs
no model, and torch is imported only when words or an unknown photo have to be embedded.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phototagger.errors import UserError
from phototagger.files import sha256_file, write_atomic
from phototagger.machine import Machine
from phototagger.models import card, weights_digest
from phototagger.records import read_records

if TYPE_CHECKING:
    from PIL import Image

    from phototagger.clip import Clip

log = logging.getLogger(__name__)

PROMPTS = ("{}", "a photo of {}")  # averaged
TEMPLATE = "search.html.jinja"


@dataclass(frozen=True)
class Hit:
    """A photo that was found; `score` is the cosine similarity."""

    rel_path: str
    score: float


@dataclass(frozen=True)
class Index:
    """The embedded photos of a library. Copies of a photo share a row of `vectors`."""

    results: Path
    machine: Machine
    model: str  # name of the card
    digest: str  # of the model that the photos were embedded with
    rel_paths: list[str]  # as in records.jsonl
    rows: np.ndarray  # int64 [len(rel_paths)], the row of each photo in `vectors`
    by_sha256: dict[str, int]  # row of a content
    vectors: np.ndarray  # float32 [N, D], unit length

    @classmethod
    def load(cls, results: Path, machine: Machine) -> "Index":
        """Read `results/embeddings` and `results/records.jsonl`.

        Raises UserError if there is nothing to search in, or if an unfinished change of model left
        embeddings of two models.
        """
        by_sha256, vectors, digest = _read_embeddings(results)
        rel_paths, rows, model, lacking = [], [], "", 0
        for record in read_records(results / "records.jsonl"):
            row = by_sha256.get(record["sha256"])
            model = record["models"]["clip"]
            if row is None:
                lacking += not record.get("tagged")
                continue
            rel_paths.append(record["rel_path"])
            rows.append(row)
        if not rel_paths:
            raise UserError(f"{results / 'records.jsonl'}: no photos in it with embeddings; {_RUN}")
        if lacking:
            log.warning("%d photos have no embedding yet and are left out; %s", lacking, _RUN)
        machine = replace(machine, cache=results.absolute().parent / machine.cache)
        rows = np.asarray(rows, np.int64)
        return cls(results, machine, model, digest, rel_paths, rows, by_sha256, vectors)

    # ------------------------------------------------------------------------------- search

    def search_text(self, query: str, k: int) -> list[Hit]:
        """The k photos closest to a text. Raises UserError for an empty one."""
        if not query.strip():
            raise UserError('the query is empty; say what to look for, as in "red boat at sunset"')
        from phototagger.clip import embed_labels

        _check_count(k)
        clip = self._clip
        (vector,) = embed_labels([query.strip()], clip.model, clip.tokenizer, prompt=PROMPTS)
        return self.closest(vector, k)

    def search_like(self, photo: str | Path, k: int) -> list[Hit]:
        """The k photos closest to a photo, given by rel_path or as a file.

        A photo of the library is itself the best hit; any other file is embedded for the occasion.

        Raises UserError if it is neither, or not a photo.
        """
        _check_count(k)
        row = self._row(photo)
        return self.closest(self._embed(Path(photo)) if row is None else self.vectors[row], k)

    def closest(self, vector: np.ndarray, k: int) -> list[Hit]:
        """The k photos with the highest cosine to a unit vector [D], equal ones in path order."""
        scores = (self.vectors @ vector)[self.rows]
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self.rel_paths[i], float(scores[i])) for i in best]

    def _row(self, photo: str | Path) -> int | None:
        """The row of a known photo, None for a file that is not in the library."""
        positions = self._positions
        if (position := positions.get(str(photo))) is not None:
            return int(self.rows[position])
        path = Path(photo)
        if not path.is_file():
            raise UserError(f"{photo}: no such photo, neither as a file nor in the library")
        inside = self.machine.roots.rel_path(path)
        if inside is not None and (position := positions.get(inside)) is not None:
            return int(self.rows[position])
        try:
            return self.by_sha256.get(sha256_file(path))
        except OSError as error:
            raise UserError(f"{photo}: cannot be read ({error.strerror})") from error

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {rel_path: position for position, rel_path in enumerate(self.rel_paths)}

    # -------------------------------------------------------------------------------- model

    @cached_property
    def _clip(self) -> "Clip":
        """The model that the photos were embedded with."""
        from phototagger.clip import load_card_model

        if weights_digest(self.model, self.machine.models) != self.digest:
            raise UserError(
                f"{self.model} in {self.machine.models} is not the model that the photos were "
                f"embedded with; {_RUN}"
            )
        return load_card_model(
            self.model, self.machine.models, self.machine.device, self.machine.scratch
        )

    def _embed(self, path: Path) -> np.ndarray:
        """Float32 [D], unit length, of a file outside the library."""
        from phototagger.clip import embed_images
        from phototagger.problems import PhotoProblem

        settings = _settings(self.results)
        try:
            image = _load(path, settings, card(self.model, self.machine.models).image_size)
        except PhotoProblem as error:
            raise UserError(
                f"{path}: {error.problem.message}; {error.problem.what_to_do}"
            ) from error
        clip = self._clip
        return _unit(embed_images([image], clip.model, clip.preprocess))[0]


def find(
    results: Path, machine: Machine, *, query: str | None = None, like: str | None = None, k: int
) -> list[Hit]:
    """The k photos closest to a text or to a photo (exactly one of the two), best first.

    Raises UserError for anything a person can mend.
    """
    if (query is None) == (like is None):
        raise UserError("give either words to search for or --like PHOTO")
    _check_count(k)
    index = Index.load(results, machine)
    return index.search_like(like, k) if query is None else index.search_text(query, k)


def write_html(
    hits: Iterable[Hit], path: Path, *, results: Path, machine: Machine, title: str
) -> None:
    """Write a self-contained page with the pictures of what was found."""
    from phototagger import pages

    hits = list(hits)
    wanted = {hit.rel_path for hit in hits}
    total, records = 0, {}
    for record in read_records(results / "records.jsonl"):
        total += 1
        if record["rel_path"] in wanted:
            records[record["rel_path"]] = record
    machine = replace(machine, cache=results.absolute().parent / machine.cache)
    settings = _settings(results)
    tiles = []
    for number, hit in enumerate(hits):
        record = records[hit.rel_path]
        picture = pages.picture(
            record, machine=machine, size=settings["size"], quality=settings["quality"]
        )
        tiles.append(pages.tile(record, picture, number, score=hit.score))
    model = card(record["models"]["clip"], machine.models) if hits else None
    write_atomic(path, pages.render(TEMPLATE, title=title, tiles=tiles, total=total, model=model))


# ------------------------------------------------------------------------------------- reading

_RUN = "run: photo-tagger run PHOTOS"


def _check_count(k: int) -> None:
    if k < 1:
        raise UserError(f"-k {k}: ask for at least one photo")


def _read_embeddings(results: Path) -> tuple[dict[str, int], np.ndarray, str]:
    """Row by sha256, vectors float32 [N, D] at unit length, digest of the model."""
    import pyarrow.parquet as pq

    from phototagger.vectors import read_vectors

    shards = sorted((results / "embeddings").glob("*.parquet"))
    if not shards or not (results / "records.jsonl").is_file():
        raise UserError(f"{results}: no results to search in yet; {_RUN}")
    rows: dict[str, int] = {}
    parts, digests = [], set()
    for shard in shards:
        metadata = pq.read_schema(shard).metadata or {}
        digests.add(metadata.get(b"phototagger.model", b"").decode())
        keys, vectors = read_vectors(shard, "sha256")
        new = [i for i, key in enumerate(keys) if key not in rows]
        rows |= {keys[i]: len(rows) + n for n, i in enumerate(new)}
        parts.append(_unit(vectors[new]))
    if len(digests) > 1 or len({part.shape[1] for part in parts}) > 1:
        raise UserError(f"{results / 'embeddings'}: made with different models; {_RUN}")
    return rows, np.concatenate(parts), digests.pop()


def _unit(vectors: np.ndarray) -> np.ndarray:
    from phototagger.vectors import normalise

    return normalise(vectors).astype(np.float32)


def _settings(results: Path) -> dict[str, int]:
    """Configuration of the thumbnails, as frozen by the run."""
    path = results / "audit" / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))["config"]["thumbs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: missing or unreadable; {_RUN}") from error


def _load(path: Path, settings: dict[str, int], image_size: int) -> "Image.Image":
    """A file as the model is shown the library's photos: as thumbnail if that is large enough."""
    from io import BytesIO

    from PIL import Image

    from phototagger import images
    from phototagger.thumbnails import make_thumb, read_photo

    data, _ = read_photo(path, settings["max_bytes"])
    limits = {"max_pixels": settings["max_pixels"], "path": path}
    thumb = make_thumb(data, size=settings["size"], quality=settings["quality"], **limits)
    image = Image.open(BytesIO(thumb.jpeg))
    if min(image.size) >= image_size:
        return image
    narrow = max(image.size) / min(image.size)
    return images.decode(data, long_edge=int(2 * image_size * narrow) + 1, **limits).image
