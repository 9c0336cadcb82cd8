"""Rule `medoids`: the photo that stands for each folder, and at wish for each keyword in a folder.

Embeddings at unit length; the centroid of a group is their mean, again at unit length; the medoid
is the photo with the highest cosine to it (of equal ones the first in path order). Photos that are
tagged already have no say, so a folder of nothing else has no medoid. Embeddings are streamed shard
by shard: once to add up the centroids, once to find the photos. Memory holds one shard, the
centroids of some thousand groups and about 100 bytes per photo.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phototagger import names, plan
from phototagger.files import open_atomic
from phototagger.job import Stats, job
from phototagger.vectors import normalise, read_vectors

GROUPS_AT_ONCE = 8192  # centroids in memory: 64 MB at 1,024 dimensions
DECIMALS = 9  # cosines closer than this are equal: the two photos of a folder of two always are


@dataclass(frozen=True)
class Library:
    """The photos of `records.jsonl`, in path order; positions are what groups are made of."""

    path: Path
    offsets: np.ndarray  # int64 [N], where each line begins
    sha256: np.ndarray  # S64 [N]
    folders: dict[str, np.ndarray]  # positions of each folder's photos
    tags: dict[tuple[str, str], np.ndarray]  # positions per (folder, keyword)

    def rel_paths(self, positions: Iterable[int]) -> list[str]:
        """Read again from the file: names of a million photos are no small thing to keep."""
        with self.path.open("rb") as file:
            found = []
            for position in positions:
                file.seek(self.offsets[position])
                found.append(json.loads(file.readline())["rel_path"])
        return found


def medoids(
    embeddings: Sequence[Path],
    records: Path,
    folders_output: Path,
    tags_output: Path,
    *,
    tag_aware: bool,
    min_size: int,
    stats: Stats | None = None,
) -> None:
    """Write `folder_medoids.csv` and `tag_medoids.csv` (only its header unless `tag_aware`).

    A keyword needs `min_size` photos in a folder. Copies of a photo each count.
    """
    stats = stats or Stats()
    library = read_library(records, tag_aware, min_size)
    shards = locate(library, embeddings)
    folders = sorted(library.folders, key=plan.sort_key)
    found = find_medoids([library.folders[folder] for folder in folders], shards, embeddings)
    rows = [
        (folder, path, _decimal(cosine))
        for folder, (path, cosine) in zip(folders, _named(found, library), strict=True)
        if path is not None
    ]
    _write(folders_output, ("folder", "medoid_rel_path", "cosine_to_centroid"), rows)
    tags = sorted(library.tags, key=lambda key: (plan.sort_key(key[0]), key[1]))
    found = find_medoids([library.tags[key] for key in tags], shards, embeddings)
    tag_rows = [
        (folder, tag, len(library.tags[folder, tag]), path, _decimal(cosine))
        for (folder, tag), (path, cosine) in zip(tags, _named(found, library), strict=True)
        if path is not None
    ]
    header = ("folder", "tag", "photos", "medoid_rel_path", "cosine_to_centroid")
    _write(tags_output, header, tag_rows)
    stats.photos = stats.computed = len(library.sha256)


def read_library(records: Path, tag_aware: bool, min_size: int) -> Library:
    """What medoids need of the records; tags with fewer than `min_size` photos are left out."""
    offsets, digests = [], []
    folders: dict[str, list[int]] = {}
    tags: dict[tuple[str, str], list[int]] = {}
    offset = 0
    with records.open("rb") as file:
        for position, line in enumerate(file):
            record = json.loads(line)
            offsets.append(offset)
            offset += len(line)
            digests.append(record["sha256"].encode())
            if record["tagged"]:
                continue
            folder = names.folder_of(record["rel_path"])
            folders.setdefault(folder, []).append(position)
            for tag in {entry["keyword"] for entry in record["keywords"]} if tag_aware else ():
                tags.setdefault((folder, tag), []).append(position)
    return Library(
        records,
        np.array(offsets, np.int64),
        np.array(digests, "S64"),
        {folder: np.array(positions) for folder, positions in folders.items()},
        {key: np.array(at) for key, at in tags.items() if len(at) >= min_size},
    )


def locate(library: Library, embeddings: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Of each photo the shard and the row that holds its embedding, int32 [N]; -1 if none does.

    A photo with copies in several shards is embedded in each; any of them is the same embedding.
    """
    shard_of = np.full(len(library.sha256), -1, np.int32)
    row_of = np.full(len(library.sha256), -1, np.int32)
    order = np.argsort(library.sha256, kind="stable")
    known = library.sha256[order]
    for shard, path in enumerate(embeddings):
        digests = np.array(read_vectors(path, "sha256")[0], "S64")
        first = np.searchsorted(known, digests, "left")
        last = np.searchsorted(known, digests, "right")
        for row in range(len(digests)):
            positions = order[first[row] : last[row]]
            new = positions[shard_of[positions] < 0]
            shard_of[new] = shard
            row_of[new] = row
    return shard_of, row_of


