"""Scores and order as the in-memory stores compute them: double precision, from the vectors as stored.

Postgres finds the rows; its own distances are sums in single (the index: half) precision, which is off in the seventh digit and may turn
two close neighbours around.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What the database's sums may be off by, relative to the lengths of the vectors: single precision, or half for the index's copy.
SINGLE, HALF = 2e-6, 5e-5


def scores(query: ArrayLike, vectors: NDArray[np.floating], distance: str) -> NDArray[np.float64]:
    """Score of each row of ``vectors`` (n, dim) against ``query`` (dim,): higher is nearer.

    Cosine similarity as in ``langchain_core.vectorstores.utils._cosine_similarity`` (0 where it is undefined), inner product, or negative
    Euclidean distance.
    """
    one = np.asarray(query, dtype=np.float64)
    many = np.asarray(vectors, dtype=np.float64)
    match distance:
        case "cosine":
            lengths = np.sqrt(np.einsum("ij,ij->i", many, many)) * math.sqrt(one @ one)
            dots = many @ one
            found = (
                dots / lengths
                if lengths.all()
                else np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
            )
        case "inner_product":
            found = many @ one
        case "l2":
            found = -np.linalg.norm(many - one, axis=1)
        case _:
            raise ValueError(f"unknown distance {distance!r}")
    return np.asarray(found, dtype=np.float64)


def best_first(found: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.intp]:
    """Indices by falling score; equal scores in the order of ``places``."""
    return np.lexsort((places, -found))


def tolerance(query: ArrayLike, vectors: NDArray[np.floating], distance: str, *, half: bool) -> float:
    """Scores nearer than this may be in either order in the database."""
    epsilon = HALF if half else SINGLE
    if distance == "cosine":
        return epsilon
    one, longest = float(np.linalg.norm(np.asarray(query))), float(np.linalg.norm(vectors, axis=1).max())
    return epsilon * (one * longest if distance == "inner_product" else one + longest)
