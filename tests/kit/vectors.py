"""Rows with vectors for store tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters.operations import StoredRow


def clustered(count: int, dim: int = 32, clusters: int = 20, seed: int = 1) -> NDArray[np.float32]:
    """Unit vectors (count, dim) in clusters, as embeddings of texts on a few subjects are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    made = centres[rng.integers(0, clusters, count)] + 0.6 * rng.standard_normal((count, dim))
    unit: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return unit


def rows(count: int, dim: int = 32, seed: int = 1) -> list[StoredRow]:
    """``row-0``, ``row-1``, ... with a source (one of five) and their number as metadata."""
    return [
        StoredRow(f"row-{i}", f"text {i}", {"source": f"s{i % 5}", "number": i}, vector)
        for i, vector in enumerate(clustered(count, dim, seed=seed))
    ]
