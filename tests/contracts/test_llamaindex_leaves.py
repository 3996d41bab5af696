"""What LlamaIndex asks of each kind of leaf, on a user's class and on the one that a swap makes of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import Field

from kit.shapes.llama_leaves import Caller, Judge, Text, Vectors, Words
from kit.twins import Twins, swapped
from patchwork_adapters.checking.values import plain

ASKED = [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="what about apples?")]


class Decorated(LLM):
    """All eight methods, each decorated as integrations do, so that events come from the class itself."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="decorated", context_window=2000)

    def _words(self, text: str) -> list[str]:
        return [f"{word} " for word in f"heard {len(text)} characters".split()]

    def _responses(self, text: str) -> Iterator[CompletionResponse]:
        words = self._words(text)
        for i, word in enumerate(words):
            yield CompletionResponse(text="".join(words[: i + 1]), delta=word)

    def _chats(self, messages: Sequence[ChatMessage]) -> Iterator[ChatResponse]:
        for r in self._responses(str(messages[-1].content)):
            yield ChatResponse(message=ChatMessage(role="assistant", content=r.text), delta=r.delta)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="".join(self._words(prompt)), raw={"options": kwargs})

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="".join(self._words(prompt)), raw={"options": kwargs})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self._responses(prompt)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        async def pieces() -> Any:
            for piece in self._responses(prompt):
                yield piece

        return pieces()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return list(self._chats(messages))[-1]

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return list(self._chats(messages))[-1]

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return self._chats(messages)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def pieces() -> Any:
            for piece in self._chats(messages):
                yield piece

        return pieces()


class Table(BasePydanticVectorStore):
    """A client of a vector database, with texts; a search by exact comparison."""

    stores_text: bool = True
    flat_metadata: bool = True
    kept: dict[str, Any] = Field(default_factory=dict)

    @property
    def client(self) -> Any:
        return None

    def add(self, nodes: Sequence[Any], **kwargs: Any) -> list[str]:
        self.kept.update({node.node_id: node for node in nodes})
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None:
        self.kept.pop(ref_doc_id, None)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        asked = query.query_embedding or []
        scored = [(sum(a * b for a, b in zip(asked, n.embedding, strict=True)), n) for n in self.kept.values()]
        best = sorted(scored, key=lambda pair: -pair[0])[: query.similarity_top_k]
        return VectorStoreQueryResult([n for _, n in best], [s for s, _ in best], [n.node_id for _, n in best])

    def get_nodes(self, node_ids: list[str] | None = None, filters: Any = None) -> list[Any]:
        return [self.kept[id_] for id_ in node_ids or [] if id_ in self.kept]


class Heard(BaseEventHandler):
    """Events of this thread: the twins work in others."""

    names: list[str] = Field(default_factory=list)
    thread: int = Field(default_factory=threading.get_ident)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if threading.get_ident() == self.thread:
            self.names.append(type(event).__name__)


class Spans(BaseSpanHandler[Any]):
    """Spans of this thread: method, names of its arguments, whether the real object is there."""

    seen: list[Any] = Field(default_factory=list)
    thread: int = Field(default_factory=threading.get_ident)

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, **kwargs: Any) -> None:
        if threading.get_ident() == self.thread:
            arguments = {k: v for k, v in bound_args.arguments.items() if v != {}}
            self.seen.append((id_.partition("-")[0], sorted(arguments), type(instance).__name__))

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        return None

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        return None


@contextmanager
def hearing() -> Iterator[tuple[list[str], list[Any]]]:
    """(names of events, spans)"""
    heard, spans, dispatcher = Heard(), Spans(), get_dispatcher()
    dispatcher.add_event_handler(heard)
    dispatcher.add_span_handler(spans)
    try:
        yield heard.names, spans.seen
    finally:
        dispatcher.event_handlers.remove(heard)
        dispatcher.span_handlers.remove(spans)


@contextmanager
def both(make: Callable[[], Any]) -> Iterator[tuple[Any, Any, Twins]]:
    """(the original, a swapped one, where the calls of that go)"""
    obj = make()
    with swapped(obj, make()) as twins:
        yield make(), obj, twins


# ---- LLM


