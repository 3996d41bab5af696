"""How many of the true neighbours a search finds, and how many candidates it needs to look at for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchwork_serving.store.scores import best_first, scores

AT = 10  #: recall@10
CANDIDATES = (40, 64, 100, 160, 250, 400)  #: ef_search values tried; 40 is pgvector's own default
SAMPLES = 200
#: In a store of up to this many rows, finding everything costs a millisecond or two: look at as many candidates as that takes.
SMALL = 10_000
SEED = 20_25
SPARE = 20  #: rows compared exactly beyond those wanted
CHUNK = 25  #: queries compared with all rows at once: 100 MB for a million rows


@dataclass(frozen=True, slots=True)
class SearchChoice:
    ef_search: int
    recall: float
    exact: bool


def choose(recall_by_ef: Mapping[int, float], floor: float, rows: int, wanted_ef: int | None = None) -> SearchChoice:
    """The fewest candidates that reach ``floor`` (in a small store: that find everything measured); an exact scan if none do.

    ``wanted_ef`` fixes the candidates; the floor still rules.
    """
    if not recall_by_ef:
        return SearchChoice(CANDIDATES[0], 1.0, exact=True)
    measured = recall_by_ef if wanted_ef is None else {wanted_ef: recall_by_ef[wanted_ef]}
    enough = sorted(ef for ef, recall in measured.items() if recall >= floor)
    if not enough:
        best = max(measured, key=lambda ef: measured[ef])
        return SearchChoice(best, measured[best], exact=True)
    whole = [ef for ef in enough if measured[ef] >= max(measured.values())] if rows <= SMALL else []
    chosen = (whole or enough)[0]
    return SearchChoice(chosen, measured[chosen], exact=False)


def sample_queries(vectors: NDArray[np.float32], count: int = SAMPLES) -> NDArray[np.float32]:
    """Queries like those to come, made from the stored vectors (n, dim): points between a row and another row near to it or far.

    A stored vector itself would be too easy a query: it is in the index, and real questions are not.
    """
    rng = np.random.default_rng(SEED)
    first, second = rng.integers(0, len(vectors), (2, count))
    weight = rng.uniform(0.1, 0.5, (count, 1)).astype(np.float32)
    mixed: NDArray[np.float32] = (1 - weight) * vectors[first] + weight * vectors[second]
    return mixed


class Neighbours(NamedTuple):
    """The nearest of all rows to a query, best first."""

    places: NDArray[np.intp]
    scores: NDArray[np.float64]


def nearest(queries: NDArray[np.float32], vectors: NDArray[np.float32], distance: str, at: int) -> list[Neighbours]:
    """Exact neighbours of each query (n, dim) among ``vectors`` (m, dim)."""
    found: list[Neighbours] = []
    keep = min(len(vectors), at + SPARE)
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        likely = np.argpartition(-_closeness(chunk, vectors, distance), keep - 1, axis=1)[:, :keep]
        for one, places in zip(chunk, np.sort(likely, axis=1), strict=True):
            exact = scores(one, vectors[places], distance)
            order = best_first(exact, places)[:at]
            found.append(Neighbours(places[order], exact[order]))
    return found


def recall_of(found: list[float], true: NDArray[np.float64]) -> float:
    """Share of the true neighbours among ``found``. By score, not by id: rows with equal vectors stand for one another."""
    if not len(true):
        return 1.0
    hits = sum(score >= float(true[-1]) - 1e-9 for score in found)
    return min(len(true), hits) / len(true)


def _closeness(queries: NDArray[np.float32], vectors: NDArray[np.float32], distance: str) -> NDArray[np.float32]:
    """Larger is nearer, in single precision, which is enough to pick the few rows that are then compared exactly."""
    close: NDArray[np.float32] = queries @ vectors.T
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    if distance == "l2":
        close = 2 * close - squares
    elif distance == "cosine":
        close /= np.sqrt(np.where(squares > 0, squares, 1))
    return close
