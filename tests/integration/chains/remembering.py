"""A chain that remembers each conversation in its process, and says which process that is. It has no leaves."""

from __future__ import annotations

import os
from typing import Annotated

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict


def joined(before: list[str], now: list[str]) -> list[str]:
    return [*before, *now]


class State(TypedDict, total=False):
    said: Annotated[list[str], joined]
    pid: int


def note(state: State) -> State:
    return {"pid": os.getpid()}


_builder = StateGraph(State)
_builder.add_node("note", note)
_builder.add_edge(START, "note")
_builder.add_edge("note", END)
chain = _builder.compile(checkpointer=InMemorySaver())
