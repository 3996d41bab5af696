"""Bound methods of a leaf, taken before it was swapped, go where the leaf's calls go; and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool

from kit.twins import Twins
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.swap import swap
from patchwork_adapters.walk import find_leaves


class Lengths(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The length of a text."""
        return [float(len(text))]


class Slotted:
    __slots__ = ("method",)

    def __init__(self, method: Any) -> None:
        self.method = method

    def __call__(self, text: str) -> Any:
        return self.method(text)


def in_closure(method: Any) -> Any:
    return lambda text: method(text)


def in_default(method: Any) -> Any:
    def ask(text: str, *, how: Any = method) -> Any:
        return how(text)

    return ask


def in_list(method: Any) -> Any:
    methods = [{"embed": method}]
    return lambda text: methods[0]["embed"](text)


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "a runnable": lambda method: RunnableLambda(method).invoke,
    "a tool": lambda method: StructuredTool.from_function(method, name="lengths").invoke,
    "a partial": functools.partial,
    "a closure": in_closure,
    "a default": in_default,
    "a list of dicts": in_list,
    "a slot": Slotted,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_method_taken_before_the_swap_calls_the_component(hold: Callable[[Any], Any]) -> None:
    leaf, twins = Lengths(), Twins()
    twins.runners["own"] = OwnLeafRunner(Lengths())
    chain = hold(leaf.embed_query)
    walk = find_leaves(chain)
    (found,) = walk.leaves
    with Bridge(twins) as bridge:
        made = swap(walk.leaves, {found.path: Assignment("own", "own")}, bridge)
        assert made.skipped == []
        assert chain("four") == [4.0]
        assert [call.method for call in twins.calls] == ["embed_query"]
        made.undo()
        assert chain("four") == [4.0]
    assert len(twins.calls) == 1


def test_a_tuple_keeps_what_it_holds_and_that_is_told() -> None:
    leaf, twins = Lengths(), Twins()
    methods = (leaf.embed_query,)
    walk = find_leaves(lambda text: methods[0](text))
    with Bridge(twins) as bridge:
        made = swap(walk.leaves, {walk.leaves[0].path: Assignment("own", "own")}, bridge)
        assert "a tuple holds its embed_query" in made.skipped[0].why
        made.undo()


def test_a_method_taken_during_a_swap_works_after_it() -> None:
    leaf, twins = Lengths(), Twins()
    twins.runners["own"] = OwnLeafRunner(Lengths())
    walk = find_leaves(RunnableLambda(lambda text: leaf.embed_query(text)))
    with Bridge(twins) as bridge:
        made = swap(walk.leaves, {walk.leaves[0].path: Assignment("own", "own")}, bridge)
        taken = leaf.embed_query
        made.undo()
    assert taken("four") == [4.0]
