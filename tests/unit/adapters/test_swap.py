"""Leaves swapped in place: same object, same answers, other place; and back again."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore

from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.stores import export, fingerprint
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Leaf, find_leaves

from .fakes import FakeCluster, vector


class WordEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector(text).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return vector(text).tolist()  # type: ignore[no-any-return]


class OwnCluster:
    """Runs the own way on a second copy of the leaf, by bytes only."""

    def __init__(self, twin: Any) -> None:
        self.runner = OwnLeafRunner(twin)
        self.calls: list[LeafCall] = []

    async def call(self, call: LeafCall) -> bytes:
        self.calls.append(call)
        return await self.runner.run(call.method, call.payload)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.calls.append(call)
        async for frame in self.runner.stream(call.method, call.payload):
            yield frame


DOCUMENTS = [Document(id=f"d{i}", page_content=f"text {i}", metadata={"n": i, "pair": (i, i)}) for i in range(30)]


def filled_store() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_documents(DOCUMENTS, WordEmbeddings())


def leaf_of(obj: Any) -> Leaf:
    (leaf,) = [leaf for leaf in find_leaves(obj).leaves if leaf.obj is obj]
    return leaf


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def bridge(cluster: FakeCluster) -> Iterator[Bridge]:
    with Bridge(cluster) as bridge:
        yield bridge


def to_component(store: Any, cluster: FakeCluster, bridge: Bridge, **options: Any) -> Swap:
    leaf = leaf_of(store)
    rows = export(leaf.spec, store).rows
    cluster._add({"collection": "c", "rows": [row.to_dict() for row in rows]})
    assignment = Assignment("retriever-store", "engine", collection="c", fingerprint=fingerprint(leaf.spec, store))
    return swap([leaf], {leaf.path: assignment}, bridge, **options)


def close(a: list[tuple[Document, float]], b: list[tuple[Document, float]]) -> bool:
    return [d for d, _ in a] == [d for d, _ in b] and [s for _, s in a] == pytest.approx([s for _, s in b], abs=1e-6)


async def test_an_in_memory_store_finds_the_same_through_its_component(cluster: FakeCluster, bridge: Bridge) -> None:
    plain, store = filled_store(), filled_store()
    to_component(store, cluster, bridge)
    for k in (1, 4, 100):
        assert close(store.similarity_search_with_score("text 3", k), plain.similarity_search_with_score("text 3", k))
        assert close(
            await store.asimilarity_search_with_score("q", k), await plain.asimilarity_search_with_score("q", k)
        )
    embedding = vector("q").tolist()
    assert store.similarity_search_by_vector(embedding) == plain.similarity_search_by_vector(embedding)
    assert await store.asimilarity_search_by_vector(embedding) == await plain.asimilarity_search_by_vector(embedding)
    assert store.max_marginal_relevance_search("q", 3, 10) == plain.max_marginal_relevance_search("q", 3, 10)
    assert await store.amax_marginal_relevance_search("q", 3) == await plain.amax_marginal_relevance_search("q", 3)
    assert store.as_retriever().invoke("q") == plain.as_retriever().invoke("q")
    assert await store.as_retriever().ainvoke("q") == await plain.as_retriever().ainvoke("q")
    assert {call.method for call in cluster.calls} == {"search"}
    assert len(cluster.calls) == 12


def test_what_the_operation_cannot_express_runs_on_the_local_store(cluster: FakeCluster, bridge: Bridge) -> None:
    plain, store = filled_store(), filled_store()
    to_component(store, cluster, bridge)
    odd = {"filter": lambda d: d.metadata["n"] % 2 == 1}
    assert store.similarity_search("q", 3, **odd) == plain.similarity_search("q", 3, **odd)
    assert asyncio.run(store.asimilarity_search("q", 3, **odd)) == plain.similarity_search("q", 3, **odd)
    assert store.similarity_search("q", 0) == []
    assert cluster.calls == []


async def test_writes_reach_both_the_store_and_its_component(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    to_component(store, cluster, bridge)
    store.add_documents([Document(id="new", page_content="brand new")])
    await store.aadd_texts(["another"], ids=["other"])
    assert store.similarity_search("brand new", 1)[0].id == "new"
    assert {"new", "other"} <= cluster.rows["c"].keys()
    store.delete(["new"])
    await store.adelete(["other"])
    store.delete()  # without ids the original does nothing
    assert len(cluster.rows["c"]) == len(store.store) == 30
    assert [call.method for call in cluster.calls] == ["add", "add", "search", "delete", "delete"]


async def test_documents_that_another_process_added_are_found(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    to_component(store, cluster, bridge)
    cluster._add(
        {"collection": "c", "rows": [{"id": "far", "text": "far", "metadata": {"a": 1}, "vector": vector("far")}]}
    )
    expected = Document(id="far", page_content="far", metadata={"a": 1})
    assert store.similarity_search("far", 1) == [expected]
    assert store.get_by_ids(["d1", "far", "none"]) == [DOCUMENTS[1], expected]
    assert await store.aget_by_ids(["far"]) == [expected]
    assert len(store.max_marginal_relevance_search("far", 2)) == 2


def test_metadata_keep_their_types_and_identity(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    to_component(store, cluster, bridge)
    found = store.similarity_search("q", 1)[0]
    assert isinstance(found.metadata["pair"], tuple)


def test_a_store_that_is_not_what_was_exported_stays_local_and_says_so(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    leaf = leaf_of(store)
    swapped = swap([leaf], {leaf.path: Assignment("c", "engine", collection="c", fingerprint="other")}, bridge)
    assert [o.where for o in swapped.skipped] == ["chain"]
    assert store.similarity_search("q", 1)
    assert cluster.calls == []


def test_undo_gives_the_class_back_and_is_repeatable(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    swapped = to_component(store, cluster, bridge)
    assert type(store) is not InMemoryVectorStore
    assert isinstance(store, InMemoryVectorStore)
    assert type(store).__qualname__ == "InMemoryVectorStore"
    assert type(store).__module__ == InMemoryVectorStore.__module__
    swapped.undo()
    swapped.undo()
    assert type(store) is InMemoryVectorStore
    assert store.similarity_search("q", 1)
    assert cluster.calls == []


def test_a_gated_swap_is_in_force_only_inside_its_block(cluster: FakeCluster, bridge: Bridge) -> None:
    store = filled_store()
    swapped = to_component(store, cluster, bridge, always=False)
    store.similarity_search("q")
    assert cluster.calls == []
    with swapped.active():
        store.similarity_search("q")
    assert len(cluster.calls) == 1
    store.similarity_search("q")
    assert len(cluster.calls) == 1


def test_two_swaps_of_one_leaf_do_not_disturb_one_another() -> None:
    store = filled_store()
    first, second = FakeCluster(), FakeCluster()
    with Bridge(first) as bridge_1, Bridge(second) as bridge_2:
        swap_1 = to_component(store, first, bridge_1, always=False)
        swap_2 = to_component(store, second, bridge_2, always=False)
        with swap_1.active():
            store.similarity_search("q")
        with swap_2.active():
            store.similarity_search("q")
        swap_1.undo()
        with swap_2.active():
            store.similarity_search("q")
        swap_2.undo()
        store.similarity_search("q")
    assert (len(first.calls), len(second.calls)) == (1, 2)
    assert type(store) is InMemoryVectorStore  # though the older swap ended first


async def test_a_synchronous_search_on_the_loop_lets_others_run(cluster: FakeCluster, bridge: Bridge) -> None:
    """MultiQueryRetriever and others search synchronously inside asynchronous methods."""
    store = filled_store()
    to_component(store, cluster, bridge)
    cluster.delay_s = 0.05
    install_portal(asyncio.get_running_loop())
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def search() -> list[Document]:
        return store.similarity_search_by_vector(vector("q").tolist(), 1)

    ticking = asyncio.create_task(tick())
    found = await asyncio.gather(*(asyncio.create_task(search()) for _ in range(4)))
    ticking.cancel()
    asyncio.get_running_loop().set_task_factory(None)
    assert len(found) == 4
    assert ticks > 0


# ---- the user's own object


class Shouting(BaseChatModel):
    mark: str = "!"

    @property
    def _llm_type(self) -> str:
        return "shouting"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        if messages[-1].content == "fail":
            raise ShoutError("cannot", code=3)
        text = f"{messages[-1].content}{self.mark}{kwargs.get('extra', '')}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in str(messages[-1].content).split():
            if word == "fail":
                raise ShoutError("midway", code=4)
            yield ChatGenerationChunk(message=AIMessageChunk(word + self.mark))


class Local(Shouting):
    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("local"))])


class ShoutError(Exception):
    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Fixed(BaseRetriever):
    answer: str

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document(page_content=f"{self.answer} {query}")]


def to_twin(obj: Any, twin: Any) -> tuple[OwnCluster, Bridge]:
    cluster = OwnCluster(twin)
    bridge = Bridge(cluster)
    leaf = leaf_of(obj)
    swap([leaf], {leaf.path: Assignment("own", "own")}, bridge)
    return cluster, bridge


async def test_an_unknown_chat_model_runs_elsewhere_in_every_mode() -> None:
    llm = Shouting()
    cluster, bridge = to_twin(llm, Shouting())
    with bridge:
        assert llm.invoke("hi").content == "hi!"
        assert (await llm.ainvoke("hi")).content == "hi!"
        assert [c.content for c in llm.stream("a b") if c.content] == ["a!", "b!"]
        assert [c.content async for c in llm.astream("a b") if c.content] == ["a!", "b!"]
        assert [m.content for m in llm.batch(["a", "b"])] == ["a!", "b!"]
        assert llm.bind(extra="?").invoke("hi").content == "hi!?"
    assert [c.method for c in cluster.calls] == ["_generate"] * 2 + ["_stream"] * 2 + ["_generate"] * 3


def test_an_exception_of_the_users_leaf_is_raised_as_its_class() -> None:
    llm = Shouting()
    _, bridge = to_twin(llm, Shouting())
    with bridge:
        with pytest.raises(ShoutError) as caught:
            llm.invoke("fail")
        assert caught.value.code == 3
        chunks = llm.stream("a fail")
        assert next(chunks).content == "a!"
        with pytest.raises(ShoutError, match="midway"):
            list(chunks)
        chain = llm.with_fallbacks([Local()], exceptions_to_handle=(ShoutError,))
        assert chain.invoke("fail").content == "local"


def test_fields_that_were_changed_for_a_call_travel_with_it() -> None:
    llm = Shouting()
    chain = llm.configurable_fields(mark=ConfigurableField(id="mark"))
    _, bridge = to_twin(llm, Shouting())
    with bridge:
        assert chain.invoke("hi").content == "hi!"
        assert chain.with_config(configurable={"mark": "??"}).invoke("hi").content == "hi??"
        assert llm.model_copy(update={"mark": "."}).invoke("hi").content == "hi."
        llm.mark = "#"
        assert llm.invoke("hi").content == "hi#"


def test_what_a_property_has_cached_does_not_travel_with_every_call() -> None:
    llm = Shouting()
    cluster, bridge = to_twin(llm, Shouting())
    with bridge:
        for _ in range(2):
            llm.invoke("hi")
    assert "_serialized" in vars(llm)  # langchain caches its own description
    assert [codec.decode(call.payload)[0] for call in cluster.calls] == [{}, {}]


async def test_a_leaf_retriever_runs_elsewhere_and_gets_a_run_manager_there() -> None:
    retriever = Fixed(answer="yes")
    cluster, bridge = to_twin(retriever, Fixed(answer="yes"))
    with bridge:
        assert retriever.invoke("q") == [Document(page_content="yes q")]
        assert await retriever.ainvoke("q") == [Document(page_content="yes q")]
    assert [c.method for c in cluster.calls] == ["_get_relevant_documents"] * 2


def test_embeddings_keep_the_names_of_their_parameters() -> None:
    embedder = WordEmbeddings()
    cluster, bridge = to_twin(embedder, WordEmbeddings())
    with bridge:
        assert embedder.embed_query(text="a") == vector("a").tolist()
        assert embedder.embed_documents(texts=["a"]) == [vector("a").tolist()]
    assert len(cluster.calls) == 2


class Slotted(Embeddings):
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] * self.size for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0] * self.size


def test_a_class_with_slots_is_swapped_too() -> None:
    embedder = Slotted(2)
    cluster, bridge = to_twin(embedder, Slotted(2))
    with bridge:
        assert embedder.embed_query("a") == [1.0, 1.0]
    assert len(cluster.calls) == 1


def test_a_swapped_object_pickles_as_the_users_class() -> None:
    llm = Shouting()
    _, bridge = to_twin(llm, Shouting())
    with bridge:
        back = pickle.loads(pickle.dumps(llm))
    assert type(back) is Shouting
    assert back.invoke("hi").content == "hi!"
