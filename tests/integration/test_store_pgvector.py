"""The store against a real Postgres: plans, deadlines, cancelling, export."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest

from kit.vectors import clustered, rows
from patchwork_adapters import codec
from patchwork_adapters.operations import SearchRequest
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.hosting import host_of
from patchwork_serving.components.retriever import RetrieverEngine
from patchwork_serving.errors import EngineRefused, StoreError, StoreTimeout, StoreUnreachable, UnknownCollection
from patchwork_serving.release import ComponentSpec
from patchwork_serving.store import connect
from patchwork_serving.store.documents import encode_hits
from patchwork_serving.store.export import export_collection, parity_of
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import Search, StoredCollection
from patchwork_serving.store.statements import settings_for, statement
from patchwork_serving.wire import CallFrame, ReplyFrame

pytestmark = pytest.mark.postgres

DIM = 32


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PgVectorStore]:
    async with PgVectorStore(postgres_dsn, pool_size=3) as opened:
        await opened.migrate()
        yield opened


async def exported(store: PgVectorStore, name: str, count: int = 3000) -> StoredCollection:
    await export_collection(store, name, rows(count), DIM, "cosine")
    found = await store.collection(name)
    assert found is not None
    return found


async def sql(dsn: str, text: str, *values: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        return await (await connection.execute(text, values)).fetchall()  # type: ignore[arg-type]


async def busy(dsn: str) -> list[tuple[Any, ...]]:
    """Statements of ours that run or hold a transaction open."""
    text = "SELECT state, query FROM pg_stat_activity WHERE application_name = 'patchwork' AND state <> 'idle'"
    return await sql(dsn, text)


# -- plans and settings ----------------------------------------------------------------------------------------------------------------


async def test_an_unfiltered_search_walks_the_index(store: PgVectorStore, name: str) -> None:
    collection = await exported(store, name)
    request = SearchRequest(name, clustered(1)[0], 4)
    text, values = statement(request, collection, 6, exact=False)
    async with store.connections.borrow(5) as connection:
        plan = "\n".join(row[0] for row in await (await connection.execute(b"EXPLAIN " + text, values)).fetchall())
    assert f"Index Scan using rows_{collection.id}_embedding_idx" in plan
    assert "Sort" not in plan


async def test_an_exact_search_does_not(store: PgVectorStore, name: str) -> None:
    collection = await exported(store, name)
    text, values = statement(SearchRequest(name, clustered(1)[0], 4), collection, 6, exact=True)
    async with store.connections.borrow(5) as connection:
        plan = "\n".join(row[0] for row in await (await connection.execute(b"EXPLAIN " + text, values)).fetchall())
    assert "embedding_idx" not in plan


async def test_a_search_for_ids_looks_them_up(store: PgVectorStore, name: str) -> None:
    collection = await exported(store, name)
    text, values = statement(SearchRequest(name, clustered(1)[0], 4, ids=("row-1", "row-2")), collection, 6, exact=True)
    async with store.connections.borrow(5) as connection:
        plan = "\n".join(row[0] for row in await (await connection.execute(b"EXPLAIN " + text, values)).fetchall())
    assert f"rows_{collection.id}_pkey" in plan


async def test_settings_hold_for_a_pipeline_and_not_for_the_next(
    store: PgVectorStore, name: str, postgres_dsn: str
) -> None:
    collection = replace(await exported(store, name, 100), ef_search=77)
    wanted = settings_for(1.5, collection, None)
    shown = "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan'), current_setting('statement_timeout')"
    async with store.connections.borrow(5) as connection:
        async with connection.pipeline():
            await connection.execute(connect.query("settings"), wanted.values())
            inside = await connection.execute(shown)
        assert await inside.fetchall() == [("77", "strict_order", "1500ms")]
        ((ef_search, _, timeout),) = await (await connection.execute(shown)).fetchall()
        assert (ef_search, timeout) != ("77", "1500ms")
        assert timeout == "0"


async def test_a_rare_filter_finds_all_that_match(store: PgVectorStore, name: str) -> None:
    given = rows(3000)
    for place in (17, 1800, 2999):
        given[place] = replace(given[place], metadata={"rare": True})
    await export_collection(store, name, given, DIM, "cosine")
    (answer,) = await store.search([Search(SearchRequest(name, given[0].vector, 10, where={"rare": True}))])
    assert isinstance(answer, list)
    assert {found.to_hit().id for found in answer} == {"row-17", "row-1800", "row-2999"}


# -- deadlines and cancelling ----------------------------------------------------------------------------------------------------------


async def locked(dsn: str, collection: StoredCollection, release: asyncio.Event, held: asyncio.Event) -> None:
    """Hold a lock that makes every search of the collection wait."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(f"LOCK TABLE patchwork.rows_{collection.id} IN ACCESS EXCLUSIVE MODE".encode())
        held.set()
        await release.wait()


