"""Values to JSON and back, compared with LangServe's own serializer."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langserve.serialization import WellKnownLCSerializer

from kit.gateway import chat_model, client, gateway
from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.serialize import dumps, loads, plain, revive

WELL_KNOWN = [
    HumanMessage("hi"),
    AIMessage("", tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "1"}]),
    AIMessageChunk("he"),
    SystemMessage("be brief"),
    ToolMessage("found", tool_call_id="1"),
    Document("text", id="d1", metadata={"n": 1}),
    StringPromptValue(text="hi"),
    ChatGeneration(message=AIMessage("x")),
    {"answer": "x", "context": [Document("text")]},
    [HumanMessage("hi"), "plain", 1, None],
]


@pytest.mark.parametrize("value", WELL_KNOWN, ids=lambda value: type(value).__name__)
def test_values_are_written_and_read_as_langserve_does(value: Any) -> None:
    langserve = WellKnownLCSerializer()
    assert json.loads(dumps(value)) == json.loads(langserve.dumps(value))
    assert revive(loads(dumps(value))) == langserve.loads(dumps(value)) == value


def test_a_prompt_value_is_written_as_langserve_does() -> None:
    value = ChatPromptValue(messages=[HumanMessage("hi")])
    assert plain(value) == WellKnownLCSerializer().dumpd(value)


def test_a_dict_that_only_looks_like_a_message_stays_a_dict() -> None:
    for value in ({"type": "human", "age": 3}, {"type": ["human"]}, {"type": "constructor", "id": ["os", "system"]}):
        assert revive(value) == value


@pytest.mark.parametrize("message", [
    {"type": "ai", "content": "", "tool_calls": [{"name": "f", "args": {}, "id": "1", "more": 1}]},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "args": {}, "id": "1", "more": 1}]},
    {"type": "ai", "content": "", "invalid_tool_calls": [1]},
])  # fmt: skip
async def test_a_message_that_langchain_makes_none_of_is_refused_by_a_chain_of_messages(message: Any) -> None:
    assert revive(message) == message  # elsewhere it is data
    async with client(gateway(chat_model())) as http:
        answer = await http.post("/invoke", json={"input": [{"type": "human", "content": "x"}, message]})
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["message"].startswith("input[1]: ")
        good = {**message, "tool_calls": [], "invalid_tool_calls": []}
        assert (await http.post("/invoke", json={"input": [good]})).status_code == 200


def test_arrays_times_and_numbers_have_their_plain_forms() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    value = {
        "vector": np.array([1.5, 2.0], np.float32),
        "strided": np.arange(6)[::2],
        "scalar": np.float64(0.5),
        "when": moment,
        "id": UUID(int=1),
        "price": Decimal("1.10"),
        "set": {1},
        3: "key",
    }
    assert plain(value) == {
        "vector": [1.5, 2.0],
        "strided": [0, 2, 4],
        "scalar": 0.5,
        "when": "2026-01-02T03:04:05+00:00",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "1.10",
        "set": [1],
        "3": "key",
    }


def test_what_has_no_json_form_is_named_and_not_shown() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "password=1"

    shown = plain({"a": Secret(), "b": 1})
    assert shown["a"]["type"] == "not_serializable"
    assert "password" not in str(shown)
    assert shown["b"] == 1


def test_what_json_cannot_hold_does_not_fail_the_answer() -> None:
    circle: dict[str, Any] = {"text": "bad \ud800 half", "big": 2**80, "items": (1, 2)}
    circle["self"] = circle
    written = plain(circle)
    assert written["text"] == "bad ? half"
    assert written["big"] == str(2**80)
    assert written["items"] == [1, 2]


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": NaN}', b'"\xff"', b"[" * 2000 + b"]" * 2000])
def test_malformed_json_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        loads(body)


def test_json_nested_too_deeply_is_invalid() -> None:
    assert loads(b"[" * 50 + b"]" * 50)
    with pytest.raises(InvalidRequest, match="64 levels"):
        loads(b"[" * 100 + b"]" * 100)


def test_a_llama_index_response_has_its_nodes_with_scores() -> None:
    schema = pytest.importorskip("llama_index.core.base.response.schema")
    nodes = pytest.importorskip("llama_index.core.schema")
    node = nodes.NodeWithScore(node=nodes.TextNode(id_="n1", text="passage", metadata={"page": 2}), score=0.5)
    assert plain(schema.Response("yes", [node], {"n1": {"page": 2}})) == {
        "response": "yes",
        "source_nodes": [{"id": "n1", "text": "passage", "score": 0.5, "metadata": {"page": 2}}],
        "metadata": {"n1": {"page": 2}},
    }
