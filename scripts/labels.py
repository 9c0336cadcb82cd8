"""Rule `labels`: read the label pack and embed its labels with the CLIP model, once for all photos.

Writes `labels.json` (what scoring and records need to know of each label) and `embeddings.parquet`
(label, float32 [D] at unit length; per template normalised, averaged, normalised). A group's own
templates take the place of the configured ones.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from phototagger.files import write_atomic
from phototagger.job import Stats, job
from phototagger.labels import Label, check_templates, load_pack
from phototagger.machine import Machine
from phototagger.tables import write_table


def labels(
    pack: Path,
    labels_output: Path,
    embeddings_output: Path,
    *,
    templates: Sequence[str],
    model: str,
    machine: Machine,
    digests: Mapping[str, str],
    stats: Stats | None = None,
) -> None:
    """Embed the labels of a pack; see the module's docstring for what is written.

    Raises UserError for a pack or templates that are not as documented, and a model not there.
    """
    stats = stats or Stats()
    loaded = load_pack(pack)
    check_templates(templates, "labels.templates")

    from phototagger.clip import load_card_model  # seconds: after the cheap checks

    clip = load_card_model(model, machine.models, machine.device, machine.scratch)
    vectors = _embed(loaded.labels, tuple(templates), clip)
    schema = pa.schema(
        [("label", pa.string()), ("embedding", pa.list_(pa.float32(), clip.dimension))]
    )
    rows = [
        {"label": label.label, "embedding": vector}
        for label, vector in zip(loaded.labels, vectors, strict=True)
    ]
    write_table(embeddings_output, schema, rows, digests)
    content = {
        "pack": loaded.digest,
        "model": model,
        "logit_scale": round(clip.logit_scale, 6),
        "labels": [as_json(label) for label in loaded.labels],
    }
    write_atomic(labels_output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    stats.extra["labels"] = len(loaded.labels)


def as_json(label: Label) -> dict[str, Any]:
    """A label as it stands in `labels.json`."""
    return {
        "label": label.label,
        "group": label.group,
        "path": list(label.path),
        "threshold": label.threshold,
        "group_threshold": label.group_threshold,
        "synonym_group": label.synonym_group,
        "synonyms": list(label.synonyms),
        "export": label.export,
    }


def _embed(pack: Sequence[Label], templates: tuple[str, ...], clip: Any) -> np.ndarray:
    """Float32 [M, D] in pack order; one call for all the labels that share their templates."""
    from phototagger.clip import embed_labels

    vectors = np.zeros((len(pack), clip.dimension), np.float32)
    sharing: dict[tuple[str, ...], list[int]] = {}
    for index, label in enumerate(pack):
        sharing.setdefault(label.templates or templates, []).append(index)
    for prompts, indices in sharing.items():
        texts = [pack[index].text for index in indices]
        vectors[indices] = embed_labels(texts, clip.model, clip.tokenizer, clip.device, prompts)
    return vectors


if __name__ == "__main__":
    from phototagger.gpus import lease

    with job(snakemake) as stats:
        machine = Machine.load(snakemake.params.machine)
        with lease(snakemake.resources.gpu, machine.servers):
            labels(
                machine.labels,
                Path(snakemake.output.labels),
                Path(snakemake.output.embeddings),
                templates=snakemake.params.templates,
                model=snakemake.params.model,
                machine=machine,
                digests={
                    "pack": snakemake.params.pack,
                    "model": snakemake.params.model_digest,
                    "code": snakemake.params.code,
                },
                stats=stats,
            )
