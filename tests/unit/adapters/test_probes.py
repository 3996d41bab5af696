"""Which of two nested calls counts as the first, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from kit.twins import leaf_of
from patchwork_adapters.probes import Probes
from patchwork_adapters.walk import Leaf


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Vectors(Embeddings):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        self.clock.now += 1.0
        return [1.0]


class Store(VectorStore):
    """Works ``before`` it embeds the question, and ``after``."""

    def __init__(self, clock: Clock, before: float, after: float) -> None:
        self.clock, self.before, self.after = clock, before, after
        self.embedding = Vectors(clock)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Any]:
        self.clock.now += self.before
        self.embedding.embed_query(query)
        self.clock.now += self.after
        return []

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> Store:  # type: ignore[override]
        raise NotImplementedError


def named(path: str, obj: Any) -> Leaf:
    return replace(leaf_of(obj), path=path)


@pytest.mark.parametrize(("before", "after"), [(0.25, 0.5), (0.5, 0.25)])
def test_a_search_follows_the_embedding_of_its_question_however_long_it_was_kept_waiting(
    before: float, after: float
) -> None:
    clock = Clock()
    store = Store(clock, before, after)
    leaves = [named("store", store), named("vectors", store.embedding)]
    probes = Probes(clock)
    probes.on(
        leaves,
        {"store": ["similarity_search"], "vectors": ["embed_query"]},
        {"store": "store", "vectors": "embedder"},
    )
    try:
        probes.begin()
        store.similarity_search("q")
        embedded, searched = (probed.call for probed in probes.take())
    finally:
        probes.off()
    assert (embedded.leaf, embedded.started, embedded.ended) == ("vectors", before, before + 1.0)
    assert (searched.leaf, searched.started, searched.ended) == ("store", before + 1.0, before + 1.0 + after)
