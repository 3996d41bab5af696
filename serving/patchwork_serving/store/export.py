"""A user's vector store into Postgres: same ids, metadata, distance and order; once for the same content.

The rows are written to a table of their own, indexed, measured and compared with what was given, and only then take the place of the rows
that had the name before, in one transaction: searches in flight see the old collection or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import errors as pg
from psycopg import sql

from patchwork_adapters.errors import CodecError
from patchwork_adapters.operations import Distance, SearchRequest, StoredRow
from patchwork_serving.errors import StoreError, StoreRefused
from patchwork_serving.release import Collection
from patchwork_serving.store.checks import check_rows
from patchwork_serving.store.connect import Connection, connect, mapped, set_up
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import StoredCollection, document_of
from patchwork_serving.store.queries import OPERATOR_CLASSES, literal, query, rows_table
from patchwork_serving.store.recall import AT, CANDIDATES, Neighbours, choose, nearest, recall_of, sample_queries
from patchwork_serving.store.rows import row_values

__all__ = ["Parity", "Progress", "export_collection", "parity_of"]

FORMAT = b"patchwork rows 1"  #: changes when what is written for the same rows changes
MAX_INDEX_DIM = 4000  #: pgvector's limit for an index over half-precision vectors
MAX_HALF = 60_000.0  #: half precision ends at 65,504
WHOLE = 0.999  #: recall from which more candidates are not tried
PARITY_QUERIES = 20
EQUAL_SCORE = 1e-9
COPY_STEP = 1000  #: rows between two calls of ``progress``

#: Called as the work goes on: what is being done, how much of it is done, how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Parity:
    """Searches of an exported collection against the same searches over the rows in this process."""

    queries: int
    same_ids: int
    same_order: int
    largest_score_difference: float


@dataclass(frozen=True)  # no slots: what is measured against is computed once, and only if it is needed
class _Content:
    """What is exported, in the forms that the steps need."""

    rows: Sequence[StoredRow]
    documents: Sequence[bytes]
    vectors: NDArray[np.float32]
    dim: int
    distance: Distance

    @property
    def can_be_indexed(self) -> bool:
        """An index needs rows, leaves vectors of length zero out under cosine, and holds half-precision numbers."""
        has_zero = self.distance == "cosine" and bool((~self.vectors.any(axis=1)).any())
        fits = 0 < self.dim <= MAX_INDEX_DIM and float(np.abs(self.vectors).max(initial=0.0)) < MAX_HALF
        return len(self.rows) > 0 and fits and not has_zero

    @cached_property
    def queries(self) -> NDArray[np.float32]:
        return sample_queries(self.vectors)

    @cached_property
    def neighbours(self) -> list[Neighbours]:
        """True neighbours of the sampled queries."""
        return nearest(self.queries, self.vectors, self.distance, AT)

    def digest(self) -> str:
        hashed = hashlib.blake2b(FORMAT, digest_size=20)
        hashed.update(f"{self.dim} {self.distance} {len(self.rows)}".encode())
        for document in self.documents:
            hashed.update(len(document).to_bytes(8, "little") + document)
        hashed.update(self.vectors.tobytes())
        return hashed.hexdigest()


async def export_collection(
    store: PgVectorStore,
    name: str,
    rows: Sequence[StoredRow],
    dim: int,
    distance: Distance,
    *,
    leaf: str = "",
    recall_floor: float = 0.95,
    ef_search: int | None = None,
    progress: Progress = lambda *_: None,
) -> Collection:
    """Make the collection ``name`` hold exactly ``rows``, indexed, measured and checked.

    ``store`` must be open and migrated. Content that is there already (by hash) is neither written nor measured again. ``dim`` may be 0 for
    an empty store. Raises StoreRefused for rows that cannot be stored, StoreError when the exported rows do not answer as the given do.
    """
    content = _content(name, rows, dim, distance)
    digest = content.digest()
    async with _exporting(store, name) as connection:
        found = await store.collection(name)
        if found is not None and found.content_hash == digest:
            settled = await _settle(store, connection, found, content, recall_floor, ef_search, progress)
        else:
            fresh = await _load(connection, name, content, progress)
            settled = await _settle(store, connection, fresh, content, recall_floor, ef_search, progress)
            await _check_parity(store, settled, content, progress)
            await _switch(connection, found, settled, digest, len(rows))
        await store.collection(name)  # what this store remembers of the name is the old one
    return Collection(name, leaf, len(rows), dim, distance, settled.ef_search, settled.recall, settled.exact)


async def parity_of(
    store: PgVectorStore, collection: StoredCollection, rows: Sequence[StoredRow], count: int = PARITY_QUERIES
) -> Parity:
    """Compare ``count`` searches of a collection with exact ones over ``rows``, which must be those that were exported."""
    vectors = np.stack([row.vector for row in rows]).astype(np.float32)
    queries = sample_queries(vectors, count)
    found = await store.search_in(collection, [SearchRequest(collection.name, one, AT) for one in queries])
    same_ids = same_order = 0
    largest = 0.0
    for (places, true), hits in zip(nearest(queries, vectors, collection.distance, AT), found, strict=True):
        ids = [hit.to_hit().id for hit in hits]
        wanted = [rows[place].id for place in places]
        same_ids += set(ids) == set(wanted)
        same_order += ids == wanted
        if len(hits) != len(true):
            largest = float("inf")
        else:
            largest = max([largest, *(abs(hit.score - score) for hit, score in zip(hits, true, strict=True))])
    return Parity(len(queries), same_ids, same_order, largest)


def _content(name: str, rows: Sequence[StoredRow], dim: int, distance: Distance) -> _Content:
    check_rows(rows, dim, name)
    documents = []
    for place, row in enumerate(rows):
        try:
            documents.append(document_of(row))
        except CodecError as error:
            raise StoreRefused(
                f"row {place} for collection {name!r} has metadata that a database cannot hold exactly ({error}); "
                "use plain values in metadata"
            ) from error
    vectors = np.stack([row.vector for row in rows]) if rows else np.zeros((0, max(dim, 1)))
    return _Content(rows, documents, vectors.astype(np.float32), dim, distance)


@asynccontextmanager
async def _exporting(store: PgVectorStore, name: str) -> AsyncIterator[Connection]:
    """A connection that holds the name's lock: two processes that deploy the same chain export one after the other."""
    try:
        async with await connect(store.dsn()) as connection:
            await set_up(connection)
            await connection.execute(query("session_lock"), {"what": f"patchwork collection {name}"})
            yield connection
    except psycopg.Error as error:
        raise mapped(error, store.connections.where) from error