@pytest.fixture
async def stuck(store: PgVectorStore, name: str, postgres_dsn: str) -> AsyncIterator[asyncio.Event]:
    """A collection whose searches wait until the event is set."""
    collection = await exported(store, name, 200)
    release, held = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(locked(postgres_dsn, collection, release, held))
    await held.wait()
    yield release
    release.set()
    await task


async def test_a_search_is_cancelled_at_its_deadline(
    store: PgVectorStore, name: str, postgres_dsn: str, stuck: asyncio.Event
) -> None:
    request = SearchRequest(name, clustered(1)[0], 4)
    answers = await store.search([Search(request, 0.2), Search(request, 0.3)])
    assert [type(answer) for answer in answers] == [StoreTimeout, StoreTimeout]
    assert await busy(postgres_dsn) == []
    stuck.set()
    (answer,) = await store.search([Search(request, 5.0)])
    assert isinstance(answer, list)


async def test_cancelling_a_search_cancels_it_in_the_server(
    store: PgVectorStore, name: str, postgres_dsn: str, stuck: asyncio.Event
) -> None:
    searches = [Search(SearchRequest(name, vector, 4)) for vector in clustered(40)]
    task = asyncio.create_task(store.search(searches))
    while len(await busy(postgres_dsn)) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await busy(postgres_dsn) == []
    stuck.set()
    answers = await store.search(searches)
    assert all(isinstance(answer, list) for answer in answers)
    assert store.connections._pool.get_stats().get("pool_size") == 3


async def test_cancelling_a_write_leaves_nothing_behind(
    store: PgVectorStore, name: str, postgres_dsn: str, stuck: asyncio.Event
) -> None:
    new = [replace(row, id=f"new-{row.id}") for row in rows(5)]
    task = asyncio.create_task(store.add(name, new))
    while not await busy(postgres_dsn):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await busy(postgres_dsn) == []
    stuck.set()
    assert await store.get(name, [row.id for row in new]) == []


# -- export ----------------------------------------------------------------------------------------------------------------------------


async def test_the_same_content_is_exported_once(store: PgVectorStore, name: str) -> None:
    steps: list[str] = []
    first = await export_collection(store, name, rows(300), DIM, "cosine", progress=lambda step, *_: steps.append(step))
    before = await store.collection(name)
    assert "writing rows" in steps
    steps.clear()
    assert (
        await export_collection(store, name, rows(300), DIM, "cosine", progress=lambda step, *_: steps.append(step))
        == first
    )
    assert steps == []
    assert await store.collection(name) == before


async def test_changed_content_replaces_the_collection_under_running_searches(store: PgVectorStore, name: str) -> None:
    await exported(store, name, 300)
    request = SearchRequest(name, rows(300)[0].vector, 1)
    async with PgVectorStore(store.dsn(), pool_size=1) as reader:
        (before,) = await reader.search([Search(request)])
        await export_collection(store, name, [replace(row, id=f"new-{row.id}") for row in rows(300)], DIM, "cosine")
        (after,) = await reader.search([Search(request)])
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert [before[0].to_hit().id, after[0].to_hit().id] == ["row-0", "new-row-0"]


async def test_a_collection_that_was_written_to_is_exported_again(store: PgVectorStore, name: str) -> None:
    await exported(store, name, 100)
    await store.delete(name, ["row-5"])
    await export_collection(store, name, rows(100), DIM, "cosine")
    assert len(await store.get(name, ["row-5"])) == 1


