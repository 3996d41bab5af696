"""Which statement carries out a search, with which settings."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from psycopg import sql

from patchwork_adapters.operations import SearchRequest
from patchwork_serving.store.documents import filter_form
from patchwork_serving.store.port import StoredCollection
from patchwork_serving.store.queries import OPERATORS, literal, queries, query, rows_table
from patchwork_serving.store.rows import storable

MAX_EF = 1000  #: pgvector's limit
MAX_LIMIT = 1000  #: above this the index would be walked almost whole


class Settings(NamedTuple):
    """Of a transaction."""

    ef_search: int
    timeout_ms: int

    def values(self) -> dict[str, str]:
        return {"ef_search": str(self.ef_search), "timeout_ms": str(self.timeout_ms)}


class Statement(NamedTuple):
    text: bytes
    values: dict[str, Any]


def statement(request: SearchRequest, collection: StoredCollection, limit: int, *, exact: bool) -> Statement:
    values: dict[str, Any] = {"vector": np.asarray(request.vector, dtype=np.float32)}
    shape = "filter" if request.ids is not None or request.where else "no_filter"
    if request.ids is not None:
        shape += "_ids"
        values["ids"] = storable(request.ids)
    if request.where:
        shape += "_where"
        values["where"] = json.dumps(filter_form(request.where))
    return Statement(_text(collection.id, collection.dim, collection.distance, shape, exact, limit), values)


def is_exact(request: SearchRequest, collection: StoredCollection, limit: int) -> bool:
    """Whether to scan: the index was not good enough, the ids are given, the limit is beyond it, or the query has no direction."""
    if collection.exact or request.ids is not None or limit > MAX_LIMIT:
        return True
    return collection.distance == "cosine" and not request.vector.any()


def settings_for(timeout_s: float, collection: StoredCollection, current: Settings | None) -> Settings:
    """(ef_search, statement timeout in ms); the current ones where they fit: a timeout shorter by less than a tenth is not changed."""
    timeout_ms = milliseconds(timeout_s)
    ef_search = min(collection.ef_search, MAX_EF)
    if current is not None and current[0] == ef_search and 0.9 * timeout_ms <= current[1] <= timeout_ms:
        return current
    return Settings(ef_search, timeout_ms)


def milliseconds(seconds: float) -> int:
    """For ``statement_timeout``, where 0 would mean none."""
    return max(1, int(seconds * 1000))


@lru_cache(maxsize=1024)
def _text(id_: int, dim: int, distance: str, shape: str, exact: bool, limit: int) -> bytes:
    operator = sql.SQL(OPERATORS[distance])
    parts: dict[str, sql.Composable] = {
        "rows": rows_table(id_),
        "filter": queries()[shape],
        "limit": literal(limit),
    }
    if exact:
        order = queries()["order_cosine" if distance == "cosine" else "order_plain"]
        return query("search_exact", order=order.format(operator=operator), **parts)
    return query("search_index", dim=literal(dim), operator=operator, **parts)
