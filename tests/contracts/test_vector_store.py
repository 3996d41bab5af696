"""What every vector store promises: one suite over the in-memory twin and Postgres."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kit.vectors import rows
from patchwork_adapters.operations import Distance, Hit, SearchRequest, StoredRow
from patchwork_serving.errors import StoreRefused, StoreTimeout, UnknownCollection
from patchwork_serving.store.export import export_collection
from patchwork_serving.store.memory import MemoryStore
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import Search, VectorStore

Fill = Callable[[Sequence[StoredRow], Distance], Awaitable[tuple[VectorStore, str]]]


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.postgres)])
async def fill(request: pytest.FixtureRequest) -> AsyncIterator[Fill]:
    """Makes a store with one collection of the given rows."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        memory = MemoryStore()

        async def fill_memory(given: Sequence[StoredRow], distance: Distance) -> tuple[VectorStore, str]:
            memory.create(name, given, distance)
            return memory, name

        yield fill_memory
        return
    async with PgVectorStore(request.getfixturevalue("postgres_dsn"), pool_size=2) as postgres:
        await postgres.migrate()

        async def fill_postgres(given: Sequence[StoredRow], distance: Distance) -> tuple[VectorStore, str]:
            dim = len(given[0].vector) if given else 0
            await export_collection(postgres, name, given, dim, distance)
            return postgres, name

        yield fill_postgres


async def search(store: VectorStore, name: str, vector: Any, k: int = 4, **more: Any) -> list[Hit]:
    request = SearchRequest(name, np.asarray(vector, dtype=np.float32), k, **more)
    (answer,) = await store.search([Search(request)])
    if isinstance(answer, Exception):
        raise answer
    return [found.to_hit() for found in answer]


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def expected(
    given: Sequence[StoredRow], vector: np.ndarray[Any, Any], k: int, distance: Distance
) -> list[tuple[str, float]]:
    """The plain definition of each distance, row by row."""

    def score(row: StoredRow) -> float:
        one, other = vector.astype(float), row.vector.astype(float)
        match distance:
            case "cosine":
                return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
            case "inner_product":
                return float(one @ other)
            case "l2":
                return -float(np.linalg.norm(one - other))

    scored = [(row.id, score(row)) for row in given]
    return sorted(scored, key=lambda pair: -pair[1])[:k]


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
async def test_the_nearest_rows_come_first_with_their_scores(fill: Fill, distance: Distance) -> None:
    given = [replace(row, vector=row.vector * (1 + i % 3)) for i, row in enumerate(rows(300))]
    store, name = await fill(given, distance)
    for query in rows(10, seed=9):
        wanted = expected(given, query.vector, 10, distance)
        hits = await search(store, name, query.vector, 10)
        assert ids(hits) == [id_ for id_, _ in wanted]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-12)


async def test_a_hit_is_the_row_as_it_was_given(fill: Fill) -> None:
    odd = StoredRow(
        "id with ü",
        "text with \0 and \udc80",
        {"b": 1, "a": [1.0, (2, 3)], "when": dt.datetime(2024, 2, 29, 12), "big": 2**80, "none": None, "nul": "\0"},
        np.ones(32, dtype=np.float32),
    )
    store, name = await fill([*rows(20), odd], "cosine")
    (hit,) = await search(store, name, odd.vector, 1, with_vectors=True)
    assert (hit.id, hit.text, hit.metadata) == (odd.id, odd.text, odd.metadata)
    assert list(hit.metadata) == list(odd.metadata)
    assert hit.vector is not None
    assert hit.vector.tolist() == odd.vector.tolist()


async def test_equal_scores_come_in_order_of_insertion(fill: Fill) -> None:
    same = rows(1)[0].vector
    given = [*rows(30, seed=3), *(StoredRow(f"same-{i}", "", {}, same) for i in (5, 3, 9, 1, 7, 2, 8))]
    store, name = await fill(given, "cosine")
    assert ids(await search(store, name, same, 3)) == ["same-5", "same-3", "same-9"]
    assert ids(await search(store, name, same, 7)) == [f"same-{i}" for i in (5, 3, 9, 1, 7, 2, 8)]


async def test_filters_narrow_before_the_k_best_are_taken(fill: Fill) -> None:
    given = rows(400)
    store, name = await fill(given, "cosine")
    wanted = [row for row in given if row.metadata["source"] == "s3"]
    hits = await search(store, name, given[0].vector, 10, where={"source": "s3"})
    assert ids(hits) == [id_ for id_, _ in expected(wanted, given[0].vector, 10, "cosine")]
    assert ids(await search(store, name, given[0].vector, 10, where={"source": "s3", "number": 8})) == ["row-8"]
    assert await search(store, name, given[0].vector, 10, where={"missing": 1}) == []


