"""What a store refuses, said before the database says it less clearly. Messages carry names and sizes, never values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from patchwork_adapters.operations import SearchRequest, StoredRow
from patchwork_serving.errors import StoreRefused

MAX_DIM = 16_000  #: pgvector's limit for the type ``vector``


def check_query(request: SearchRequest, dim: int) -> None:
    """``dim`` 0: the collection is empty and takes any."""
    vector = np.asarray(request.vector)
    if vector.ndim != 1 or (dim and vector.shape[0] != dim):
        raise StoreRefused(
            f"the query vector has shape {vector.shape} and collection {request.collection!r} has vectors of dimension {dim}; "
            "search with the embedding model that filled it"
        )
    if not math.isfinite(vector @ vector):
        raise StoreRefused(f"the query vector for collection {request.collection!r} holds NaN or infinity")


def check_rows(rows: Sequence[StoredRow], dim: int, collection: str) -> None:
    for place, row in enumerate(rows):
        wanted = dim or rows[0].vector.shape[0]
        if row.vector.ndim != 1 or row.vector.shape[0] != wanted:
            raise StoreRefused(
                f"row {place} for collection {collection!r} has a vector of shape {row.vector.shape}, the others have "
                f"dimension {wanted}; embed all rows with one model"
            )
        if not 0 < wanted <= MAX_DIM:
            raise StoreRefused(
                f"row {place} for collection {collection!r} has {wanted} dimensions; 1 to {MAX_DIM} can be stored"
            )
        if not np.isfinite(row.vector).all():
            raise StoreRefused(f"row {place} for collection {collection!r} holds NaN or infinity in its vector")
        if "\0" in row.id:
            raise StoreRefused(f"the id of row {place} for collection {collection!r} holds a NUL character")
