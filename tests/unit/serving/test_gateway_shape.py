"""What fits a chain's input, by the schemas that LangChain and LangGraph really give."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langgraph.graph import START, MessagesState, StateGraph

from kit.gateway import chat_model, rag_chain
from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.shape import Shape

MESSAGE = HumanMessage("hi").model_dump()


def graph() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [AIMessage("x")]})
    builder.add_edge(START, "answer")
    return builder.compile()


def shape(chain: Any) -> Shape:
    return Shape(chain.get_input_jsonschema())


@pytest.mark.parametrize(
    ("chain", "value"),
    [
        (rag_chain(), "why?"),
        (chat_model(), "why?"),
        (chat_model(), [MESSAGE]),
        (chat_model(), [{"role": "user", "content": "hi"}]),
        (chat_model(), [["user", "hi"]]),
        (graph(), {"messages": [MESSAGE]}),
        (graph(), {"messages": [{"role": "user", "content": "hi"}]}),  # fits several message types at once
        (ChatPromptTemplate.from_template("{a}"), {"a": "1"}),
        # LangChain's schema says an object with the key "root"
        ({"question": RunnablePassthrough()} | ChatPromptTemplate.from_template("{question}"), "why?"),
    ],
)
def test_what_a_chain_takes_fits_its_shape(chain: Any, value: Any) -> None:
    shape(chain).check(value, "input")


@pytest.mark.parametrize(
    ("chain", "value", "told"),
    [
        (rag_chain(), 3, "input: must be of type string"),
        (chat_model(), {"messages": []}, "input: fits none"),  # no type: it would stay a dict
        (graph(), {"messages": [3]}, "input.messages[0]"),
        (graph(), {"messages": "hi"}, "input.messages: must be of type array"),
        (ChatPromptTemplate.from_template("{a}"), {}, "must have the keys a"),
    ],
)
def test_what_it_does_not_take_is_refused_with_the_place_and_the_rule(chain: Any, value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        shape(chain).check(value, "input")
    assert told in str(refused.value)


def test_a_refusal_does_not_repeat_the_value() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Shape({"enum": ["a"], "pattern": "x"}).check("secret", "input")
    assert "secret" not in str(refused.value)


def test_a_schema_that_is_itself_invalid_checks_nothing() -> None:
    Shape({"type": "nonsense"}).check(3, "input")


def test_no_reference_of_a_schema_is_fetched() -> None:
    Shape({"$ref": "http://127.0.0.1:9/schema.json"}).check(3, "input")
