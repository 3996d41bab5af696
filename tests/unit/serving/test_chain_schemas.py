"""A chain is served also where its types give no JSON Schema."""

from __future__ import annotations

import sys
import typing
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph

from patchwork_serving.chains import chain_of
from patchwork_serving.gateway.shape import Shape


class State(typing.TypedDict, total=False):  # which pydantic wants from typing_extensions before Python 3.12
    said: str


def answer(state: State) -> State:
    return {"said": f"{state.get('said')}!"}


async def test_a_graph_whose_state_is_a_typed_dict_of_the_standard_library_is_served() -> None:
    builder = StateGraph(State)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    chain = chain_of(builder.compile(), "langgraph")
    schemas = chain.schemas()
    if sys.version_info < (3, 12):
        assert schemas["input"] == {"title": "Input"}
    Shape(schemas["input"]).check({"said": "a"}, "input")
    assert await chain.invoke({"said": "a"}, None, {}) == {"said": "a!"}


def test_what_has_a_schema_keeps_it_where_something_else_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise TypeError

    runnable = RunnableLambda(lambda text: len(text))
    expected = chain_of(runnable, "langchain").schemas()
    monkeypatch.setattr(type(runnable), "get_output_jsonschema", fails)
    assert chain_of(runnable, "langchain").schemas() == {**expected, "output": {"title": "Output"}}
