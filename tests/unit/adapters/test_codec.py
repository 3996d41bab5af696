"""Values cross process boundaries exactly: equal, and of the same type."""

from __future__ import annotations

import datetime as dt
import math
import struct
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import msgpack
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.indices.document_summary.base import DocumentSummaryRetrieverMode
from llama_index.core.indices.list.base import ListRetrieverMode
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode, VectorStoreQueryResult
from pydantic import Field

from patchwork_adapters.aliasing import Ref
from patchwork_adapters.codec import decode, decode_outcome, encode, encode_outcome
from patchwork_adapters.errors import CodecError, DeadlinePassed
from patchwork_adapters.exact import difference

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(ZoneInfo("Europe/Berlin")))
    | st.timedeltas()
    | st.complex_numbers(allow_nan=False)
)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(keys, inner)
        | st.lists(inner).map(tuple)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


@settings(deadline=None)
@given(values)
def test_what_is_decoded_is_what_was_encoded(value: Any) -> None:
    assert same(decode(encode(value)), value)


@settings(deadline=None)
@given(values)
def test_plain_values_need_no_pickle(value: Any) -> None:
    assert same(decode(encode(value, allow_pickle=False), allow_pickle=False), value)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((0, 4), dtype=np.int8),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)).copy(order="C"),
        np.array(5.5),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.datetime64("2024-05-01"),
        np.array(["a", "bcd"]),
    ],
    ids=lambda v: f"{type(v).__name__}-{v.dtype}",
)
def test_numpy_keeps_dtype_and_shape(value: Any) -> None:
    back = decode(encode(value, allow_pickle=False), allow_pickle=False)
    assert type(back) is type(value)
    assert same(np.asarray(back), np.asarray(value))


def test_decoded_arrays_can_be_written_to() -> None:
    array = decode(encode(np.zeros(3)))
    array[0] = 1.0
    assert array.tolist() == [1.0, 0.0, 0.0]


class Scored(Document):
    """As document transformers make them: a Document with a state of its own."""

    state: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "value",
    [
        Document(page_content="x", id="1", metadata={"when": dt.date(2024, 1, 1), "at": (1, 2), "n": np.float64(0.5)}),
        Scored(page_content="x", state={"embedded_doc": [0.1], "score": np.float64(0.3)}),
        HumanMessage([{"type": "text", "text": "x"}], additional_kwargs={"parsed": Document(page_content="y")}),
        AIMessage("x", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}], response_metadata={"logprobs": None}),
        AIMessageChunk("x", chunk_position="last"),
        ToolMessage("x", tool_call_id="1", artifact=[Document(page_content="y")]),
        ChatResult(generations=[ChatGeneration(message=AIMessage("x"))], llm_output={"model": "m"}),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_langchain_objects_keep_class_and_state(value: Any) -> None:
    back = decode(encode(value))
    assert type(back) is type(value)
    assert back == value
    assert back.model_fields_set == value.model_fields_set


def test_llamaindex_objects_keep_class_and_state() -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    types = pytest.importorskip("llama_index.core.vector_stores.types")
    node = schema.TextNode(
        id_="1",
        text="x",
        metadata={"a": 1},
        relationships={schema.NodeRelationship.SOURCE: schema.RelatedNodeInfo(node_id="d")},
    )
    for value in (
        node,
        schema.NodeWithScore(node=node, score=0.5),
        schema.QueryBundle("q", embedding=[0.5]),
        types.VectorStoreQuery(query_embedding=[0.1], mode=types.VectorStoreQueryMode.MMR),
        types.VectorStoreQueryResult(ids=["1"], similarities=[0.5]),
    ):
        back = decode(encode(value))
        assert type(back) is type(value)
        assert back == value


def test_nan_and_infinity_travel() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode([math.inf, -math.inf])) == [math.inf, -math.inf]


def test_unknown_objects_are_refused_without_pickle_and_named_by_type_only() -> None:
    with pytest.raises(CodecError, match="Secretive") as caught:
        encode({"a": [Secretive("hunter2")]}, allow_pickle=False)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(CodecError, match="not allowed"):
        decode(encode(Secretive("x")), allow_pickle=False)


class Secretive:
    def __init__(self, word: str) -> None:
        self.word = word

    def __repr__(self) -> str:
        return self.word