async def test_what_an_interrupted_export_left_is_removed(store: PgVectorStore, name: str, postgres_dsn: str) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(step: str, *_: int) -> None:
        if step.startswith("measuring"):
            raise Interrupted

    with pytest.raises(Interrupted):
        await export_collection(store, name, rows(100), DIM, "cosine", progress=interrupt)
    assert await store.collection(name) is None
    await exported(store, name, 100)
    left = await sql(postgres_dsn, "SELECT state::text FROM patchwork.collections WHERE name = %s", name)
    assert left == [("ready",)]


async def test_two_exports_of_one_name_take_turns(store: PgVectorStore, name: str) -> None:
    exports = [export_collection(store, name, rows(200 + i), DIM, "cosine") for i in range(3)]
    done = await asyncio.gather(*exports)
    found = await store.collection(name)
    assert found is not None
    assert found.rows in {collection.rows for collection in done}


async def test_recall_below_the_floor_scans_exactly(store: PgVectorStore, name: str) -> None:
    rng = np.random.default_rng(0)
    hard = rng.standard_normal((12_000, 256)).astype(
        np.float32
    )  # no structure at all: the worst for a graph of neighbours
    given = [replace(rows(1)[0], id=f"row-{i}", vector=vector) for i, vector in enumerate(hard)]
    collection = await export_collection(store, name, given, 256, "cosine", recall_floor=0.999, ef_search=40)
    assert collection.recall < 0.999
    assert collection.exact
    found = await store.collection(name)
    assert found is not None
    parity = await parity_of(store, found, given)
    assert (parity.same_order, parity.largest_score_difference < 1e-12) == (parity.queries, True)
    lower = await export_collection(store, name, given, 256, "cosine", recall_floor=0.5)
    assert not lower.exact
    assert lower.recall >= 0.5


# -- the engine ------------------------------------------------------------------------------------------------------------------------


def call(method: str, arguments: Any, deadline: float | None = None) -> EngineCall:
    return EngineCall(uuid.uuid4().hex, "leaf", method, codec.encode(arguments), deadline=deadline)


async def test_the_engine_answers_every_operation_in_one_batch(store: PgVectorStore, name: str) -> None:
    collection = await export_collection(store, name, rows(200), DIM, "cosine")
    engine = RetrieverEngine(lambda: store.dsn(), {name: collection}, pool_size=2)
    await engine.start()
    vector = rows(200)[0].vector
    try:
        replies = await engine.run(
            [
                call("search", SearchRequest(name, vector, 2, with_vectors=True).to_dict()),
                call("get", {"collection": name, "ids": ["row-9"]}),
                call("add", {"collection": name, "rows": [replace(rows(1, seed=2)[0], id="new").to_dict()]}),
                call("delete", {"collection": name, "ids": ["row-8"]}),
                call("search", SearchRequest("absent", vector, 2).to_dict()),
                call("explode", {}),
                EngineCall("x", "leaf", "search", b"\xc1"),
                *(call("search", SearchRequest(name, one, 3).to_dict()) for one in clustered(20)),
            ]
        )
    finally:
        await engine.close()
    search, get, add, delete, absent, unknown, broken, *others = replies
    hits = codec.decode_outcome(search)  # type: ignore[arg-type]
    assert [hit["id"] for hit in hits][:1] == ["row-0"]
    assert hits[0]["vector"].tolist() == vector.tolist()
    assert [hit["id"] for hit in codec.decode_outcome(get)] == ["row-9"]  # type: ignore[arg-type]
    assert [codec.decode_outcome(add), codec.decode_outcome(delete)] == [1, 1]  # type: ignore[arg-type]
    assert [type(reply) for reply in (absent, unknown, broken)] == [UnknownCollection, EngineRefused, EngineRefused]
    assert all(isinstance(reply, bytes) for reply in others)


