"""What the store decides without a database: how to search, what is equal, what a place is called."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest

from patchwork_adapters.operations import SearchRequest
from patchwork_serving.store.connect import where
from patchwork_serving.store.documents import filter_form
from patchwork_serving.store.port import StoredCollection
from patchwork_serving.store.recall import SearchChoice, choose, nearest, recall_of, sample_queries
from patchwork_serving.store.scores import scores
from patchwork_serving.store.statements import is_exact, settings_for, statement

MEASURED = {40: 0.93, 64: 0.96, 100: 0.98, 160: 1.0, 250: 1.0}


@pytest.mark.parametrize(
    ("floor", "rows", "wanted", "expected"),
    [
        (0.95, 50_000, None, SearchChoice(64, 0.96, False)),  # the smallest that reaches the floor
        (0.95, 2_000, None, SearchChoice(160, 1.0, False)),  # a small store: the smallest that finds everything
        (0.95, 50_000, 100, SearchChoice(100, 0.98, False)),  # fixed by the user
        (0.95, 50_000, 40, SearchChoice(40, 0.93, True)),  # fixed by the user and too few
    ],
)
def test_candidates_are_chosen_by_measured_recall(
    floor: float, rows: int, wanted: int | None, expected: SearchChoice
) -> None:
    assert choose(MEASURED, floor, rows, wanted) == expected


def test_a_floor_that_nothing_reaches_means_an_exact_scan() -> None:
    assert choose({40: 0.5, 64: 0.6}, 0.95, 50_000).exact
    assert choose({}, 0.95, 0).exact


def collection(**more: object) -> StoredCollection:
    base = {"id": 7, "name": "c", "dim": 3, "distance": "cosine", "content_hash": None, "rows": 10}
    return StoredCollection(**{**base, "ef_search": 64, "recall": 1.0, "exact": False, "recall_by_ef": {}, **more})  # type: ignore[arg-type]


def request(**more: object) -> SearchRequest:
    return SearchRequest(**{"collection": "c", "vector": np.ones(3, dtype=np.float32), "k": 4, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "held", "exact"),
    [
        (request(), collection(), False),
        (request(), collection(exact=True), True),  # recall was below the floor
        (request(ids=("a",)), collection(), True),  # few rows, found by their key
        (request(k=5000), collection(), True),  # more than an index walk is good for
        (request(vector=np.zeros(3, dtype=np.float32)), collection(), True),  # no direction to walk in
        (request(where={"a": 1}), collection(), False),
    ],
)
def test_when_a_search_scans(asked: SearchRequest, held: StoredCollection, exact: bool) -> None:
    assert is_exact(asked, held, asked.k + 2) is exact


def test_a_statement_holds_no_value_of_the_request() -> None:
    asked = request(ids=("private",), where={"private": "private"})
    for exact in (True, False):
        text, values = statement(asked, collection(), 6, exact=exact)
        assert b"private" not in text
        assert set(values) == {"vector", "ids", "where"}


def test_searches_with_like_deadlines_share_their_settings() -> None:
    first = settings_for(1.0, collection(), None)
    assert settings_for(1.05, collection(), first) is first
    assert settings_for(0.99, collection(), first) == (64, 990)  # a longer timeout than the search has is never used
    assert settings_for(2.0, collection(), first) == (64, 2000)
    assert settings_for(0.0001, collection(), None).timeout_ms == 1  # 0 would mean no limit


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"when": dt.date(2024, 2, 29)}, {"when": "2024-02-29"}),
        ({"nan": math.nan, "inf": -math.inf}, {"nan": None, "inf": None}),
        ({"nul": "a\0b", "lone": "\udc80"}, {"nul": "ab", "lone": "?"}),
        ({"deep": [{"x": ("a\0",)}], 5: 1, ("t",): 2}, {"deep": [{"x": ["a"]}], "5": 1}),
    ],
)
def test_metadata_for_filters_is_what_jsonb_can_hold(given: dict[object, object], form: dict[str, object]) -> None:
    assert filter_form(given) == form  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_exact_neighbours_are_those_of_the_plain_definition(distance: str) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((500, 16)).astype(np.float32)
    queries = sample_queries(vectors, 30)
    for query, found in zip(queries, nearest(queries, vectors, distance, 5), strict=True):
        every = scores(query, vectors, distance)
        assert found.places.tolist() == np.argsort(-every, kind="stable")[:5].tolist()
        assert recall_of(every[found.places].tolist(), found.scores) == 1.0


def test_recall_counts_equal_vectors_as_one_another() -> None:
    assert recall_of([0.9, 0.8, 0.8], np.array([0.9, 0.8, 0.8])) == 1.0
    assert recall_of([0.9, 0.8, 0.7], np.array([0.9, 0.8, 0.8])) == pytest.approx(2 / 3)


def test_a_database_is_named_without_user_and_password() -> None:
    assert where("postgresql://me:word@db.example:6432/rag") == "db.example:6432/rag"
    assert where("host=/tmp/run dbname=patchwork user=patchwork passfile=/x") == "/tmp/run:5432/patchwork"