async def spoken(llm: Any) -> dict[str, Any]:
    """Everything that the eight methods give, and the events on the way; a method that raises gives its exception."""
    prompt, found = "apples and pears", dict[str, Any]()
    for name in ("complete", "chat"):
        argument: Any = prompt if name == "complete" else ASKED
        calls: dict[str, Callable[[], Any]] = {
            name: lambda n=name, a=argument: _done(getattr(llm, n)(a)),  # type: ignore[misc]
            f"a{name}": lambda n=name, a=argument: getattr(llm, f"a{n}")(a),  # type: ignore[misc]
            f"stream_{name}": lambda n=name, a=argument: _read(getattr(llm, f"stream_{n}")(a)),  # type: ignore[misc]
            f"astream_{name}": lambda n=name, a=argument: _aread(getattr(llm, f"astream_{n}")(a)),  # type: ignore[misc]
        }
        for method, call in calls.items():
            with hearing() as (events, spans):
                try:
                    value = await call()
                except NotImplementedError as error:
                    value = error
            found[method] = {"value": value, "events": events, "spans": spans}
    return found


async def _done(value: Any) -> Any:
    return value


async def _read(chunks: Any) -> list[Any]:
    return list(chunks)


async def _aread(chunks: Any) -> list[Any]:
    return [chunk async for chunk in await chunks]


@pytest.mark.parametrize("make", [Text, Caller, Decorated], ids=lambda cls: cls.__name__)
async def test_a_model_speaks_the_same_in_all_eight_methods(make: type) -> None:
    with both(make) as (original, away, twins):
        before, after = await spoken(original), await spoken(away)
        assert plain(after) == plain(before)
        assert {call.method for call in twins.calls}
        assert away.metadata == original.metadata
        assert away.class_name() == original.class_name()
    for name, said in after.items():
        if isinstance(said["value"], NotImplementedError):
            continue
        if name.startswith(("stream", "astream")):
            texts = [str(r.message.content) if "chat" in name else r.text for r in said["value"]]
            assert texts[-1] == "".join(r.delta for r in said["value"])  # each chunk says what is new
            assert all(b.startswith(a) for a, b in itertools.pairwise(texts))  # and what was said so far


async def test_a_models_events_come_once_and_in_order() -> None:
    with both(Decorated) as (_, away, _twins):
        said = await spoken(away)
    assert said["achat"]["spans"] == [("Decorated.achat", ["messages"], "Decorated")]
    heard = {name: one["events"] for name, one in said.items()}
    assert heard["complete"] == heard["acomplete"] == ["LLMCompletionStartEvent", "LLMCompletionEndEvent"]
    assert heard["chat"] == heard["achat"] == ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert heard["stream_chat"] == ["LLMChatStartEvent", *["LLMChatInProgressEvent"] * 3, "LLMChatEndEvent"]


async def test_a_model_whose_swap_is_not_in_force_announces_nothing_twice() -> None:
    llm = Decorated()
    with swapped(llm, Decorated(), always=False) as twins:
        assert plain(await spoken(llm)) == plain(await spoken(Decorated()))
        assert twins.calls == []


def test_options_of_a_call_reach_the_model() -> None:
    with both(Decorated) as (original, away, _):
        assert away.complete("x", temperature=0.5) == original.complete("x", temperature=0.5)
        assert away.complete("x", temperature=0.5).raw == {"options": {"temperature": 0.5}}


# ---- embedding


async def test_an_embedding_gives_the_same_vectors_for_queries_texts_and_batches() -> None:
    texts = [f"text {i}" for i in range(25)]
    with both(lambda: Vectors(embed_batch_size=4)) as (original, away, twins):
        for model in (original, away):
            with hearing() as (events, _spans):
                one = model.get_text_embedding("a")
                assert model.get_text_embedding_batch(texts) == await model.aget_text_embedding_batch(texts)
                assert one == await model.aget_text_embedding("a")
            assert set(events) == {"EmbeddingStartEvent", "EmbeddingEndEvent"}
        assert away.get_query_embedding("q") == original.get_query_embedding("q")
        assert await away.aget_query_embedding("q") == await original.aget_query_embedding("q")
        assert away.get_text_embedding_batch(texts) == original.get_text_embedding_batch(texts)
        assert away.get_agg_embedding_from_queries(["a", "b"]) == original.get_agg_embedding_from_queries(["a", "b"])
        assert away.similarity([1.0, 0.0], [0.5, 0.5]) == original.similarity([1.0, 0.0], [0.5, 0.5])
        assert len([c for c in twins.calls if c.method == "_get_text_embeddings"]) >= 7  # batches stay batches


# ---- vector store


def node(i: int, vectors: Vectors) -> TextNode:
    text = f"note {i}"
    return TextNode(
        id_=f"n{i}", text=text, metadata={"n": i, "tag": "ab"[i % 2]}, embedding=vectors.get_text_embedding(text)
    )


def filled(make: Callable[[], Any]) -> Any:
    store = make()
    store.add([node(i, Vectors()) for i in range(12)])
    return store


def only(*filters: tuple[str, Any, FilterOperator], any_of: bool = False) -> MetadataFilters:
    condition = FilterCondition.OR if any_of else FilterCondition.AND
    return MetadataFilters(
        filters=[MetadataFilter(key=k, value=v, operator=o) for k, v, o in filters], condition=condition
    )


