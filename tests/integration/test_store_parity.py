"""An exported store answers as the framework's own store does: ids, order and scores.

Neither framework defines the order of equal scores (LangChain sorts unstably, LlamaIndex reads a heap), so rows of equal score are compared
as a set; ours come in order of insertion.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from kit.vectors import clustered
from patchwork_adapters.leaves.langchain_stores import export_in_memory
from patchwork_adapters.operations import SearchRequest
from patchwork_serving.store.export import export_collection
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import Search

pytestmark = pytest.mark.postgres

DIM, COUNT, K = 384, 1500, 8
Scored = list[tuple[str, float]]


class Given(Embeddings):
    """Embeddings that are looked up: the text is a number."""

    def __init__(self, vectors: np.ndarray[Any, Any]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._vectors[int(text.split()[0])].tolist()
        return vector


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PgVectorStore]:
    async with PgVectorStore(postgres_dsn, pool_size=3) as opened:
        await opened.migrate()
        yield opened


@pytest.fixture(scope="module")
def vectors() -> np.ndarray[Any, Any]:
    """Clusters, with every tenth row the same as the one before it, as corpora with repeated passages have."""
    made = clustered(COUNT, DIM, clusters=60)
    made[10::10] = made[9:-1:10]
    return made


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    near = vectors[::25] + 0.02 * np.random.default_rng(5).standard_normal((len(vectors[::25]), DIM))
    return np.concatenate([near, vectors[9::100]]).astype(np.float32)


def groups(scored: Scored) -> list[set[str]]:
    """Ids by equal score, the last group left out: it may go on beyond k."""
    found = [{id_ for id_, _ in group} for _, group in groupby(scored, key=lambda pair: round(pair[1], 12))]
    return found[:-1]


def assert_equal(ours: Scored, theirs: Scored) -> None:
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-14)
    assert groups(ours) == groups(theirs)


async def answers(store: PgVectorStore, name: str, queries: Sequence[Any], **more: Any) -> list[Scored]:
    searches = [Search(SearchRequest(name, query, K, **more)) for query in queries]
    scored: list[Scored] = []
    for answer in await store.search(searches):
        assert isinstance(answer, list)
        scored.append([(hit.to_hit().id, hit.score) for hit in answer])
    return scored


async def test_langchains_in_memory_store(
    store: PgVectorStore, vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]
) -> None:
    original = InMemoryVectorStore(Given(vectors))
    documents = [Document(f"{i} text", id=f"doc-{i}", metadata={"i": i, "tags": ["a", i]}) for i in range(COUNT)]
    original.add_documents(documents)
    name = f"parity-{uuid.uuid4().hex[:8]}"
    exported = export_in_memory(original)
    collection = await export_collection(store, name, exported.rows, DIM, exported.distance)
    assert collection.recall >= 0.95
    theirs = [original.similarity_search_with_score_by_vector(query.tolist(), k=K) for query in queries]
    for mine, other in zip(await answers(store, name, queries), theirs, strict=True):
        assert_equal(mine, [(document.id or "", score) for document, score in other])
    (first,) = await store.search([Search(SearchRequest(name, queries[0], K))])
    assert isinstance(first, list)
    by_id = {document.id: document for document in documents}
    for hit in (found.to_hit() for found in first):
        assert (hit.text, hit.metadata) == (by_id[hit.id].page_content, by_id[hit.id].metadata)


async def test_llamaindexs_simple_store(
    store: PgVectorStore, vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]
) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.simple import SimpleVectorStore
    from llama_index.core.vector_stores.types import VectorStoreQuery

    from patchwork_adapters.leaves.llamaindex_stores import export_simple

    original = SimpleVectorStore()
    nodes = [
        TextNode(id_=f"node-{i}", text=f"text {i}", embedding=vector.tolist(), metadata={"part": i % 3})
        for i, vector in enumerate(vectors)
    ]
    original.add(nodes)
    name = f"parity-{uuid.uuid4().hex[:8]}"
    exported = export_simple(original)
    await export_collection(store, name, exported.rows, DIM, exported.distance)

    def asked(query: Any, **more: Any) -> Scored:
        result = original.query(VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=K, **more))
        return list(zip(result.ids or [], result.similarities or [], strict=True))

    few = queries[::4]
    for mine, query in zip(await answers(store, name, few), few, strict=True):
        assert_equal(mine, asked(query))
    only = MetadataFilters(filters=[MetadataFilter(key="part", value=1)])
    for mine, query in zip(await answers(store, name, few, where={"part": 1}), few, strict=True):
        assert_equal(mine, asked(query, filters=only))
    ids = [f"node-{i}" for i in range(0, COUNT, 7)]
    for mine, query in zip(await answers(store, name, few, ids=tuple(ids)), few, strict=True):
        assert_equal(mine, asked(query, node_ids=ids))