async def test_callers_who_leave_spoil_nothing_for_those_who_share_their_connection(
    store: PgVectorStore, name: str, postgres_dsn: str
) -> None:
    collection = await export_collection(store, name, rows(200), DIM, "cosine")
    stored = await store.collection(name)
    assert stored is not None
    spec = ComponentSpec(id="c", kind="retriever", way="engine", engine="pgvector", max_batch=4)
    host = host_of(spec, RetrieverEngine(postgres_dsn, {name: collection}, pool_size=1), replica="c#1")
    await host.start()

    async def four_that_wait() -> tuple[list[asyncio.Task[ReplyFrame]], asyncio.Event, asyncio.Task[None]]:
        release, held = asyncio.Event(), asyncio.Event()
        lock = asyncio.create_task(locked(postgres_dsn, stored, release, held))
        await held.wait()
        payload = codec.encode(SearchRequest(name, clustered(1)[0], 4).to_dict())
        frames = [CallFrame(uuid.uuid4().hex, "r", "l", "search", payload) for _ in range(4)]
        tasks = [asyncio.create_task(host.call(frame)) for frame in frames]
        while not await busy(postgres_dsn):
            await asyncio.sleep(0.01)
        assert (host.load().queued, host.load().running) == (0, 1)  # one batch, one pipeline
        return tasks, release, lock

    try:
        (leaving, *staying), release, lock = await four_that_wait()
        leaving.cancel()
        release.set()
        replies = await asyncio.gather(*staying)
        assert [(reply.error, len(reply.payloads)) for reply in replies] == [(None, 1)] * 3
        await lock

        leaving_all, release, lock = await four_that_wait()
        for task in leaving_all:
            task.cancel()
        await asyncio.wait(leaving_all)
        async with asyncio.timeout(10):
            while await busy(postgres_dsn):  # the lock is still held: they are cancelled in the server
                await asyncio.sleep(0.01)
        release.set()
        await lock
        assert (host.load().queued, host.load().running) == (0, 0)
        again = CallFrame("again", "r", "l", "get", codec.encode({"collection": name, "ids": ["row-9"]}))
        assert (await host.call(again)).error is None  # on the only connection, which is back in the pool
    finally:
        await host.close()


async def test_hits_are_spliced_as_the_codec_would_encode_them(store: PgVectorStore, name: str) -> None:
    await exported(store, name, 100)
    for with_vectors in (False, True):
        for k in (0, 3, 40):
            request = SearchRequest(name, clustered(1)[0], k, with_vectors=with_vectors)
            (found,) = await store.search([Search(request)])
            assert isinstance(found, list)
            assert encode_hits(found) == codec.encode_outcome([one.to_hit().to_dict() for one in found])


async def test_the_engine_does_not_start_without_its_collections(store: PgVectorStore, name: str) -> None:
    collection = await export_collection(store, name, rows(20), DIM, "cosine")
    engine = RetrieverEngine(store.dsn(), {"absent": replace(collection, name="absent")})
    with pytest.raises(UnknownCollection, match="absent"):
        await engine.start()
    await engine.close()


# -- errors ----------------------------------------------------------------------------------------------------------------------------


async def test_an_unreachable_database_is_named_without_its_password() -> None:
    dsn = "postgresql://someone:secret-word@127.0.0.1:1/nowhere"
    with pytest.raises(StoreUnreachable) as caught:
        await PgVectorStore(dsn).open()
    assert "127.0.0.1:1/nowhere" in str(caught.value)
    assert "secret-word" not in str(caught.value)


async def test_a_wrong_password_says_so(postgres_dsn: str) -> None:
    with pytest.raises(StoreUnreachable, match="refuses this user, password or database"):
        await PgVectorStore(postgres_dsn.replace("passfile=", "password=wrong passfile=")).open()


def test_every_error_of_the_driver_becomes_one_of_ours() -> None:
    def all_of(cls: type[psycopg.Error]) -> set[type[psycopg.Error]]:
        return {cls}.union(*(all_of(sub) for sub in cls.__subclasses__()))

    for cls in all_of(psycopg.Error):
        ours = connect.mapped(cls("value 'private' is wrong"), "host:5432/db")
        assert isinstance(ours, StoreError) or type(ours).__name__ == "DiskFull"
        assert "private" not in str(ours)
