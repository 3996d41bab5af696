"""Where a chain takes the question of a chat, by its schema, and which part of its output is the answer."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough

from kit.gateway import chat_model, rag_chain
from patchwork_serving.gateway.bodies import ChatMessage
from patchwork_serving.gateway.chat import answer_of, chain_input, text_of
from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.shape import Shape

CHAT = [
    ChatMessage(role="system", content="be brief"),
    ChatMessage(role="user", content="hello"),
    ChatMessage(role="assistant", content="hi"),
    ChatMessage(role="user", content="why?"),
]
MESSAGES = [SystemMessage("be brief"), HumanMessage("hello"), AIMessage("hi"), HumanMessage("why?")]


def keys(*names: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {} for name in names}, "required": list(required)}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "why?"),
        ({}, "why?"),  # an untyped chain
        (keys("question"), {"question": "why?"}),
        (keys("lang", "input", required=("input",)), {"input": "why?"}),
        (keys("topic", required=("topic",)), {"topic": "why?"}),  # its only key
        (keys("question", "chat_history"), {"chat_history": MESSAGES[:-1], "question": "why?"}),
        ({"type": "object", "properties": {"messages": {"type": "array"}}}, {"messages": MESSAGES}),
        ({"type": "array", "items": {}}, MESSAGES),
        ({"$ref": "#/$defs/In", "$defs": {"In": keys("query")}}, {"query": "why?"}),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "why?"),
    ],
)
def test_the_question_goes_where_the_schema_says(schema: dict[str, Any], expected: Any) -> None:
    assert chain_input(schema, CHAT) == expected


def test_real_chains_take_their_question() -> None:
    def given(chain: Any) -> Any:
        return chain_input(Shape(chain.get_input_jsonschema()).schema, CHAT)

    history = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{question}")])
    assert given(rag_chain()) == "why?"
    assert given({"question": RunnablePassthrough()} | ChatPromptTemplate.from_template("{question}")) == "why?"
    assert given(history | chat_model()) == {"chat_history": MESSAGES[:-1], "question": "why?"}
    assert given(chat_model()) == MESSAGES


def test_a_chain_with_several_keys_says_which_it_needs() -> None:
    with pytest.raises(InvalidRequest, match="title, body"):
        chain_input(keys("title", "body", required=("title", "body")), CHAT)


def test_text_parts_are_joined_and_others_refused_by_a_chain_of_text() -> None:
    text = {"type": "text", "text": "wh"}
    assert chain_input({}, [ChatMessage(role="user", content=[text, {"type": "text", "text": "y?"}])]) == "why?"
    with pytest.raises(InvalidRequest, match="other parts"):
        chain_input({}, [ChatMessage(role="user", content=[text, {"type": "image_url", "image_url": {"url": "x"}}])])


def test_a_chat_without_a_user_has_no_question() -> None:
    with pytest.raises(InvalidRequest, match="no user message"):
        chain_input({}, CHAT[:1])


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("yes", "yes"),
        (AIMessage("yes"), "yes"),
        (AIMessageChunk([{"type": "text", "text": "yes"}]), "yes"),
        ({"answer": "yes", "context": []}, "yes"),
        ({"messages": [HumanMessage("?"), AIMessage("yes")]}, "yes"),
        ({"agent": {"messages": [AIMessage("yes")]}}, "yes"),  # a LangGraph update
        ({"agent": {"messages": [AIMessage("", tool_calls=[{"name": "s", "args": {}, "id": "1"}])]}}, None),
        ({"tools": {"messages": [ToolMessage("found", tool_call_id="1")]}}, None),
        ({"retrieve": {"documents": [Document("x")]}}, None),
        ({"generate": {"generation": "yes"}}, "yes"),
        (3, None),
    ],
)
def test_the_answer_is_found_in_the_output(output: Any, text: str | None) -> None:
    assert text_of(output) == text


def test_an_output_without_text_is_told_as_json() -> None:
    assert answer_of({"count": 3, "found": True}) == '{"count":3,"found":true}'


def test_a_llama_index_response_prints_as_its_text() -> None:
    schema = pytest.importorskip("llama_index.core.base.response.schema")
    assert answer_of(schema.Response("yes")) == "yes"