async def test_a_filter_is_equality_and_not_containment(fill: Fill) -> None:
    given = [replace(rows(2)[0], metadata={"tags": ["a", "b"]}), replace(rows(2)[1], metadata={"tags": ["a"]})]
    store, name = await fill(given, "cosine")
    assert ids(await search(store, name, given[0].vector, where={"tags": ["a"]})) == ["row-1"]


async def test_ids_restrict_the_search(fill: Fill) -> None:
    given = rows(50)
    store, name = await fill(given, "cosine")
    hits = await search(store, name, given[0].vector, 10, ids=("row-7", "row-30", "absent", "with \0"))
    assert ids(hits) == [id_ for id_, _ in expected([given[7], given[30]], given[0].vector, 10, "cosine")]
    assert await search(store, name, given[0].vector, 10, ids=()) == []


@pytest.mark.parametrize(("k", "count"), [(0, 0), (-1, 0), (5, 5), (30, 30), (2000, 30)])
async def test_k_bounds_the_hits(fill: Fill, k: int, count: int) -> None:
    store, name = await fill(rows(30), "cosine")
    assert len(await search(store, name, rows(1)[0].vector, k)) == count


async def test_a_vector_of_length_zero_scores_zero(fill: Fill) -> None:
    zero = np.zeros(32, dtype=np.float32)
    given = [*rows(10), StoredRow("zero", "", {}, zero)]
    store, name = await fill(given, "cosine")
    hits = await search(store, name, given[0].vector, 11)
    assert len(hits) == 11
    assert next(hit.score for hit in hits if hit.id == "zero") == 0.0
    assert [hit.score for hit in await search(store, name, zero, 3)] == [0.0, 0.0, 0.0]


async def test_get_answers_in_the_order_asked_for(fill: Fill) -> None:
    store, name = await fill(rows(10), "cosine")
    found = await store.get(name, ["row-3", "absent", "row-1", "row-3", "\0"])
    assert ids([one.to_hit() for one in found]) == ["row-3", "row-1", "row-3"]


async def test_an_added_row_is_found_and_a_replaced_one_keeps_its_place(fill: Fill) -> None:
    given = rows(10)
    store, name = await fill(given, "cosine")
    same = given[0].vector
    changed = [replace(given[4], text="new", vector=same), StoredRow("added", "added", {"n": 1}, same)]
    assert await store.add(name, changed) == 2
    hits = await search(store, name, same, 3)
    assert ids(hits) == ["row-0", "row-4", "added"]
    assert hits[1].text == "new"


async def test_deleted_rows_are_gone(fill: Fill) -> None:
    store, name = await fill(rows(10), "cosine")
    assert await store.delete(name, ["row-1", "row-2", "absent", "row-1"]) == 2
    assert await store.delete(name, []) == 0
    assert "row-1" not in ids(await search(store, name, rows(2)[1].vector, 10))
    assert await store.delete(name, None) == 8
    assert await search(store, name, rows(1)[0].vector) == []


async def test_an_empty_store_takes_its_first_rows(fill: Fill) -> None:
    store, name = await fill([], "cosine")
    assert await search(store, name, rows(1)[0].vector) == []
    await store.add(name, rows(5))
    assert ids(await search(store, name, rows(1)[0].vector, 1)) == ["row-0"]


async def test_one_bad_search_does_not_fail_the_others(fill: Fill) -> None:
    given = rows(40)
    store, name = await fill(given, "cosine")
    good = SearchRequest(name, given[0].vector, 1)
    answers = await store.search(
        [
            Search(good),
            Search(replace(good, vector=given[0].vector[:3])),
            Search(replace(good, collection="absent")),
            Search(replace(good, vector=np.full(32, np.nan, dtype=np.float32))),
            Search(good, timeout_s=-0.1),
            Search(good, timeout_s=5.0),
        ]
    )
    kinds = [type(answer) for answer in answers]
    assert kinds == [list, StoreRefused, UnknownCollection, StoreRefused, StoreTimeout, list]


@pytest.mark.parametrize(
    "bad",
    [
        StoredRow("short", "", {}, np.ones(3, dtype=np.float32)),
        StoredRow("nan", "", {}, np.full(32, np.nan, dtype=np.float32)),
        StoredRow("nul \0", "", {}, np.ones(32, dtype=np.float32)),
    ],
    ids=lambda row: row.id.split()[0],
)
async def test_a_bad_row_is_refused_and_nothing_is_written(fill: Fill, bad: StoredRow) -> None:
    store, name = await fill(rows(5), "cosine")
    with pytest.raises(StoreRefused):
        await store.add(name, [StoredRow("good", "", {}, np.ones(32, dtype=np.float32)), bad])
    assert await store.get(name, ["good"]) == []


async def test_an_unknown_collection_is_named(fill: Fill) -> None:
    store, _ = await fill(rows(5), "cosine")
    for call in (store.get("absent", ["x"]), store.add("absent", rows(1)), store.delete("absent", ["x"])):
        with pytest.raises(UnknownCollection, match="absent"):
            await call
