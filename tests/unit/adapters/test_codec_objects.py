"""Frameworks' objects cross boundaries exactly, whatever they hold: messages of every kind, documents, nodes, commands, errors."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core import messages
from langchain_core.documents import Document
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation, LLMResult
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from patchwork_adapters import codec
from patchwork_adapters.codec import decode, encode
from patchwork_adapters.errors import NotExact
from patchwork_adapters.exact import difference

few = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
words = st.text(max_size=8)
names = st.text("abcxyz_", min_size=1, max_size=6)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | words
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.floats(width=32).map(np.float32)
    | st.integers(-100, 100).map(np.int64)
    | st.lists(st.floats(width=32), max_size=4).map(lambda v: np.array(v, dtype=np.float32))
)
metadata_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
metadata = st.dictionaries(names, metadata_values, max_size=4)


class Scored(Document):
    """As document transformers make them: a Document with a state of its own."""

    state: dict[str, Any] = {}  # noqa: RUF012


documents = st.builds(Document, id=st.none() | words, page_content=words, metadata=metadata)
scored = st.builds(Scored, id=st.none() | words, page_content=words, metadata=metadata, state=metadata)

contents = words | st.lists(
    words | st.builds(lambda t: {"type": "text", "text": t}, words) | st.just({"type": "image_url", "image_url": {"url": "data:"}}),
    max_size=3,
)  # fmt: skip
ids = st.none() | words
common: dict[str, Any] = {
    "content": contents,
    "additional_kwargs": metadata | st.builds(lambda d: {"parsed": d}, documents),
    "response_metadata": metadata,
    "id": ids,
    "name": st.none() | names,
}
usage = st.none() | st.builds(
    lambda i, o, d: {"input_tokens": i, "output_tokens": o, "total_tokens": i + o, "input_token_details": d},
    st.integers(0, 9), st.integers(0, 9), st.dictionaries(st.sampled_from(["cache_read", "audio"]), st.integers(0, 9)),
)  # fmt: skip
tool_calls = st.lists(
    st.builds(lambda n, a, i: {"name": n, "args": a, "id": i, "type": "tool_call"}, names, metadata, words), max_size=2
)
call_chunks = st.lists(
    st.builds(lambda n, a, i: {"name": n, "args": a, "id": "1", "index": i, "type": "tool_call_chunk"}, names, words, st.integers(0, 3)),
    max_size=2,
)  # fmt: skip
MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "human": st.builds(messages.HumanMessage, **common),
    "system": st.builds(messages.SystemMessage, **common),
    "ai": st.builds(messages.AIMessage, **common, tool_calls=tool_calls, usage_metadata=usage),
    "tool": st.builds(
        messages.ToolMessage, **common, tool_call_id=words, artifact=st.none() | st.lists(documents, max_size=2) | metadata,
        status=st.sampled_from(["success", "error"]),
    ),
    "function": st.builds(messages.FunctionMessage, **{**common, "name": names}),
    "chat": st.builds(messages.ChatMessage, **common, role=names),
    "remove": words.map(lambda id_: messages.RemoveMessage(id=id_)),
    "human chunk": st.builds(messages.HumanMessageChunk, **common),
    "system chunk": st.builds(messages.SystemMessageChunk, **common),
    "ai chunk": st.builds(
        messages.AIMessageChunk, **common, tool_call_chunks=call_chunks, usage_metadata=usage,
        chunk_position=st.sampled_from([None, "last"]),
    ),
    "tool chunk": st.builds(messages.ToolMessageChunk, **common, tool_call_id=words, artifact=metadata),
    "function chunk": st.builds(messages.FunctionMessageChunk, **{**common, "name": names}),
    "chat chunk": st.builds(messages.ChatMessageChunk, **common, role=names),
}  # fmt: skip
any_message = st.one_of(*MESSAGES.values())


def lost(value: Any) -> str | None:
    """What a value loses on its way, if anything."""
    back = decode(encode(value))
    return difference(value, back) if type(back) is type(value) else f"{type(value)} became {type(back)}"


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_of_every_kind_cross(kind: str) -> None:
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(MESSAGES[kind])
    def each(message: Any) -> None:
        assert lost(message) is None

    each()


def test_there_is_no_kind_of_message_that_these_tests_forgot() -> None:
    known = {type(strategy.example()).__name__ for strategy in MESSAGES.values()}
    kinds = {
        name for name in messages.__all__
        if isinstance(cls := getattr(messages, name), type) and issubclass(cls, messages.BaseMessage)
    }  # fmt: skip
    assert kinds - known == {"BaseMessage", "BaseMessageChunk"}  # abstract


@few
@given(st.lists(documents | scored, max_size=3))
def test_documents_and_their_subclasses_with_state_cross(value: list[Document]) -> None:
    assert lost(value) is None
    assert lost(tuple(value)) is None


@few
@given(st.lists(any_message, min_size=1, max_size=2), words)
def test_what_models_answer_crosses(said: list[Any], text: str) -> None:
    assert lost(ChatPromptValue(messages=said)) is None
    assert lost(StringPromptValue(text=text)) is None
    informed = Generation(text=text, generation_info={"logprobs": (0.5, None)})
    assert lost(LLMResult(generations=[[informed]], llm_output={"n": 1})) is None
    for message in said:
        if isinstance(message, messages.AIMessageChunk):
            assert lost(ChatGenerationChunk(message=message)) is None
        elif isinstance(message, messages.AIMessage):
            dated = ChatGeneration(message=message, generation_info={"at": dt.date(2024, 1, 1)})
            assert lost(ChatResult(generations=[dated])) is None


def test_nodes_queries_and_chat_of_llamaindex_cross() -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    llms = pytest.importorskip("llama_index.core.base.llms.types")
    stores = pytest.importorskip("llama_index.core.vector_stores.types")
    related = st.builds(schema.RelatedNodeInfo, node_id=words, metadata=st.dictionaries(names, words, max_size=2))
    fields: dict[str, Any] = {
        "id_": words,
        "metadata": metadata,
        "embedding": st.none() | st.lists(st.floats(allow_nan=False), max_size=4),
        "excluded_llm_metadata_keys": st.lists(names, max_size=2),
        "relationships": st.dictionaries(st.sampled_from(list(schema.NodeRelationship)), related, max_size=2),
    }
    nodes = (
        st.builds(schema.TextNode, **fields, text=words, start_char_idx=st.none() | st.integers(0, 9))
        | st.builds(schema.ImageNode, **fields, text=words, image_url=st.none() | words)
        | st.builds(schema.IndexNode, **fields, text=words, index_id=words)
        | st.builds(schema.Document, **fields, text=words)
    )
    blocks = st.builds(llms.TextBlock, text=words)
    said = st.builds(
        llms.ChatMessage, role=st.sampled_from(list(llms.MessageRole)), blocks=st.lists(blocks, max_size=2),
        additional_kwargs=metadata,
    )  # fmt: skip
    values = st.one_of(
        nodes,
        st.builds(schema.NodeWithScore, node=nodes, score=st.none() | st.floats()),
        st.builds(schema.QueryBundle, words, embedding=st.none() | st.lists(st.floats(), max_size=3)),
        said,
        st.builds(llms.ChatResponse, message=said, delta=st.none() | words, raw=metadata, additional_kwargs=metadata),
        st.builds(llms.CompletionResponse, text=words, delta=st.none() | words, raw=metadata),
        st.builds(stores.VectorStoreQueryResult, nodes=st.lists(nodes, max_size=2), ids=st.lists(words, max_size=2)),
    )

    @few
    @given(values)
    def each(value: Any) -> None:
        assert lost(value) is None

    each()


def test_sends_commands_and_interrupts_of_langgraph_cross() -> None:
    types = pytest.importorskip("langgraph.types")
    sends = st.builds(types.Send, names, metadata | any_message)
    values = st.one_of(
        sends,
        st.builds(types.Command, update=st.none() | metadata, resume=st.none() | metadata, goto=names | st.lists(sends, max_size=2)),
        st.builds(types.Interrupt, value=metadata, id=words),
        st.builds(lambda d, s: {"documents": d, "next": s}, st.lists(scored, max_size=2), sends),
    )  # fmt: skip

    @few
    @given(values)
    def each(value: Any) -> None:
        assert lost(value) is None

    each()


class PickyError(Exception):
    """The constructor asks for what only the raiser has, by keyword."""

    def __init__(self, message: str, *, response: Any, code: int) -> None:
        super().__init__(message, code)
        self.response = response
        self.code = code


class Outer(PickyError):
    pass


@few
@given(words, metadata_values, st.integers(), st.sampled_from([PickyError, Outer]))
def test_an_error_with_required_arguments_crosses_with_all_that_it_carries(
    text: str, response: Any, code: int, cls: type[PickyError]
) -> None:
    error = cls(text, response=response, code=code)
    with pytest.raises(cls) as caught:
        codec.decode_outcome(codec.encode_outcome(error))
    assert type(caught.value) is cls
    assert difference(error.args, caught.value.args) is None
    assert difference(error.__dict__, caught.value.__dict__) is None


# ---- strict mode


class Forgetful:
    """Loses a field on its way, as ``__getstate__`` of real clients' objects does."""

    def __init__(self) -> None:
        self.kept, self.lost = 1, {"secret": 2}

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.kept}


