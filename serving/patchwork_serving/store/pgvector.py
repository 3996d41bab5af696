"""Collections of vectors in Postgres with pgvector.

A batch of searches is cut into as many parts as the pool has connections; each part goes out in one pipeline, so that neither side
waits for the other between searches. One search that fails takes its pipeline with it, so then the part runs again one by one and only
that search fails. Searches change nothing, which makes running them again safe.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psycopg

from patchwork_adapters.operations import SearchRequest, StoredRow
from patchwork_serving.errors import (
    ConnectionLost,
    ServingError,
    StoreError,
    StoreTimeout,
    StoreUnreachable,
    UnknownCollection,
)
from patchwork_serving.store.checks import check_query, check_rows
from patchwork_serving.store.connect import (
    Connection,
    Connections,
    Dsn,
    ServerFacts,
    check_server,
    mapped,
)
from patchwork_serving.store.port import Found, Search, StoredCollection, document_of
from patchwork_serving.store.queries import migrations, query, rows_table
from patchwork_serving.store.rows import Row, rank, row_values, storable, vector_of
from patchwork_serving.store.statements import MAX_LIMIT, Settings, is_exact, milliseconds, settings_for, statement

DEFAULT_TIMEOUT_S = 30.0
MIN_PART = 8  #: searches that are worth a connection of their own
MARGIN = 2  #: rows fetched beyond ``k``, to see whether the k-th is alone with its score

T = TypeVar("T")


class _Planned(NamedTuple):
    """A search and how its first statement runs."""

    search: Search
    collection: StoredCollection
    limit: int
    exact: bool

    @classmethod
    def of(cls, search: Search, collection: StoredCollection) -> _Planned:
        limit = search.request.k + MARGIN
        return cls(search, collection, limit, is_exact(search.request, collection, limit))


class PgVectorStore:
    """Implements ``VectorStore`` with one pool. ``async with`` opens and closes it.

    ``dsn`` may be a callable, asked again for every new connection. ``pool_size``: connections, which is also how many parts a batch of
    searches is cut into.
    """

    def __init__(self, dsn: Dsn, *, pool_size: int = 4, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._dsn = dsn
        self.connections = Connections(dsn, pool_size)
        self._timeout_s = timeout_s
        self._known: dict[str, StoredCollection] = {}

    async def __aenter__(self) -> PgVectorStore:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def dsn(self) -> str:
        return self._dsn if isinstance(self._dsn, str) else self._dsn()

    async def open(self) -> ServerFacts:
        """Connect; raises StoreUnreachable or StoreWithoutPgvector."""
        return await self.connections.open()

    async def close(self) -> None:
        await self.connections.close()

    async def migrate(self) -> ServerFacts:
        """Make the schema and what later versions added to it; several processes may do so at once."""
        facts = await check_server(self.dsn())
        try:
            async with await psycopg.AsyncConnection.connect(self.dsn()) as connection, connection.transaction():
                await connection.execute(query("lock"), {"what": "patchwork migrations"})
                await connection.execute(query("migrations_table"))
                done = {row[0] for row in await (await connection.execute(query("applied_migrations"))).fetchall()}
                for number, text in migrations():
                    if number not in done:
                        await connection.execute(text)
                        await connection.execute(query("note_migration"), {"number": number})
        except psycopg.Error as error:
            raise mapped(error, facts.where) from error
        return facts

    # -- the port ------------------------------------------------------------------------------------------------------------------

    async def search(self, searches: Sequence[Search]) -> list[list[Found] | Exception]:
        answers: list[list[Found] | Exception] = [[] for _ in searches]
        known = await self._collections_of(searches)
        ready: list[tuple[int, _Planned]] = []
        for place, search in enumerate(searches):
            collection = known[search.request.collection]
            if isinstance(collection, Exception):
                answers[place] = collection
            elif (refusal := _refusal(search, collection)) is not None:
                answers[place] = refusal
            elif search.request.k > 0:
                ready.append((place, _Planned.of(search, collection)))
        ready.sort(
            key=lambda item: self._seconds(item[1].search.timeout_s)
        )  # like deadlines share a part and its timeout
        found = await self._in_parts([planned for _, planned in ready])
        for (place, _), answer in zip(ready, found, strict=True):
            answers[place] = answer
        return answers

    async def get(self, collection: str, ids: Sequence[str], timeout_s: float | None = None) -> list[Found]:
        async def work(connection: Connection, found: StoredCollection) -> list[Found]:
            text = query("get", rows=rows_table(found.id))
            rows = await self._fetch(connection, text, {"ids": storable(ids)}, timeout_s)
            return [Found(document, 0.0, vector_of(data)) for _, document, data in rows]

        return await self._with_collection(collection, timeout_s, work)

    async def add(self, collection: str, rows: Sequence[StoredRow], timeout_s: float | None = None) -> int:
        async def work(connection: Connection, found: StoredCollection) -> int:
            check_rows(rows, found.dim, collection)
            values = [_upsert_values(row) for row in rows]
            async with connection.transaction(), connection.cursor() as cursor:
                await self._limit(connection, timeout_s)
                await connection.execute(query("note_change"), {"id": found.id})
                await cursor.executemany(query("upsert", rows=rows_table(found.id)), values)
            return len(values)

        return await self._with_collection(collection, timeout_s, work)

    async def delete(self, collection: str, ids: Sequence[str] | None, timeout_s: float | None = None) -> int:
        async def work(connection: Connection, found: StoredCollection) -> int:
            async with connection.transaction():
                await self._limit(connection, timeout_s)
                await connection.execute(query("note_change"), {"id": found.id})
                text = query("delete_all" if ids is None else "delete", rows=rows_table(found.id))
                return (await connection.execute(text, {"ids": storable(ids or ())})).rowcount

        return await self._with_collection(collection, timeout_s, work)

    async def collection(self, name: str) -> StoredCollection | None:
        """What the database knows of a collection; None when it has none of that name. Never from memory."""

        async def work(connection: Connection) -> StoredCollection | None:
            row = await (await connection.execute(query("find_collection"), {"name": name})).fetchone()
            if row is None:
                return None
            id_, dim, distance, content_hash, rows, ef_search, recall, exact, by_ef = row
            recalls = {int(ef): value for ef, value in by_ef.items()}
            return StoredCollection(id_, name, dim, distance, content_hash, rows, ef_search, recall, exact, recalls)

        found = await self._attempt(work, None)
        if found is None:
            self._known.pop(name, None)
        else:
            self._known[name] = found
        return found

    async def search_in(self, collection: StoredCollection, requests: Sequence[SearchRequest]) -> list[list[Found]]:
        """Search a collection as given, which may have other settings than the stored ones or not be ready yet; raises what went wrong."""
        size = self.connections.size * MIN_PART
        found: list[list[Found]] = []
        for start in range(0, len(requests), size):
            ready = [_Planned.of(Search(request), collection) for request in requests[start : start + size]]
            for answer in await self._in_parts(ready):
                if isinstance(answer, Exception):
                    raise answer
                found.append(answer)
        return found

    # -- searching -----------------------------------------------------------------------------------------------------------------

    async def _collections_of(self, searches: Sequence[Search]) -> dict[str, StoredCollection | Exception]:
        found: dict[str, StoredCollection | Exception] = {}
        for name in {search.request.collection for search in searches}:
            try:
                found[name] = await self._known_collection(name)
            except ServingError as error:
                found[name] = error
        return found

    async def _in_parts(self, searches: Sequence[_Planned]) -> list[list[Found] | Exception]:
        """Searches over as many connections as are worth it; answers in order."""
        count = max(1, min(self.connections.size, len(searches) // MIN_PART))
        parts = [part for part in np.array_split(np.arange(len(searches)), count) if len(part)]
        done = await asyncio.gather(*(self._part([searches[i] for i in part]) for part in parts))
        return [answer for part in done for answer in part]

    async def _part(self, searches: Sequence[_Planned]) -> list[list[Found] | Exception]:
        """Searches that share a connection, all in one pipeline; one by one if that fails."""
        timeout_s = max(self._seconds(planned.search.timeout_s) for planned in searches)

        async def work(connection: Connection) -> list[list[Row]]:
            return await self._pipelined(connection, searches)

        try:
            fetched = await self._attempt(work, timeout_s)
        except StoreUnreachable as error:
            return [error for _ in searches]
        except ServingError as error:
            if len(searches) > 1:
                return [(await self._part([planned]))[0] for planned in searches]
            return [await self._again(searches[0]) if isinstance(error, UnknownCollection) else error]
        return [await self._finish(planned, rows) for planned, rows in zip(searches, fetched, strict=True)]

    async def _pipelined(self, connection: Connection, searches: Sequence[_Planned]) -> list[list[Row]]:
        cursors = []
        settings: Settings | None = None
        async with connection.pipeline():
            for search, collection, limit, exact in searches:
                wanted = settings_for(self._seconds(search.timeout_s), collection, settings)
                if wanted != settings:
                    settings = wanted
                    await connection.execute(query("settings"), wanted.values())
                text, values = statement(search.request, collection, limit, exact=exact)
                cursor = connection.cursor(binary=True)
                await cursor.execute(text, values, prepare=True)
                cursors.append(cursor)
        return [await cursor.fetchall() for cursor in cursors]

    async def _finish(self, planned: _Planned, rows: list[Row]) -> list[Found] | Exception:
        """Rank what came back, asking for more while rows beyond the last may belong before it."""
        (request, timeout_s), collection, limit, exact = planned
        while True:
            ranking = rank(rows, request, collection, half=not exact)
            if not exact and len(rows) < request.k:
                exact = True  # the walk through the index ended early, among filtered or deleted rows
            elif len(rows) == limit and ranking.is_cut_in_a_tie:
                limit *= 4
                exact = exact or limit > MAX_LIMIT
            else:
                return ranking.found
            try:
                rows = await self._single(request, collection, limit, exact, timeout_s)
            except ServingError as error:
                return error

    async def _single(
        self, request: SearchRequest, collection: StoredCollection, limit: int, exact: bool, timeout_s: float | None
    ) -> list[Row]:
        async def work(connection: Connection) -> list[Row]:
            text, values = statement(request, collection, limit, exact=exact)
            return await self._fetch(connection, text, values, timeout_s, ef_search=collection.ef_search)

        return await self._attempt(work, timeout_s)

    async def _again(self, planned: _Planned) -> list[Found] | Exception:
        """The collection's table is gone: a new export replaced it, so look it up anew."""
        search, old = planned.search, planned.collection
        self._known.pop(old.name, None)
        try:
            fresh = await self._known_collection(old.name)
            if fresh.id == old.id:
                return UnknownCollection(f"collection {old.name!r} lost its rows; deploy the application again")
            again = _Planned.of(search, fresh)
            rows = await self._single(search.request, fresh, again.limit, again.exact, search.timeout_s)
        except ServingError as error:
            return error
        return await self._finish(again, rows)

    # -- running -------------------------------------------------------------------------------------------------------------------

    def _seconds(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    async def _known_collection(self, name: str) -> StoredCollection:
        found = self._known.get(name) or await self.collection(name)
        if found is None:
            raise UnknownCollection(f"the database has no collection {name!r}; deploy the application again")
        return found

    async def _with_collection(
        self, name: str, timeout_s: float | None, work: Callable[[Connection, StoredCollection], Awaitable[T]]
    ) -> T:
        """Run ``work`` on a collection's table; once more when a new export replaced the table meanwhile."""
        found = await self._known_collection(name)
        try:
            return await self._attempt(lambda connection: work(connection, found), timeout_s)
        except UnknownCollection:
            self._known.pop(name, None)
            fresh = await self._known_collection(name)
            if fresh.id == found.id:
                raise
            return await self._attempt(lambda connection: work(connection, fresh), timeout_s)

    async def _attempt(self, work: Callable[[Connection], Awaitable[T]], timeout_s: float | None) -> T:
        """Run ``work`` on a connection; on another when the first turns out to be broken.

        After a restart of the server every idle connection is broken, and each use throws one away, so the try after as many as the pool
        holds is on a fresh one.
        """
        seconds = self._seconds(timeout_s)
        if seconds <= 0:
            raise StoreTimeout("no time was left for the database")
        for _ in range(self.connections.size):
            try:
                async with self.connections.borrow(seconds) as connection:
                    return await work(connection)
            except ConnectionLost:
                continue
        async with self.connections.borrow(seconds) as connection:
            return await work(connection)

    async def _fetch(
        self, connection: Connection, text: bytes, values: dict[str, Any], timeout_s: float | None, ef_search: int = 40
    ) -> list[Row]:
        async with connection.transaction(), connection.cursor(binary=True) as cursor:
            settings = Settings(ef_search, milliseconds(self._seconds(timeout_s)))
            await connection.execute(query("settings"), settings.values())
            await cursor.execute(text, values)
            return await cursor.fetchall()

    async def _limit(self, connection: Connection, timeout_s: float | None) -> None:
        await connection.execute(query("timeout"), {"timeout_ms": str(milliseconds(self._seconds(timeout_s)))})


def _refusal(search: Search, collection: StoredCollection) -> Exception | None:
    if search.timeout_s is not None and search.timeout_s <= 0:
        return StoreTimeout(f"no time was left to search {collection.name!r}")
    try:
        check_query(search.request, collection.dim)
    except StoreError as error:
        return error
    return None


def _upsert_values(row: StoredRow) -> dict[str, Any]:
    values = row_values(row, document_of(row))
    return {**values, "metadata": json.dumps(values["metadata"])}
