"""The Parquet tables that shard rules hand to each other: one schema per table, whole or not there.

Every table carries `phototagger.*` key-value metadata: the digests that the job was given as
params, repeated in the output, so that a lost `.snakemake` folder hides nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phototagger.files import atomic

GPS = pa.struct([("lat", pa.float64()), ("lon", pa.float64())])  # degrees, north and east positive
SCORE = pa.struct([("label", pa.string()), ("cosine", pa.float32()), ("probability", pa.float32())])

# One row per planned photo, in plan order. `status` is "ok" or "problem"; a problem row has
# rel_path, bytes, problem_kind, problem, and sha256 if the bytes could be read, and no more.
THUMBS = pa.schema(
    [
        ("rel_path", pa.string()),
        ("sha256", pa.string()),
        ("picture", pa.string()),  # SHA-256 under which the picture was first seen (see aliases)
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # of the photo, upright
        ("height", pa.int32()),
        ("orientation", pa.int8()),  # EXIF value as found, 1 if absent
        ("format", pa.string()),  # JPEG, PNG, TIFF, WEBP, HEIF, DNG, CR2 ...: by content
        ("taken_at", pa.string()),  # ISO 8601, local time of the camera, with offset if known
        ("camera", pa.string()),
        ("lens", pa.string()),
        ("gps", GPS),
        # of a person, or of software on a person's behalf: embedded in the photo or in its sidecars
        ("own_title", pa.string()),
        ("own_caption", pa.string()),
        ("own_description", pa.string()),
        ("own_alt_text", pa.string()),
        ("own_rating", pa.string()),  # as found: -1 (rejected) to 5, but not 0
        ("own_keywords", pa.list_(pa.string())),
        ("own_paths", pa.list_(pa.list_(pa.string()))),  # hierarchical ones, from the top down
        ("place", pa.string()),
        ("embedded", pa.string()),  # JSON: tag of xmp.FIELDS -> values; without those of sidecars
        ("tagged", pa.bool_()),  # there is all that the configuration asks for
        ("dhash", pa.string()),  # difference hash of the thumbnail, 64 bits as hex
        ("thumb", pa.string()),  # relative to <cache>/thumbs
        ("status", pa.string()),
        ("problem_kind", pa.string()),
        ("problem", pa.string()),
    ]
)

# Only photos of which a thumbnail exists, one row per distinct sha256, in plan order.
# A photo that could not be embedded has a null embedding, problem_kind and problem.


def embeddings_schema(dimension: int) -> pa.Schema:
    """Rows of `results/embeddings/{shard}.parquet`: float32 [D], not normalised."""
    return pa.schema(
        [
            ("sha256", pa.string()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("problem_kind", pa.string()),
            ("problem", pa.string()),
        ]
    )


# One row per embedded sha256. `top`: the k best labels, best first. `over_threshold`: all labels at
# or over their own threshold, one per synonym group, best first.
SCORES = pa.schema(
    [
        ("sha256", pa.string()),
        ("top", pa.list_(SCORE)),
        ("over_threshold", pa.list_(SCORE)),
    ]
)


def goes_on(row: Mapping[str, Any]) -> bool:
    """Whether a row of THUMBS is of a photo that later stages look at: readable, not tagged."""
    return row["status"] == "ok" and not row["tagged"]


def write_table(
    path: Path,
    schema: pa.Schema,
    rows: Iterable[Mapping[str, Any]],
    digests: Mapping[str, str],
) -> None:
    """Write rows of a shard table; `digests` becomes file metadata `phototagger.<name>`."""
    metadata = {f"phototagger.{name}": value for name, value in sorted(digests.items())}
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata(metadata))
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A shard table (or some of its columns)."""
    return pq.read_table(path, columns=columns, use_threads=False)
