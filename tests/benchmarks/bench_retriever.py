"""The retriever component against one-by-one psycopg: 32 concurrent searches over 50,000 vectors of 384 dimensions, same pool size.

    python tests/benchmarks/bench_retriever.py [-o out.json] [--rows 50000] [--searches 4096] [--rounds 5]

Both sides run in turns in one process against one embedded Postgres, on the same table with the same index and the same ``ef_search``; the
median over the rounds counts. The component does all of its work, from the encoded call to the encoded reply, with settings and deadline
per search and scores computed again in double precision; it gets its calls as its host hands them over, a batch for each connection that is
free. The other side comes in two strengths:

``settings``   a SELECT in a transaction that sets ``ef_search``, iterative scan and ``statement_timeout`` first: the same promises as the
               component's, one by one.
``plain``      the bare SELECT, ``ef_search`` set once per connection, no deadline: the least that one-by-one psycopg can do.

CPU milliseconds per search are counted too (this process and the server's): on a busy machine they tell more than the rates do.

Vectors are synthetic and structured: topics, subtopics and passages with a falling spectrum, as sentence embeddings have; queries are
disturbed passages. Recall is measured against an exact search by numpy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool

from patchwork_adapters import codec
from patchwork_adapters.operations import SearchRequest, StoredRow
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.retriever import RetrieverEngine
from patchwork_serving.store.embedded import EmbeddedPostgres
from patchwork_serving.store.export import export_collection
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import StoredCollection
from patchwork_serving.store.recall import nearest, recall_of

DIM, K, CONCURRENT, POOL = 384, 10, 32, 4
DEADLINE_S = 5.0
NAME = "bench"
TEXT = "The with statement is used to wrap the execution of a block with methods defined by a context manager. " * 4

Side = Callable[[int], Awaitable[None]]


def vectors(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors (count, DIM): 200 topics, 4,000 subtopics, then the passage itself."""
    spectrum = (1.0 / np.sqrt(1.0 + np.arange(DIM) / 16.0)).astype(np.float32)
    topics, subtopics = rng.standard_normal((200, DIM)), rng.standard_normal((4000, DIM))
    made = topics[rng.integers(0, 200, count)] + 0.8 * subtopics[rng.integers(0, 4000, count)]
    return unit((made + 0.9 * rng.standard_normal((count, DIM))) * spectrum)


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def queries_near(stored: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    noise = rng.standard_normal((count, DIM)) / np.sqrt(DIM)
    return unit(stored[rng.integers(0, len(stored), count)] + 0.5 * noise)


class OneByOne:
    """Plain psycopg: a connection of the pool for each search, one statement at a time."""

    def __init__(self, dsn: str, table: str, dim: int, ef_search: int) -> None:
        self._ef_search = ef_search
        order = sql.SQL("(embedding::halfvec({dim})) <=> %s::halfvec({dim})").format(dim=dim)
        self._text = sql.SQL(
            "SELECT id, text, metadata, 1 - ({order}) AS score FROM {table} ORDER BY {order} LIMIT {k}"
        ).format(order=order, table=sql.Identifier("patchwork", table), k=K)
        self._pool = AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, open=False, configure=self._configure)

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)
        await register_vector_async(connection)
        await connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(self._ef_search)])

    async def __aenter__(self) -> OneByOne:
        await self._pool.open(wait=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def plain(self, query: NDArray[np.float32]) -> list[dict[str, Any]]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(self._text, (query, query))
            return _hits(await cursor.fetchall())

    async def settings(self, query: NDArray[np.float32]) -> list[dict[str, Any]]:
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(
                "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'strict_order', true), "
                "set_config('statement_timeout', %s, true)",
                (str(self._ef_search), str(int(DEADLINE_S * 1000))),
            )
            cursor = await connection.execute(self._text, (query, query))
            return _hits(await cursor.fetchall())


def _hits(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [{"id": id_, "text": text, "metadata": metadata, "score": score} for id_, text, metadata, score in rows]


def concurrently(search: Callable[[NDArray[np.float32]], Awaitable[Any]], queries: NDArray[np.float32]) -> Side:
    """``CONCURRENT`` clients, each with one search in flight."""

    async def run(searches: int) -> None:
        turns = iter(range(searches))

        async def client() -> None:
            for turn in turns:
                await search(queries[turn % len(queries)])

        await asyncio.gather(*(client() for _ in range(CONCURRENT)))

    return run


def in_batches(engine: RetrieverEngine, queries: NDArray[np.float32]) -> Side:
    """The component with ``CONCURRENT`` calls in it at any time, in as many batches as it has connections."""
    payloads = [codec.encode(SearchRequest(NAME, query, K).to_dict()) for query in queries]
    size = CONCURRENT // POOL

    async def run(searches: int) -> None:
        starts = iter(range(0, searches, size))

        async def connection() -> None:
            for start in starts:
                deadline = time.monotonic() + DEADLINE_S
                turns = range(start, start + size)
                batch = [
                    EngineCall(str(t), NAME, "search", payloads[t % len(payloads)], deadline=deadline) for t in turns
                ]
                for reply in await engine.run(batch):
                    if isinstance(reply, Exception):
                        raise reply

        await asyncio.gather(*(connection() for _ in range(POOL)))

    return run


async def measure(dsn: str, num_rows: int, searches: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    stored = vectors(num_rows, rng)
    queries = queries_near(stored, 500, rng)
    rows = [
        StoredRow(f"id-{i}", TEXT, {"source": f"{i % 80}.rst", "start_index": i}, stored[i]) for i in range(num_rows)
    ]
    async with PgVectorStore(dsn, pool_size=POOL) as store:
        await store.migrate()
        began = time.perf_counter()
        collection = await export_collection(store, NAME, rows, DIM, "cosine")
        export_s = time.perf_counter() - began
        found = await store.collection(NAME)
        assert found is not None
    engine = RetrieverEngine(dsn, {NAME: collection}, pool_size=POOL)
    await engine.start()
    try:
        recall = await component_recall(engine, queries, stored)
        spent = await in_turns(dsn, engine, found, queries, searches, rounds)
    finally:
        await engine.close()
    rates = {side: searches / statistics.median(one.wall_s for one in rounds_) for side, rounds_ in spent.items()}
    cpu = {side: statistics.median(one.cpu_s for one in rounds_) / searches * 1000 for side, rounds_ in spent.items()}
    return {
        "rows": num_rows,
        "dim": DIM,
        "k": K,
        "concurrent": CONCURRENT,
        "connections": POOL,
        "searches_per_round": searches,
        "rounds": rounds,
        "vectors": "synthetic: 200 topics, 4,000 subtopics, falling spectrum; queries are disturbed rows",
        "ef_search": found.ef_search,
        "recall_at_10": recall,
        "recall_at_10_at_export": collection.recall,
        "export_s": round(export_s, 1),
        "searches_per_s": {side: round(rate, 1) for side, rate in rates.items()},
        "cpu_ms_per_search": {side: round(spent_ms, 3) for side, spent_ms in cpu.items()},
        "ratio_to_settings": round(rates["component"] / rates["settings"], 2),
        "ratio_to_plain": round(rates["component"] / rates["plain"], 2),
        "cpu_ratio_to_settings": round(cpu["settings"] / cpu["component"], 2),
        "cpu_ratio_to_plain": round(cpu["plain"] / cpu["component"], 2),
        "environment": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
    }


class Spent(NamedTuple):
    wall_s: float
    cpu_s: float  #: of this process and of all of the server's


async def in_turns(
    dsn: str, engine: RetrieverEngine, found: StoredCollection, queries: NDArray[np.float32], searches: int, rounds: int
) -> dict[str, list[Spent]]:
    """What each side took in each round; a first, shorter round warms caches, plans and connections."""
    spent: dict[str, list[Spent]] = {"plain": [], "settings": [], "component": []}
    title = await cluster_title(dsn)
    async with OneByOne(dsn, f"rows_{found.id}", DIM, found.ef_search) as one_by_one:
        sides = {
            "plain": concurrently(one_by_one.plain, queries),
            "settings": concurrently(one_by_one.settings, queries),
            "component": in_batches(engine, queries),
        }
        for side in sides.values():
            await side(512)
        for _ in range(rounds):
            for name, side in sides.items():
                wall, cpu = time.perf_counter(), cpu_seconds(title)
                await side(searches)
                spent[name].append(Spent(time.perf_counter() - wall, cpu_seconds(title) - cpu))
    return spent


async def cluster_title(dsn: str) -> str:
    async with await AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute("SHOW cluster_name")).fetchone()
    return str(row[0]) if row else ""


def cpu_seconds(title: str) -> float:
    """CPU time so far of this process and of the backends of the server with that cluster title."""
    total = time.process_time()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"postgres: {title}: patchwork".encode() in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


async def component_recall(engine: RetrieverEngine, queries: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    true = nearest(queries, stored, "cosine", K)
    calls = [
        EngineCall(str(i), NAME, "search", codec.encode(SearchRequest(NAME, query, K).to_dict()))
        for i, query in enumerate(queries)
    ]
    recalls = []
    for start in range(0, len(calls), CONCURRENT):
        for reply, expected in zip(
            await engine.run(calls[start : start + CONCURRENT]), true[start : start + CONCURRENT], strict=True
        ):
            assert isinstance(reply, bytes)
            recalls.append(recall_of([hit["score"] for hit in codec.decode_outcome(reply)], expected.scores))
    return float(np.mean(recalls))


def run(num_rows: int, searches: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-") as folder:
        Path(folder).chmod(0o755)  # the server's account must get in
        server = EmbeddedPostgres(Path(folder) / "pg")
        try:
            return asyncio.run(measure(server.start(), num_rows, searches, rounds))
        finally:
            server.stop()


@pytest.mark.benchmark
@pytest.mark.postgres
def test_the_component_answers_more_searches_than_one_by_one_psycopg() -> None:
    report = run(50_000, 4096, 5)
    print(json.dumps(report, indent=2))
    assert report["recall_at_10"] >= 0.95
    assert report["ratio_to_settings"] >= 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--searches", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    report = run(given.rows, given.searches, given.rounds)
    text = json.dumps(report, indent=2)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
