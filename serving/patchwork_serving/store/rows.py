"""Rows to and from Postgres, and the ranking of those that a search brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters.operations import SearchRequest, StoredRow
from patchwork_serving.store.documents import filter_form, searchable
from patchwork_serving.store.port import Found, StoredCollection
from patchwork_serving.store.scores import scores, tolerance

Row = tuple[int, bytes, bytes]  #: seq, document, vector as pgvector sends it


def row_values(row: StoredRow, document: bytes) -> dict[str, Any]:
    """A row's columns; ``metadata`` as a value for ``jsonb``."""
    return {
        "id": row.id,
        "text": searchable(row.text),
        "metadata": filter_form(row.metadata),
        "document": document,
        "embedding": np.asarray(row.vector, dtype=np.float32),
    }


def storable(ids: Sequence[str]) -> list[str]:
    """Ids that a text column can hold; no row has the others."""
    return [id_ for id_ in ids if "\0" not in id_]


def vector_of(data: bytes) -> NDArray[np.float32]:
    """A vector as pgvector sends it: two 16-bit numbers (dimension, unused), then big-endian floats."""
    return np.frombuffer(data, dtype=">f4")[1:].astype(np.float32)


def matrix(rows: Sequence[Row]) -> NDArray[np.float64]:
    """The vectors of all rows (n, dim), exactly as stored."""
    numbers = np.frombuffer(b"".join([row[2] for row in rows]), dtype=">f4")
    return numbers.reshape(len(rows), -1)[:, 1:].astype(np.float64)


class Ranking(NamedTuple):
    found: list[Found]
    is_cut_in_a_tie: bool  #: the last row fetched is as near as the k-th, as far as the database can tell: others may belong before it


def rank(rows: Sequence[Row], request: SearchRequest, collection: StoredCollection, *, half: bool) -> Ranking:
    """The ``k`` best of the rows fetched, scored in double precision. ``half``: the index found them, in half precision."""
    if not rows:
        return Ranking([], False)
    vectors = matrix(rows)
    found = scores(request.vector, vectors, collection.distance).tolist()
    order = sorted(range(len(rows)), key=lambda i: (-found[i], rows[i][0]))
    last = order[min(request.k, len(rows)) - 1]
    slack = tolerance(request.vector, vectors, collection.distance, half=half)
    hits = [
        Found(rows[i][1], found[i], vectors[i].astype(np.float32) if request.with_vectors else None)
        for i in order[: request.k]
    ]
    return Ranking(hits, found[last] - found[order[-1]] <= slack)
