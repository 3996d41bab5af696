"""Rows of the frameworks' in-memory stores, taken by shape: neither framework is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchwork_adapters.operations import Distance, StoredRow
from patchwork_serving.errors import StoreRefused
from patchwork_serving.store.checks import check_rows


@dataclass(frozen=True, slots=True)
class ExtractedRows:
    """What a user's store holds, in order of insertion."""

    rows: tuple[StoredRow, ...]
    dim: int  #: 0 for an empty store
    distance: Distance


def rows_of(store: Any) -> ExtractedRows:
    """Rows of a LangChain ``InMemoryVectorStore`` or a LlamaIndex ``SimpleVectorStore``; StoreRefused for anything else.

    LlamaIndex keeps texts in its docstore, which stays in the user's process: the text of its rows is empty.
    """
    if isinstance(getattr(store, "store", None), dict):
        rows = tuple(_langchain_rows(store.store))
    elif isinstance(getattr(getattr(store, "data", None), "embedding_dict", None), dict):
        rows = tuple(_llamaindex_rows(store.data))
    else:
        raise StoreRefused(f"rows of a {type(store).__name__} cannot be read; it stays where it is")
    dim = int(rows[0].vector.shape[0]) if rows else 0
    check_rows(rows, dim, type(store).__name__)
    return ExtractedRows(rows, dim, "cosine")  # both frameworks compare by cosine and have no other setting


def _langchain_rows(held: dict[str, dict[str, Any]]) -> Iterator[StoredRow]:
    for id_, row in list(held.items()):
        yield StoredRow(id_, row["text"], dict(row["metadata"]), np.asarray(row["vector"], dtype=np.float32))


def _llamaindex_rows(data: Any) -> Iterator[StoredRow]:
    metadata = data.metadata_dict or {}  # stores persisted by old versions have none
    for id_, vector in list(data.embedding_dict.items()):
        yield StoredRow(id_, "", dict(metadata.get(id_) or {}), np.asarray(vector, dtype=np.float32))
