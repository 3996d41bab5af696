"""LlamaIndex: a query engine answers the same with all its leaves elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.stable_ids import stable_ids
from patchwork_adapters.stores import export, fingerprint
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Leaf, Walk, find_leaves

from .fakes import FakeCluster, vector

FILE = Path(__file__).parent / "chains" / "llama.py"


def imported() -> tuple[ModuleType, Walk]:
    """A fresh copy of the module, as another process would import it."""
    spec = importlib.util.spec_from_file_location("llama_of_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["llama_of_test"] = module
    with stable_ids("llama_of_test"):
        spec.loader.exec_module(module)
    return module, find_leaves(module.query_engine, module, "query_engine")


class Cluster:
    """Stores by operation, everything else on the leaves of a second copy of the module."""

    def __init__(self, walk: Walk) -> None:
        self.stores = FakeCluster()
        self.runners = {leaf.path: OwnLeafRunner(leaf.obj) for leaf in walk.leaves}
        self.calls: list[LeafCall] = []

    async def call(self, call: LeafCall) -> bytes:
        self.calls.append(call)
        if call.component == "store":
            return await self.stores.call(call)
        return await self.runners[call.leaf].run(call.method, call.payload)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.calls.append(call)
        async for frame in self.runners[call.leaf].stream(call.method, call.payload):
            yield frame


def assignments(leaves: tuple[Leaf, ...], cluster: Cluster) -> dict[str, Assignment]:
    found = {}
    for leaf in leaves:
        if leaf.spec.export is None:
            found[leaf.path] = Assignment("own", "own")
            continue
        rows = [row.to_dict() for row in export(leaf.spec, leaf.obj).rows]
        cluster.stores._add({"collection": "c", "rows": rows})
        found[leaf.path] = Assignment("store", "engine", collection="c", fingerprint=fingerprint(leaf.spec, leaf.obj))
    return found


@pytest.fixture
def swapped() -> Iterator[tuple[ModuleType, Cluster, Swap]]:
    """(module with its leaves in the cluster, the cluster, the swap)"""
    _, twin = imported()
    cluster = Cluster(twin)
    module, walk = imported()
    with Bridge(cluster) as bridge:
        made = swap(walk.leaves, assignments(twin.leaves, cluster), bridge)
        yield module, cluster, made
        made.undo()


def shown(response: Any) -> Any:
    return response.response, [
        (n.node.text, n.node.node_id, n.node.metadata, pytest.approx(n.score)) for n in response.source_nodes
    ]


def test_two_imports_give_the_same_ids() -> None:
    (first, _), (second, _) = imported(), imported()
    assert list(first.index.docstore.docs) == list(second.index.docstore.docs)


async def test_a_query_engine_with_a_reranker_answers_the_same_with_every_leaf_elsewhere(swapped: Any) -> None:
    module, cluster, made = swapped
    plain, _ = imported()
    assert made.skipped == []
    for question in ("apple pie", "dates"):
        assert shown(module.query_engine.query(question)) == shown(plain.query_engine.query(question))
        assert shown(await module.query_engine.aquery(question)) == shown(await plain.query_engine.aquery(question))
    assert {call.method for call in cluster.calls} == {
        "_get_query_embedding", "_aget_query_embedding", "search", "complete",
    }  # fmt: skip


async def test_streams_of_the_users_model_arrive_chunk_by_chunk(swapped: Any) -> None:
    module, cluster, _ = swapped
    plain, _ = imported()
    llm, local = (m.query_engine._response_synthesizer._llm for m in (module, plain))
    assert [c.delta for c in llm.stream_complete("x y")] == [c.delta for c in local.stream_complete("x y")]
    assert [c.delta async for c in await llm.astream_complete("x")] == [c.delta for c in local.stream_complete("x")]
    assert {call.method for call in cluster.calls} == {"stream_complete"}


class Seen(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.names.append(type(event).__name__)


def test_event_handlers_still_see_the_calls_of_a_swapped_model(swapped: Any) -> None:
    module, _, made = swapped
    handler = Seen()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        handler.names.clear()
        module.query_engine._response_synthesizer._llm.complete("x")
        remote = [name for name in handler.names if name.startswith("LLM")]
        made.undo()
        handler.names.clear()
        module.query_engine._response_synthesizer._llm.complete("x")
        local = [name for name in handler.names if name.startswith("LLM")]
    finally:
        dispatcher.event_handlers.remove(handler)
    # the runner of this test is in the same process, so its own events come on top
    assert set(remote) == set(local) != set()


def simple_store() -> SimpleVectorStore:
    store = SimpleVectorStore()
    for i in range(20):
        metadata = {"n": i, "even": i % 2 == 0, "tag": "ab"[i % 2]}
        store.add([TextNode(id_=f"n{i}", text=f"t{i}", metadata=metadata, embedding=vector(f"t{i}").tolist())])
    return store


def simple_pair() -> tuple[SimpleVectorStore, SimpleVectorStore, FakeCluster, Bridge]:
    """(plain, swapped, cluster, bridge)"""
    plain, store, cluster = simple_store(), simple_store(), FakeCluster()
    bridge = Bridge(cluster)
    (leaf,) = find_leaves(store).leaves
    cluster._add({"collection": "c", "rows": [row.to_dict() for row in export(leaf.spec, store).rows]})
    swap([leaf], {leaf.path: Assignment("store", "engine", collection="c")}, bridge)
    return plain, store, cluster, bridge


def only(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@pytest.mark.parametrize(
    ("options", "is_remote"),
    [
        ({}, True),
        ({"similarity_top_k": 100}, True),
        ({"node_ids": ["n1", "n3", "nope"]}, True),
        ({"node_ids": []}, True),
        ({"filters": only("tag", "a")}, True),
        ({"filters": only("n", 3)}, True),
        ({"filters": only("n", 3, FilterOperator.GT)}, False),
        ({"filters": only("n", 3.0)}, False),
        ({"filters": MetadataFilters(filters=[*only("n", 3).filters, *only("tag", "a").filters], condition=FilterCondition.OR)}, False),
        ({"mode": VectorStoreQueryMode.MMR}, False),
        ({"mode": VectorStoreQueryMode.SVM, "node_ids": ["n1"]}, False),
    ],
)  # fmt: skip
async def test_a_simple_store_finds_the_same_and_keeps_odd_queries_local(
    options: dict[str, Any], is_remote: bool
) -> None:
    if options.get("mode") == VectorStoreQueryMode.SVM:
        pytest.importorskip("sklearn")
    plain, store, cluster, bridge = simple_pair()
    with bridge:
        query = VectorStoreQuery(query_embedding=vector("q").tolist(), **{"similarity_top_k": 4, **options})
        expected = plain.query(query)
        for found in (store.query(query), await store.aquery(query)):
            assert found.ids == expected.ids
            assert found.similarities == pytest.approx(expected.similarities, abs=1e-6)
    assert len(cluster.calls) == (2 if is_remote else 0)


async def test_writes_to_a_simple_store_reach_its_component() -> None:
    _, store, cluster, bridge = simple_pair()
    with bridge:
        store.add([TextNode(id_="new", text="", embedding=vector("new").tolist())])
        await store.async_add([TextNode(id_="other", text="", embedding=vector("other").tolist())])
        assert store.query(VectorStoreQuery(query_embedding=vector("new").tolist(), similarity_top_k=1)).ids == ["new"]
        store.delete_nodes(["new"])
        await store.adelete_nodes(["other"])
        store.delete_nodes(filters=only("tag", "a"))
        assert set(cluster.rows["c"]) == set(store.data.embedding_dict)
        store.clear()
        assert cluster.rows["c"] == {}


def test_a_swapped_store_does_not_travel_as_a_swapped_one() -> None:
    plain, store, _, bridge = simple_pair()
    with bridge:
        back = codec.decode(codec.encode(store))
    assert type(back) is type(plain)