async def _load(connection: Connection, name: str, content: _Content, progress: Progress) -> StoredCollection:
    """Write and index the rows under a new number; what an earlier, interrupted export of the name left is deleted."""
    for (id_,) in await (await connection.execute(query("stale_collections"), {"name": name})).fetchall():
        await _delete(connection, id_)
    values = {"name": name, "dim": content.dim, "distance": content.distance}
    row = await (await connection.execute(query("insert_collection"), values)).fetchone()
    assert row is not None
    table = rows_table(row[0])
    async with connection.transaction():
        vector_type = sql.SQL("vector({})").format(literal(content.dim)) if content.dim else sql.SQL("vector")
        await connection.execute(query("create_rows", rows=table, vector_type=vector_type))
        await connection.execute(query("inline_rows", rows=table))
        await _copy(connection, table, content, progress)
        await connection.execute(query("key_rows", rows=table))
    if any(row.metadata for row in content.rows):
        await connection.execute(query("index_metadata", rows=table))
    if content.can_be_indexed:
        await _index(connection, table, content, progress)
    await connection.execute(query("analyze_rows", rows=table))
    return StoredCollection(
        row[0], name, content.dim, content.distance, None, len(content.rows), CANDIDATES[0], 1.0, True, {}
    )


async def _copy(connection: Connection, table: sql.Identifier, content: _Content, progress: Progress) -> None:
    async with connection.cursor() as cursor, cursor.copy(query("copy_rows", rows=table)) as copy:
        copy.set_types(["text", "text", "jsonb", "bytea", "vector"])
        for place, (row, document) in enumerate(zip(content.rows, content.documents, strict=True)):
            values = row_values(row, document)
            await copy.write_row([values[name] for name in ("id", "text", "metadata", "document", "embedding")])
            if place % COPY_STEP == 0:
                progress("writing rows", place, len(content.rows))
    progress("writing rows", len(content.rows), len(content.rows))