def test_what_cannot_be_sent_at_all_is_an_error_that_names_the_type() -> None:
    with pytest.raises(CodecError, match="function"):
        encode(lambda: None)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", encode(1) + b"x", b"\x00\x01"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data) if data != b"\x00\x01" else decode_outcome(b"\x07")


class PickyError(Exception):
    """As clients write them: the constructor wants what only the raiser has."""

    def __init__(self, message: str, *, response: object, code: int) -> None:
        super().__init__(message)
        self.response = response
        self.code = code


def outcome_of(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        decode_outcome(encode_outcome(error))
    return caught.value


def test_exceptions_arrive_as_their_class_with_arguments_and_attributes() -> None:
    error = PickyError("no", response="r", code=7)
    error.add_note("while testing")
    back = outcome_of(error)
    assert (back.args, back.__dict__["code"], back.__notes__) == (("no",), 7, ["while testing"])


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        KeyError("k"),
        ValueError(),
        ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
        DeadlinePassed("late"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_builtin_exceptions_keep_everything(error: BaseException) -> None:
    back = outcome_of(error)
    assert str(back) == str(error)
    assert repr(back) == repr(error)
    if isinstance(error, FileNotFoundError):
        assert back.filename == "a.txt"  # type: ignore[attr-defined]


def test_an_exception_loses_an_attribute_that_cannot_travel_but_not_its_class() -> None:
    error = ValueError("x")
    error.handle = lambda: None  # type: ignore[attr-defined]
    assert outcome_of(error).__dict__ == {"handle": "<builtins.function>"}


def test_a_clients_exception_travels_without_its_api_key() -> None:
    request = httpx.Request("POST", "https://user:pw@host/v1", headers={"Authorization": "Bearer sk-secret"})
    response = httpx.Response(429, request=request, text="slow down", headers={"retry-after": "1", "set-cookie": "s=1"})
    data = encode_outcome(openai.RateLimitError("slow", response=response, body=None))
    for secret in (b"sk-secret", b"pw@", b"s=1"):
        assert secret not in data
    with pytest.raises(openai.RateLimitError) as caught:
        decode_outcome(data)
    assert caught.value.status_code == 429
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.response.text == "slow down"


def test_values_that_compare_equal_but_differ_stay_apart() -> None:
    value = [1, 1.0, True, Decimal(1), "1", b"1", UUID(int=1)]
    assert [type(v) for v in decode(encode(value))] == [type(v) for v in value]


def test_an_error_from_outside_names_no_function_to_call() -> None:
    kind = encode_outcome(ValueError())[:1]
    state = [[["builtins", "eval"], ["builtins", "ValueError"]], ["1/0"], {}, []]
    with pytest.raises(ValueError, match="1/0"):  # eval would have raised ZeroDivisionError
        decode_outcome(kind + encode(state), allow_pickle=False)
    foreign = [[["subprocess", "CalledProcessError"]], [1, "x"], {}, []]
    with pytest.raises(CodecError):
        decode_outcome(kind + encode(foreign), allow_pickle=False)


def test_what_frameworks_hand_out_needs_no_pickle() -> None:
    """Texts with methods of their own and dataclasses: they would cost a pickle in each answer, and telemetry could not read them."""
    answer = ChatGeneration(message=AIMessage("hi"))
    assert type(answer.text) is not str
    found = VectorStoreQueryResult([TextNode(id_="a", text="x", embedding=[0.5])], [0.25], ["a"])
    asked = VectorStoreQuery(query_embedding=[0.5], mode=VectorStoreQueryMode.HYBRID)
    for value in (answer, answer.text, found, asked):
        back = decode(encode(value, allow_pickle=False), allow_pickle=False)
        assert difference(value, back) is None


SHAPE = 34


def shape(*parts: Any) -> msgpack.ExtType:
    return msgpack.ExtType(SHAPE, msgpack.packb(parts))


@pytest.mark.parametrize("forged", [
    {shape("llama_index.core.schema", "TextNode", [], {}): []},  # a model, no dataclass
    {shape("langchain_core.messages.base", "BaseMessage"): "x"},  # no text
    {shape("langchain_core.messages.base", "TextAccessor"): None},
    {shape("langchain_core.messages.base", "TextAccessor"): []},
    {shape("dataclasses", "Field", [], {}): []},
    {shape("subprocess", "Popen", ["args"], {}, [], True, True): ["true"]},
    {shape("llama_index.core.vector_stores.types", "VectorStoreQuery", [], {}, [], True, True): []},  # no model
    {shape("llama_index.core.schema", "TextNode", [], {}, [], True): []},
    {shape("llama_index.core.schema", "TextNode", ["text"], {}, [], True, True): []},  # a value too few
    {shape("llama_index.core.schema", "TextNode", ["text"], {"text": ""}, [], True, True): ["x"]},  # one too many
    {shape("llama_index.core.schema", "TextNode", ["metadata"], {"metadata": {}}, [], True, True): []},  # nodes would share it
    {shape("llama_index.core.schema", "QueryBundle", ["query_str"], {}): None},
])  # fmt: skip
def test_a_name_from_outside_is_that_of_the_kind_of_class_that_it_is_said_to_be(forged: Any) -> None:
    with pytest.raises(CodecError):
        decode(msgpack.packb(forged), allow_pickle=False)


def test_members_of_different_enumerations_that_are_equal_stay_apart() -> None:
    members = [DocumentSummaryRetrieverMode.EMBEDDING, ListRetrieverMode.EMBEDDING]
    assert members[0] == members[1]
    assert [type(member) for member in decode(encode(members))] == [type(member) for member in members]


def test_models_made_with_other_arguments_say_so_after_the_way() -> None:
    plain, given = TextNode(text="x"), TextNode(text="x", metadata={})
    plain.id_ = given.id_ = "1"
    back = [decode(encode(node)) for node in (plain, given)]
    assert [sorted(node.model_fields_set) for node in back] == [["id_", "text"], ["id_", "metadata", "text"]]
    back[0].metadata = {"changed": True}  # what one of them is told later, no other is
    assert sorted(decode(encode(plain)).model_fields_set) == ["id_", "text"]


@given(st.integers(0, 3), st.sampled_from(["", "x"]), st.booleans())
def test_fields_keep_their_order_and_what_they_hold(turn: int, text: str, is_own: bool) -> None:
    node = TextNode(id_="1", text=text, metadata_template="".join(["{key}", ": {value}"]) if is_own else "{key}")
    items = list(vars(node).items())
    object.__setattr__(node, "__dict__", dict(items[turn:] + items[:turn]))
    once = decode(encode(node))
    twice = decode(encode(once))
    assert list(vars(once).items()) == list(vars(twice).items()) == items[turn:] + items[:turn]


def test_objects_made_of_one_shape_share_nothing_that_can_change() -> None:
    one, other = decode(encode([AIMessage("x", id="1"), AIMessage("x", id="1")]))
    one.tool_calls.append("changed")
    one.additional_kwargs["changed"] = one.response_metadata["changed"] = True
    one.model_fields_set.add("name")
    assert other == AIMessage("x", id="1")
    assert decode(encode(AIMessage("x", id="1"))) == other
    assert other.model_fields_set == {"content", "id"}


@pytest.mark.parametrize("key", [(1, 2), 2**70, 1.5, None, True, b"x", frozenset({1}), dt.date(2026, 1, 2)])
def test_keys_are_what_they_were(key: Any) -> None:
    for value in ({key: [key]}, [{"a": {key: 1}}], AIMessage("x", additional_kwargs={"a": {key: 1}})):
        assert difference(value, decode(encode(value))) is None


def test_vectors_are_found_where_they_are_usual() -> None:
    vector = [float(n) for n in range(64)]
    for value in (vector, [vector, vector], {"a": [vector]}, (vector,), TextNode(text="x", embedding=vector)):
        data = encode(value)
        assert difference(value, decode(data)) is None
        assert len(data) < 2000
        assert struct.pack("<64d", *vector) in data


def test_our_own_marks_are_not_taken_from_outside() -> None:
    marked = encode([Ref(3)])
    assert decode(marked) == [Ref(3)]
    with pytest.raises(CodecError):
        decode(marked, allow_pickle=False)
    with pytest.raises(CodecError):
        encode([Ref(3)], allow_pickle=False)
