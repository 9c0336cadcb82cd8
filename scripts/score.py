"""Rule `score`: compare the photos of a shard with the labels.

Per photo the k labels with the highest cosine, and every label whose cosine or probability (which
of the two is configured) reaches its threshold; of labels that are synonyms only the best stays.
Probabilities are a softmax over all labels with the model's logit scale. Equal scores stand in the
pack's order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phototagger.errors import UserError, one_of
from phototagger.job import Stats, job
from phototagger.labels import resolve_threshold
from phototagger.tables import SCORES, read_table, write_table
from phototagger.vectors import normalise, read_vectors


@dataclass(frozen=True)
class Scores:
    """Photos against labels, float32 [N, M] each, and each photo's labels from best to worst."""

    cosine: np.ndarray
    probability: np.ndarray
    order: np.ndarray  # int [N, M]


def score(
    embeddings: Path,
    labels: Path,
    label_embeddings: Path,
    output: Path,
    *,
    topk: int,
    measure: str,
    threshold: float,
    digests: Mapping[str, str],
    stats: Stats | None = None,
) -> None:
    """Write the scores of a shard (tables.SCORES), one row per photo that has an embedding.

    Raises UserError for a measure other than cosine or probability, and if photos and labels were
    embedded with different models.
    """
    stats = stats or Stats()
    if measure not in ("cosine", "probability"):
        raise one_of("score.measure", measure, ["cosine", "probability"])
    pack = json.loads(labels.read_text("utf-8"))
    ids, text = read_vectors(label_embeddings, "label")
    digests_of_photos, images = read_vectors(embeddings, "sha256")
    if text.shape[1] != images.shape[1] or ids != [label["label"] for label in pack["labels"]]:
        raise UserError(f"{label_embeddings}: does not go with {embeddings}; delete and run again")
    scores = compare(images, text, pack["logit_scale"])
    over = reached(scores, pack["labels"], measure, threshold)
    top = scores.order[:, :topk]
    rows = [
        {
            "sha256": sha256,
            "top": _entries(scores, ids, row, top[row]),
            "over_threshold": _entries(scores, ids, row, scores.order[row][over[row]]),
        }
        for row, sha256 in enumerate(digests_of_photos)
    ]
    write_table(output, SCORES, rows, digests)
    stats.photos = read_table(embeddings, ["sha256"]).num_rows
    stats.computed = len(rows)
    stats.skipped = stats.photos - stats.computed


def compare(images: np.ndarray, labels: np.ndarray, logit_scale: float) -> Scores:
    """Scores of image embeddings [N, D] against label embeddings [M, D], of any length.

    Computed in float64, so that a photo's float32 scores do not depend on which others share its
    shard, which changes the order of summation.
    """
    product = normalise(images) @ normalise(labels).T
    cosine = np.clip(product, -1, 1).astype(np.float32)
    logits = cosine.astype(np.float64) * logit_scale
    if logits.size:
        logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    probability = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return Scores(cosine, probability, np.argsort(-cosine, axis=1, kind="stable"))


def reached(
    scores: Scores, labels: list[dict[str, Any]], measure: str, threshold: float
) -> np.ndarray:
    """Which labels stay, bool [N, M] in each photo's order from best to worst."""
    values = scores.cosine if measure == "cosine" else scores.probability
    limits = [resolve_threshold(e["threshold"], e["group_threshold"], threshold) for e in labels]
    over = values >= np.array(limits, np.float32)
    over = np.take_along_axis(over, scores.order, axis=1)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        if label["synonym_group"] is not None:
            groups.setdefault(label["synonym_group"], []).append(index)
    for members in groups.values():
        mine = over & np.isin(scores.order, members)
        over &= ~mine | (np.cumsum(mine, axis=1) == 1)
    return over


def _entries(scores: Scores, ids: list[str], row: int, columns: np.ndarray) -> list[dict[str, Any]]:
    cosines = scores.cosine[row, columns].tolist()
    probabilities = scores.probability[row, columns].tolist()
    return [
        {"label": ids[column], "cosine": cosine, "probability": probability}
        for column, cosine, probability in zip(columns, cosines, probabilities, strict=True)
    ]


if __name__ == "__main__":
    with job(snakemake) as stats:
        score(
            Path(snakemake.input.embeddings),
            Path(snakemake.input.labels),
            Path(snakemake.input.label_embeddings),
            Path(snakemake.output.table),
            topk=snakemake.params.topk,
            measure=snakemake.params.measure,
            threshold=snakemake.params.threshold,
            digests={"listing": snakemake.params.listing, "code": snakemake.params.code},
            stats=stats,
        )