class Flat(dict[str, Any]):
    def __reduce__(self) -> Any:
        return dict, (dict(self),)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([Forgetful()], r"\[0\]\.lost: builtins.dict|\[0\]\.lost: dict became"),
        ({"a": (Flat(x=1),)}, r"\[str key\]\[0\]: .*Flat became dict"),
    ],
    ids=["a lost field", "a subclass made flat"],
)
def test_strict_mode_refuses_what_would_not_arrive_as_it_was(value: Any, said: str) -> None:
    with pytest.raises(NotExact, match=said) as caught, codec.strict():
        encode(value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, True),
        (1.0, 1),
        ([1], (1,)),
        ({"a": 1}, {"b": 1}),
        ({1: "x"}, {True: "x"}),
        (np.float32(1), np.float64(1)),
        (np.zeros(2), np.zeros((2, 1))),
        (Document(page_content="x"), Scored(page_content="x")),
        (Document(page_content="x", metadata={"a": (1,)}), Document(page_content="x", metadata={"a": [1]})),
        (Document(page_content="x"), Document(page_content="x", id=None)),  # what was set is part of the state
        (ValueError("a"), ValueError("b")),
        (Decimal("1.0"), Decimal("1.00") + 1),
        (UUID(int=1), UUID(int=2)),
    ],
    ids=repr,
)
def test_values_that_differ_in_type_or_content_are_told_apart(before: Any, after: Any) -> None:
    assert difference(before, after) is not None
    assert difference(before, before) is None


def test_an_object_that_holds_itself_is_compared_once() -> None:
    one: list[Any] = []
    one.append(one)
    other: list[Any] = []
    other.append(other)
    assert difference(one, other) is None