QUERIES: dict[str, dict[str, Any]] = {
    "default": {},
    "more than there are": {"similarity_top_k": 50},
    "none": {"similarity_top_k": 0},
    "only some nodes": {"node_ids": ["n1", "n3", "gone"]},
    "an equality": {"filters": only(("tag", "a", FilterOperator.EQ))},
    "two equalities": {"filters": only(("tag", "a", FilterOperator.EQ), ("n", 2, FilterOperator.EQ))},
    "either": {"filters": only(("n", 1, FilterOperator.EQ), ("n", 2, FilterOperator.EQ), any_of=True)},
    "greater": {"filters": only(("n", 3, FilterOperator.GT))},
    "in a list": {"filters": only(("n", [1, 5], FilterOperator.IN))},
    "nothing matches": {"filters": only(("tag", "c", FilterOperator.EQ))},
    "diverse": {"mode": VectorStoreQueryMode.MMR},
}


@pytest.mark.parametrize("options", QUERIES.values(), ids=QUERIES)
async def test_a_simple_store_finds_the_same(options: dict[str, Any]) -> None:
    query = VectorStoreQuery(query_embedding=Vectors().get_query_embedding("q"), **{"similarity_top_k": 4, **options})
    with both(lambda: filled(SimpleVectorStore)) as (original, away, _):
        expected = original.query(query)
        for found in (away.query(query), await away.aquery(query)):
            assert found.ids == expected.ids
            assert found.similarities == pytest.approx(expected.similarities, abs=1e-6)


async def test_a_simple_store_takes_and_forgets_the_same() -> None:
    new, vectors = node(99, Vectors()), Vectors()
    query = VectorStoreQuery(query_embedding=new.embedding, similarity_top_k=3)
    with both(lambda: filled(SimpleVectorStore)) as (original, away, twins):
        for change in (
            lambda store: store.add([new]),
            lambda store: store.delete_nodes(["n1"]),
            lambda store: store.delete_nodes(filters=only(("tag", "b", FilterOperator.EQ))),
            lambda store: store.add([node(3, vectors)]),
            lambda store: store.delete("nobody"),
            lambda store: store.clear(),
        ):
            assert change(away) == change(original)
            assert away.query(query).ids == original.query(query).ids
        await away.async_add([new])
        assert away.query(query).ids == ["n99"]
        assert away.get("n99") == new.embedding
        assert {call.method for call in twins.calls} == {"search", "add", "delete"}
        with pytest.raises(NotImplementedError):  # it keeps no texts, here as there
            away.get_nodes(["n99"])


async def test_a_store_of_the_users_own_finds_the_same_and_gives_its_nodes() -> None:
    query = VectorStoreQuery(query_embedding=Vectors().get_query_embedding("q"), similarity_top_k=3)
    with both(lambda: filled(lambda: Table(kept={}))) as (original, away, twins):
        assert plain(away.query(query)) == plain(original.query(query))
        assert plain(await away.aquery(query)) == plain(await original.aquery(query))
        assert away.get_nodes(["n1", "gone"]) == original.get_nodes(["n1", "gone"])
        assert {call.method for call in twins.calls} == {"query", "get_nodes"}


# ---- postprocessor and retriever


def found_nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=f"n{i}", text=f"note {i}"), score=i / 10) for i in range(5)]


async def test_a_postprocessor_ranks_the_same_whatever_it_is_called_with() -> None:
    with both(lambda: Judge(top_n=3)) as (original, away, twins):
        for arguments in ({"query_str": "apples"}, {"query_bundle": QueryBundle("apples")}, {}):
            assert away.postprocess_nodes(found_nodes(), **arguments) == original.postprocess_nodes(
                found_nodes(), **arguments
            )
            later = await away.apostprocess_nodes(found_nodes(), **arguments)
            assert later == await original.apostprocess_nodes(found_nodes(), **arguments)
        assert len(twins.calls) == 6


async def test_a_retriever_finds_the_same_and_tells_it() -> None:
    with both(lambda: Words([f"note {i} on {t}" for i, t in enumerate(("apples", "bread", "dates"))])) as (
        original,
        away,
        twins,
    ):
        assert isinstance(away, BaseRetriever)
        for retriever in (original, away):
            with hearing() as (events, _spans):
                retriever.retrieve("apples")
            assert events == ["RetrievalStartEvent", "RetrievalEndEvent"]
        assert away.retrieve("apples") == original.retrieve(QueryBundle("apples"))
        assert await away.aretrieve("bread") == await original.aretrieve("bread")
        assert len(twins.calls) == 3
