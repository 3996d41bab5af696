"""What the retriever asks of a vector store. Postgres and the in-memory twin are held to it by one suite, ``tests/contracts``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters import codec
from patchwork_adapters.operations import Hit, SearchRequest, StoredRow


@dataclass(frozen=True, slots=True)
class Found:
    """A stored row that matched. It stays encoded: most rows go straight on to another process."""

    document: bytes  #: ``codec.encode`` of {"id", "text", "metadata"}
    score: float  #: as in ``Hit``; 0 where nothing was compared
    vector: NDArray[np.float32] | None = None

    def to_hit(self) -> Hit:
        return Hit(**codec.decode(self.document), score=self.score, vector=self.vector)


class Search(NamedTuple):
    request: SearchRequest
    timeout_s: float | None = None  #: seconds left for it; None: the store's own limit


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """A collection as the database describes it."""

    id: int
    name: str
    dim: int
    distance: str
    content_hash: str | None
    rows: int
    ef_search: int
    recall: float
    exact: bool
    recall_by_ef: dict[int, float]


class VectorStore(Protocol):
    """Collections of rows by name. Unknown names raise UnknownCollection, unusable vectors StoreRefused, late answers StoreTimeout."""

    async def search(self, searches: Sequence[Search]) -> list[list[Found] | Exception]:
        """The ``k`` nearest rows for each search, best first and equal scores in order of insertion; a search that fails alone is an
        exception in its place."""
        ...

    async def get(self, collection: str, ids: Sequence[str], timeout_s: float | None = None) -> list[Found]:
        """Rows in the order asked for; unknown ids are left out."""
        ...

    async def add(self, collection: str, rows: Sequence[StoredRow], timeout_s: float | None = None) -> int:
        """Write rows, replacing those with the same id in their place; all or none. Returns how many."""
        ...

    async def delete(self, collection: str, ids: Sequence[str] | None, timeout_s: float | None = None) -> int:
        """Delete these rows, or all with ``None``; returns how many there were."""
        ...


def document_of(row: StoredRow) -> bytes:
    """A row's exact content. CodecError for metadata that only pickle could carry: the database is not the place for code."""
    return codec.encode({"id": row.id, "text": row.text, "metadata": row.metadata}, allow_pickle=False)
