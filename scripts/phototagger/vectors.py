"""Embeddings as numpy arrays: read from a shard's table, brought to unit length."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phototagger.tables import read_table


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] at unit length, in float64; a zero vector stays zero."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def read_vectors(path: Path, key: str) -> tuple[list[str], np.ndarray]:
    """The `key` column and the embeddings, float32 [N, D], of the rows that have an embedding."""
    table = read_table(path, columns=[key, "embedding"])
    table = table.filter(pc.is_valid(table["embedding"]))
    column = table.schema.field("embedding").type
    flat = pc.list_flatten(table["embedding"]).combine_chunks()
    if isinstance(flat, pa.ChunkedArray):  # without chunks
        flat = pa.concat_arrays(flat.chunks) if flat.num_chunks else pa.array([], pa.float32())
    vectors = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return table[key].to_pylist(), vectors.reshape(-1, column.list_size)
