"""A leaf call names its place: the same in every mode and process, with nothing of the request in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters import sites
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.swap import swap
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Walk, find_leaves

SHAPES = Path(__file__).parents[2] / "kit" / "shapes"
pytestmark = pytest.mark.filterwarnings("ignore")


class Here:
    """A transport that runs the user's objects of a second import of the module, and notes where calls come from."""

    def __init__(self, walk: Walk) -> None:
        self.seen: set[str] = set()
        self._runners = {leaf.path: OwnLeafRunner(leaf.obj) for leaf in walk.leaves}

    async def call(self, call: LeafCall) -> bytes:
        self.seen.add(call.site)
        return await self._runners[call.leaf].run(call.method, call.payload)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.seen.add(call.site)
        async for frame in self._runners[call.leaf].stream(call.method, call.payload):
            yield frame


def loaded(shape: str) -> tuple[Any, Walk]:
    target = parse_target(str(SHAPES / shape))
    sys.modules.pop(target.module, None)
    found = load_target(target)
    return found.chain, find_leaves(found.chain, found.module, found.root)


@contextmanager
def swapped(shape: str) -> Iterator[tuple[Any, Here]]:
    _, twin = loaded(shape)
    chain, walk = loaded(shape)
    here = Here(twin)
    assignments = {leaf.path: Assignment(leaf.path, "own") for leaf in walk.leaves if leaf.spec.cut(type(leaf.obj))}
    with Bridge(here) as bridge:
        change = swap(walk.leaves, assignments, bridge)
        follow = sites.install(walk)
        try:
            yield chain, here
        finally:
            follow()
            change.undo()


async def _read(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        pass


def run(work: Any) -> None:
    async def awaited() -> None:
        await work

    with asyncio.Runner() as runner:
        install_portal(runner.get_loop())
        runner.run(awaited())


def sites_of(shape: str, mode: str, given: Any) -> set[str]:
    with swapped(shape) as (chain, here):
        match mode:
            case "invoke":
                chain.invoke(given)
            case "batch":
                chain.batch([given, given])
            case "stream":
                list(chain.stream(given))
            case "ainvoke":
                run(chain.ainvoke(given))
            case "abatch":
                run(chain.abatch([given, given]))
            case "astream":
                run(_read(chain.astream(given)))
            case "astream_events":
                run(_read(chain.astream_events(given, version="v2")))
        return here.seen


FAN_OUT = {
    "store@1/{near}", "memory_store@1/{kept}", "memory_store.embedding@1/{kept}", "chat@3/{short}/2", "other_chat@3/{long}/2",
}  # fmt: skip


@pytest.mark.parametrize("mode", ["invoke", "batch", "stream", "ainvoke", "abatch", "astream", "astream_events"])
def test_steps_and_keys_name_a_place_in_every_mode(mode: str) -> None:
    # the store's own methods are the cut here, so that its embedder works where it does
    assert sites_of("lcel.py:fan_out", mode, "why") == FAN_OUT - {"memory_store.embedding@1/{kept}"}


@pytest.mark.parametrize("mode", ["ainvoke", "abatch", "astream"])
def test_nodes_and_the_users_lines_name_a_place_although_new_tasks_cut_the_stack(mode: str) -> None:
    found = sites_of("graphs.py:crag_graph", mode, {"question": "why apples?"})
    assert found == {"store@retrieve/retrieve:31", "grader@grade/grade:36", "writer@generate/generate:55"}


def test_a_tool_that_a_graph_calls_is_in_its_node() -> None:
    found = sites_of("graphs.py:agent", "ainvoke", {"messages": [["human", "find apples"]]})
    assert found == {"store@tools/look_up:147", "agent.nodes['model'].bound.func::model@model"}


def test_a_class_of_the_users_own_is_told_by_its_lines() -> None:
    found = sites_of("opaque.py:pipeline", "invoke", "why")
    assert found == {"pipeline._Pipeline__retriever@invoke:33", "pipeline._Pipeline__stages[0]@invoke:35"}


def test_a_retry_is_the_same_place_and_a_fallback_is_its_own_leaf_there() -> None:
    assert sites_of("lcel.py:wrappers", "ainvoke", {"question": "hard"}) == {"fragile.bound@2", "chat@2"}


def test_without_an_installation_a_call_carries_its_leaf_and_everything_is_as_it_was() -> None:
    from langchain_core.callbacks import AsyncCallbackManager
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.tracers import context

    before = (
        BaseChatModel.agenerate,
        BaseChatModel.astream,
        AsyncCallbackManager.on_llm_start,
        list(context._configure_hooks),
    )
    _, walk = loaded("lcel.py:simple")
    undo, again = sites.install(walk), sites.install(walk)
    assert BaseChatModel.agenerate is not before[0]
    undo()
    undo()
    assert BaseChatModel.agenerate is not before[0]  # somebody else still wants it
    again()
    assert (
        BaseChatModel.agenerate,
        BaseChatModel.astream,
        AsyncCallbackManager.on_llm_start,
        list(context._configure_hooks),
    ) == before
    assert sites.site_of("chat") == "chat"


async def test_other_handlers_hear_of_a_completion_as_they_did_before() -> None:
    chain, walk = loaded("lcel.py:branch")

    async def events() -> list[str]:
        return [event["event"] async for event in chain.astream_events("neither", version="v2")]

    plain = await events()
    undo = sites.install(walk)
    try:
        assert await events() == plain
    finally:
        undo()
    assert "on_llm_start" in plain


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from test_sites import sites_of
print(sorted(sites_of("graphs.py:crag_graph", "ainvoke", {"question": "list hard bread"})))
"""


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_agree() -> None:
    here = Path(__file__)
    outputs = []
    for seed in ("1", "2"):
        path = os.pathsep.join([str(here.parents[3]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(here.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert "grader@grade/grade:36" in outputs[0]
