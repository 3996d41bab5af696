"""Searches of a user's vector store, answered by Postgres; concurrent ones share pipelines (``store.pgvector``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_adapters.operations import SearchRequest, StoredRow
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.errors import EngineRefused, ServingError, UnknownCollection
from patchwork_serving.release import Collection
from patchwork_serving.store.connect import Dsn
from patchwork_serving.store.documents import encode_hits
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import Search, VectorStore

Reply = bytes | Exception


class RetrieverEngine:
    """A batch engine for the operations ``search get add delete`` of ``patchwork_adapters.operations``.

    ``dsn_provider``: connection string, or a callable asked for it at every new connection. ``collections``: those of the release; they
    must be in the database when the engine starts. ``pool_size``: connections of this replica.
    """

    def __init__(
        self,
        dsn_provider: Dsn,
        collections: Mapping[str, Collection],
        pool_size: int = 4,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = PgVectorStore(dsn_provider, pool_size=pool_size)
        self._collections = dict(collections)
        self._pool_size = pool_size
        self._clock = clock
        self._facts: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Connect and look every collection up; raises StoreError with the remedy."""
        facts = await self._store.open()
        self._facts = {"database": facts.where, "postgres": facts.postgres, "pgvector": facts.pgvector}
        for name in self._collections:
            if await self._store.collection(name) is None:
                raise UnknownCollection(
                    f"the database {facts.where} has no collection {name!r}; deploy the application again"
                )
            await self._store.get(name, ["-"])  # a real statement on its rows; an unknown id finds none

    async def close(self) -> None:
        await self._store.close()

    def describe(self) -> Mapping[str, Any]:
        collections = {
            name: {
                "rows": held.rows,
                "dim": held.dim,
                "distance": held.distance,
                "search": "exact" if held.exact else f"hnsw, ef_search {held.ef_search}, recall@10 {held.recall:.3f}",
            }
            for name, held in self._collections.items()
        }
        return {**self._facts, "connections": self._pool_size, "collections": collections}

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[Reply]:
        """One reply per call, in order. Cancelling cancels the statements in the server."""
        return await run_calls(self._store, batch, self._clock())


async def run_calls(store: VectorStore, batch: Sequence[EngineCall], now: float) -> list[Reply]:
    """Carry out calls on any store: all searches together, the other operations each on its own."""
    replies: dict[int, Reply] = {}
    searches: dict[int, Search] = {}
    others: dict[int, Awaitable[Reply]] = {}
    for place, call in enumerate(batch):
        timeout_s = None if call.deadline is None else call.deadline - now
        try:
            arguments = codec.decode(call.payload)
            if call.method == "search":
                searches[place] = Search(_request(arguments), timeout_s)
            else:
                others[place] = _operate(store, call.method, arguments, timeout_s)
        except (CodecError, KeyError, TypeError) as error:
            replies[place] = EngineRefused(
                f"the arguments of {call.method!r} cannot be read ({type(error).__name__}); deploy all parts in one version"
            )
    found, done = await asyncio.gather(_search(store, list(searches.values())), _all(others.values()))
    replies.update(zip(searches, found, strict=True))
    replies.update(zip(others, done, strict=True))
    return [replies[place] for place in range(len(batch))]


async def _search(store: VectorStore, searches: Sequence[Search]) -> list[Reply]:
    answers = await store.search(searches) if searches else []
    return [answer if isinstance(answer, Exception) else encode_hits(answer) for answer in answers]


async def _all(operations: Iterable[Awaitable[Reply]]) -> list[Reply]:
    return list(await asyncio.gather(*operations))


async def _operate(store: VectorStore, method: str, arguments: Mapping[str, Any], timeout_s: float | None) -> Reply:
    try:
        match method:
            case "get":
                return encode_hits(await store.get(arguments["collection"], arguments["ids"], timeout_s))
            case "add":
                rows = [row if isinstance(row, StoredRow) else StoredRow(**row) for row in arguments["rows"]]
                return codec.encode_outcome(await store.add(arguments["collection"], rows, timeout_s))
            case "delete":
                return codec.encode_outcome(await store.delete(arguments["collection"], arguments["ids"], timeout_s))
    except ServingError as error:
        return error
    except (KeyError, TypeError) as error:
        return EngineRefused(f"the arguments of {method!r} are not those it takes ({type(error).__name__})")
    return EngineRefused(f"a vector store has no operation {method!r}; it has search, get, add and delete")


def _request(arguments: Mapping[str, Any]) -> SearchRequest:
    ids = arguments.get("ids")
    return SearchRequest(**{**arguments, "ids": None if ids is None else tuple(ids)})