async def _index(connection: Connection, table: sql.Identifier, content: _Content, progress: Progress) -> None:
    """Build the HNSW index, in parallel if the server has the shared memory for that (a container's /dev/shm often has not)."""
    count = len(content.rows)
    progress("building the index", 0, count)
    needed = count * (2 * content.dim + 600) * 4 // 3  # half-precision numbers and links, and room
    memory = f"{min(max(needed >> 20, 64), 1024)}MB"
    parts = {"dim": literal(content.dim), "operator_class": sql.SQL(OPERATOR_CLASSES[content.distance])}
    text = query("index_embedding", rows=table, **parts)
    for workers in ("2", "0") if count > 10_000 else ("0",):
        try:
            async with connection.transaction():
                await connection.execute(query("build_memory"), {"memory": memory, "workers": workers})
                await connection.execute(text)
            break
        except (pg.DiskFull, pg.OutOfMemory):
            if workers == "0":
                raise
    progress("building the index", count, count)


async def _settle(
    store: PgVectorStore,
    connection: Connection,
    found: StoredCollection,
    content: _Content,
    floor: float,
    wanted_ef: int | None,
    progress: Progress,
) -> StoredCollection:
    """Measure what was not measured yet, choose how the collection is searched, and store the choice."""
    measured = dict(found.recall_by_ef)
    if content.can_be_indexed:
        for ef in CANDIDATES if wanted_ef is None else (wanted_ef,):
            if ef not in measured and max(measured.values(), default=0.0) < WHOLE:
                measured[ef] = await _recall(store, replace(found, ef_search=ef, exact=False), content, progress)
    if wanted_ef is not None and content.can_be_indexed and wanted_ef not in measured:
        measured[wanted_ef] = await _recall(store, replace(found, ef_search=wanted_ef, exact=False), content, progress)
    choice = choose(measured, floor, len(content.rows), wanted_ef)
    settled = replace(
        found, ef_search=choice.ef_search, recall=choice.recall, exact=choice.exact, recall_by_ef=measured
    )
    if settled != found:
        values = {"id": found.id, "ef_search": choice.ef_search, "recall": choice.recall, "exact": choice.exact}
        await connection.execute(query("set_search"), {**values, "recall_by_ef": json.dumps(measured)})
    return settled


async def _recall(store: PgVectorStore, collection: StoredCollection, content: _Content, progress: Progress) -> float:
    """Mean recall@10 of searches as they are served."""
    queries = content.queries
    step = f"measuring recall with {collection.ef_search} candidates"
    progress(step, 0, len(queries))
    found = await store.search_in(collection, [SearchRequest(collection.name, one, AT) for one in queries])
    recalls = [
        recall_of([hit.score for hit in hits], true.scores)
        for hits, true in zip(found, content.neighbours, strict=True)
    ]
    progress(step, len(queries), len(queries))
    return float(np.mean(recalls))


async def _check_parity(
    store: PgVectorStore, collection: StoredCollection, content: _Content, progress: Progress
) -> None:
    """A scan of the exported rows must score as the given rows do; anything else means that they are not the same rows."""
    if not content.rows:
        return
    progress("comparing with the original", 0, PARITY_QUERIES)
    parity = await parity_of(store, replace(collection, exact=True), content.rows)
    if parity.largest_score_difference > EQUAL_SCORE:
        raise StoreError(
            f"collection {collection.name!r} does not answer as the store it was exported from does "
            f"(scores differ by {parity.largest_score_difference:.1e}); export it again, and report this if it stays"
        )
    progress("comparing with the original", parity.same_order, parity.queries)


async def _switch(
    connection: Connection, old: StoredCollection | None, new: StoredCollection, digest: str, rows: int
) -> None:
    async with connection.transaction():
        if old is not None:
            await _delete(connection, old.id)
        await connection.execute(query("set_ready"), {"id": new.id, "content_hash": digest, "row_count": rows})


async def _delete(connection: Connection, id_: int) -> None:
    await connection.execute(query("drop_rows", rows=rows_table(id_)))
    await connection.execute(query("delete_collection"), {"id": id_})