def find_medoids(
    groups: Sequence[np.ndarray],
    located: tuple[np.ndarray, np.ndarray],
    embeddings: Sequence[Path],
) -> Iterator[tuple[int, float]]:
    """Position of the medoid and its cosine to the centroid, for each group of positions.

    Position -1 for a group of which no photo has an embedding.
    """
    for start in range(0, len(groups), GROUPS_AT_ONCE):
        yield from _find(groups[start : start + GROUPS_AT_ONCE], located, embeddings)


def _find(
    groups: Sequence[np.ndarray],
    located: tuple[np.ndarray, np.ndarray],
    embeddings: Sequence[Path],
) -> list[tuple[int, float]]:
    shard_of, row_of = located
    position = np.concatenate(groups)
    group = np.repeat(np.arange(len(groups)), [len(positions) for positions in groups])
    # by shard, in it by group, in that by path: a group's members are neighbours
    order = np.lexsort((position, group, shard_of[position]))
    position, group = position[order], group[order]
    shards, begins = np.unique(shard_of[position], return_index=True)
    ends = np.append(begins[1:], len(position))
    parts = [
        (embeddings[shard], slice(begin, end))
        for shard, begin, end in zip(shards, begins, ends, strict=True)
        if shard >= 0
    ]

    centroids = None
    for path, part in parts:
        vectors = normalise(read_vectors(path, "sha256")[1])[row_of[position[part]]]
        if centroids is None:
            centroids = np.zeros((len(groups), vectors.shape[1]))
        present, first = np.unique(group[part], return_index=True)
        centroids[present] += np.add.reduceat(vectors, first)
    best = np.full(len(groups), -np.inf)
    medoid = np.full(len(groups), -1, np.int64)
    if centroids is None:
        return list(zip(medoid.tolist(), best.tolist(), strict=True))
    centroids = normalise(centroids)

    for path, part in parts:
        vectors = normalise(read_vectors(path, "sha256")[1])[row_of[position[part]]]
        at, members = position[part], group[part]
        cosines = np.einsum("nd,nd->n", vectors, centroids[members]).round(DECIMALS)
        order = np.lexsort((at, -cosines, members))
        present, first = np.unique(members[order], return_index=True)
        candidate, cosine = at[order][first], cosines[order][first]
        equal = (cosine == best[present]) & (candidate < medoid[present])
        better = (cosine > best[present]) | equal
        best[present[better]] = cosine[better]
        medoid[present[better]] = candidate[better]
    return list(zip(medoid.tolist(), best.tolist(), strict=True))


def _named(
    found: Iterable[tuple[int, float]], library: Library
) -> Iterator[tuple[str | None, float]]:
    found = list(found)
    positions = [position for position, _ in found if position >= 0]
    rel_paths = iter(library.rel_paths(positions))
    for position, cosine in found:
        yield (next(rel_paths) if position >= 0 else None), cosine


def _decimal(value: float) -> str:
    return f"{round(value, 6) + 0.0:.6f}"  # the sum turns -0.0 into 0.0


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open_atomic(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    with job(snakemake) as stats:
        medoids(
            [Path(path) for path in snakemake.input.embeddings],
            Path(snakemake.input.records),
            Path(snakemake.output.folders),
            Path(snakemake.output.tags),
            tag_aware=snakemake.params.tag_aware,
            min_size=snakemake.params.min_size,
            stats=stats,
        )
