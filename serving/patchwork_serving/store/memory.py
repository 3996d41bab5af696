"""The in-memory twin of the Postgres store: the same answers from a dict, for tests and for comparing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters.operations import Distance, SearchRequest, StoredRow
from patchwork_serving.errors import StoreError, StoreTimeout, UnknownCollection
from patchwork_serving.store.checks import check_query, check_rows
from patchwork_serving.store.port import Found, Search, document_of
from patchwork_serving.store.scores import best_first, scores


@dataclass(slots=True)
class _Collection:
    distance: Distance
    rows: dict[str, StoredRow] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        return next((row.vector.shape[0] for row in self.rows.values()), 0)


class MemoryStore:
    """Implements ``VectorStore``; nothing is kept after the process."""

    def __init__(self) -> None:
        self._collections: dict[str, _Collection] = {}

    def create(self, name: str, rows: Sequence[StoredRow], distance: Distance) -> None:
        self._collections[name] = _Collection(distance, {row.id: row for row in rows})

    async def search(self, searches: Sequence[Search]) -> list[list[Found] | Exception]:
        return [self._try_search(search) for search in searches]

    async def get(self, collection: str, ids: Sequence[str], timeout_s: float | None = None) -> list[Found]:
        rows = self._find(collection).rows
        return [_found(rows[id_], 0.0, with_vector=True) for id_ in ids if id_ in rows]

    async def add(self, collection: str, rows: Sequence[StoredRow], timeout_s: float | None = None) -> int:
        found = self._find(collection)
        check_rows(rows, found.dim, collection)
        found.rows.update({row.id: row for row in rows})
        return len(rows)

    async def delete(self, collection: str, ids: Sequence[str] | None, timeout_s: float | None = None) -> int:
        rows = self._find(collection).rows
        return sum(rows.pop(id_, None) is not None for id_ in set(rows if ids is None else ids))

    def _find(self, name: str) -> _Collection:
        try:
            return self._collections[name]
        except KeyError:
            raise UnknownCollection(f"there is no collection {name!r}; deploy the application again") from None

    def _try_search(self, search: Search) -> list[Found] | Exception:
        try:
            if search.timeout_s is not None and search.timeout_s <= 0:
                raise StoreTimeout(f"no time was left to search {search.request.collection!r}")
            return self._search(search.request)
        except StoreError as error:
            return error

    def _search(self, request: SearchRequest) -> list[Found]:
        collection = self._find(request.collection)
        check_query(request, collection.dim)
        rows = [row for row in collection.rows.values() if _matches(row, request)]
        if not rows or request.k <= 0:
            return []
        found = scores(request.vector, _matrix(rows), collection.distance)
        order = best_first(found, np.arange(len(rows)))[: request.k]
        return [_found(rows[i], float(found[i]), with_vector=request.with_vectors) for i in order]


def _matrix(rows: Sequence[StoredRow]) -> NDArray[np.float32]:
    return np.stack([row.vector for row in rows])


def _matches(row: StoredRow, request: SearchRequest) -> bool:
    missing: Any = object()
    is_wanted = request.ids is None or row.id in request.ids
    return is_wanted and all(row.metadata.get(key, missing) == value for key, value in request.where.items())


def _found(row: StoredRow, score: float, *, with_vector: bool) -> Found:
    return Found(document_of(row), score, row.vector if with_vector else None)
