"""A thousand requests of many shapes at once on one loop: each leaf call belongs to its request, and none stops the loop."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import Settings

from kit.twins import Twins
from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.checking.sides import placement_of
from patchwork_adapters.checking.twin import Collections
from patchwork_adapters.checking.values import mask, plain
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.placement import place
from patchwork_adapters.stores import export
from patchwork_adapters.swap import swap
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Walk, find_leaves

SHAPES = Path(__file__).parents[2] / "kit" / "shapes"
Ask = Callable[[Any, str], Awaitable[Any]]


async def ainvoke(chain: Any, question: str) -> Any:
    return await chain.ainvoke(question)


async def invoke_in_thread(chain: Any, question: str) -> Any:
    return await asyncio.to_thread(chain.invoke, question)


async def astream(chain: Any, question: str) -> Any:
    return [chunk async for chunk in chain.astream(question)]


async def crag(chain: Any, question: str) -> Any:
    return await chain.ainvoke({"question": question})


async def topics(chain: Any, question: str) -> Any:
    return await chain.ainvoke({"topics": [question, "bread", "jam"]})


async def in_a_thread_of_talk(chain: Any, question: str) -> Any:
    return await chain.ainvoke(question, {"configurable": {"thread_id": str(uuid.uuid4())}})


async def agent(chain: Any, question: str) -> Any:
    return await chain.ainvoke({"messages": [("human", question)]})


async def aquery(chain: Any, question: str) -> Any:
    return await chain.aquery(question)


async def query_in_thread(chain: Any, question: str) -> Any:
    return await asyncio.to_thread(chain.query, question)


async def workflow(chain: Any, question: str) -> Any:
    return await chain.run(query=question)


#: shape, how it is asked, how many of the thousand
MIX: tuple[tuple[str, Ask, int], ...] = (
    ("lcel.py:simple", ainvoke, 150),
    ("lcel.py:simple", invoke_in_thread, 50),
    ("lcel.py:fan_out", ainvoke, 130),  # InMemoryVectorStore searches synchronously in its asynchronous methods
    ("lcel.py:branch", astream, 150),
    ("lcel.py:compressed", ainvoke, 30),
    ("opaque.py:decorated", ainvoke, 100),
    ("graphs.py:crag_graph", crag, 30),
    ("graphs.py:map_reduce", topics, 40),
    ("graphs.py:functional", in_a_thread_of_talk, 40),
    ("graphs.py:agent", agent, 20),
    ("engines.py:compact", aquery, 80),
    ("engines.py:compact", query_in_thread, 30),
    ("engines.py:own_retriever", aquery, 80),  # the base class's _aretrieve is the synchronous one
    ("engines.py:multi_step", aquery, 20),  # synchronous inside
    ("engines.py:retry", aquery, 20),  # synchronous inside
    ("engines.py:sub_question", aquery, 10),
    ("engines.py:workflow", workflow, 20),
)
QUESTIONS = ("why apples?", "list hard bread", "what of dates and jam?")


@dataclass(frozen=True, slots=True)
class Deployed:
    chains: dict[str, Any]
    cluster: Twins
    bridge: Bridge


def carried_out(cluster: Twins, shape: str, walk: Walk) -> dict[str, Assignment]:
    """The leaves of a second import take the calls."""
    assignments = {}
    for path, assignment in place(walk.leaves, placement_of).assignments.items():
        leaf, name = walk.leaf(path), f"{shape}/{path}"
        if assignment.way == "engine":
            cluster.stores[name] = Collections({name: export(leaf.spec, leaf.obj)})
        else:
            cluster.runners[name] = OwnLeafRunner(leaf.obj)
        assignments[path] = Assignment(name, assignment.way, collection=name)
    return assignments


@pytest.fixture(scope="module")
def imported() -> Iterator[Deployed]:
    """Every shape swapped, its leaves' calls carried out by those of a second import."""
    cluster, chains, made = Twins(), dict[str, Any](), []
    path, modules, settings = list(sys.path), dict(sys.modules), dict(vars(Settings))
    with Bridge(cluster) as bridge:
        for shape in dict.fromkeys(name for name, _, _ in MIX):
            for twin in (True, False):
                sys.modules.pop(shape.split(".")[0], None)
                loaded = load_target(parse_target(str(SHAPES / shape)))
                walk = find_leaves(loaded.chain, loaded.module, loaded.root)
                if twin:
                    assignments = carried_out(cluster, shape, walk)
                    continue
                made.append(swap(walk.leaves, assignments, bridge))
                chains[shape] = loaded.chain
        yield Deployed(chains, cluster, bridge)
        for one in made:
            one.undo()
    vars(Settings).update(settings)  # a shape sets the framework's defaults
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        if getattr(sys.modules[name], "__file__", None) and str(SHAPES) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def deployed(imported: Deployed) -> Iterator[Deployed]:
    imported.cluster.calls.clear()
    imported.bridge.blocking.clear()
    yield imported
    imported.bridge._transport = imported.cluster


async def ask(deployed: Deployed, request_id: str, shape: str, how: Ask, question: str) -> None:
    with request_context(RequestContext(request_id, request_id)):
        await how(deployed.chains[shape], question)


def calls_by_request(deployed: Deployed, seen: dict[bytes, str]) -> dict[str, Counter[tuple[str, str, str]]]:
    """What each request asked of the leaves; ids that differ from run to run are blanked. ``seen`` keeps what was decoded."""
    found: dict[str, Counter[tuple[str, str, str]]] = {}
    for call in deployed.cluster.calls:
        key = hashlib.sha256(call.payload).digest()
        if key not in seen:
            seen[key] = repr(mask(plain(codec.decode(call.payload)), frozenset()))
        request_id = call.request.request_id if call.request is not None else "nobody's"
        found.setdefault(request_id, Counter())[call.component, call.method, seen[key]] += 1
    deployed.cluster.calls.clear()
    return found


async def test_a_thousand_requests_at_once_keep_apart_and_none_stops_the_loop(deployed: Deployed) -> None:
    loop, seen = asyncio.get_running_loop(), dict[bytes, str]()
    install_portal(loop)
    # as the orchestrator's: synchronous functional graphs wait, in one thread of the loop, for work in another
    loop.set_default_executor(ThreadPoolExecutor(256))
    kinds = [(i, question) for i in range(len(MIX)) for question in QUESTIONS]
    for i, question in kinds:  # each by itself: the calls that belong to it
        shape, how, _ = MIX[i]
        await asyncio.create_task(ask(deployed, f"{i} {question}", shape, how, question))
    alone = calls_by_request(deployed, seen)
    assert set(alone) == {f"{i} {question}" for i, question in kinds}

    requests = {}
    for i, (_, _, count) in enumerate(MIX):
        for n in range(count):
            requests[str(uuid.uuid4())] = (i, QUESTIONS[n % len(QUESTIONS)])
    assert len(requests) == 1000
    order = list(requests)
    random.Random(0).shuffle(order)
    tasks = [
        asyncio.create_task(ask(deployed, id_, *MIX[requests[id_][0]][:2], requests[id_][1]), name=id_) for id_ in order
    ]
    await asyncio.gather(*tasks)
    loop.set_task_factory(None)

    together = calls_by_request(deployed, seen)
    assert set(together) == set(requests)  # a call without a request would be nobody's
    for id_, (i, question) in requests.items():
        assert together[id_] == alone[f"{i} {question}"], (MIX[i][0], question)
    assert (
        deployed.bridge.blocking[threading.get_ident()] == 0
    )  # other threads have loops of their own, one for each request


async def test_a_call_that_stops_a_loop_is_counted(deployed: Deployed) -> None:
    """On a loop without portals: the count of the test above could not be zero by itself."""
    await deployed.chains["engines.py:multi_step"].aquery("why apples?")
    assert deployed.bridge.blocking[threading.get_ident()] > 0


class Rendezvous(Twins):
    """No call is carried out before the same one of the other request is there: a loop that stands still would never see it."""

    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self.runners, self.stores = twins.runners, twins.stores
        self._arrived: dict[Any, asyncio.Event] = {}
        self._made: Counter[Any] = Counter()

    async def call(self, call: LeafCall) -> bytes:
        assert call.request is not None
        asked = (call.component, call.method, call.payload)
        self._made[call.request.request_id, asked] += 1
        turn = (asked, self._made[call.request.request_id, asked])
        if turn in self._arrived:
            self._arrived.pop(turn).set()
        else:
            other = self._arrived[turn] = asyncio.Event()
            async with asyncio.timeout(30):
                await other.wait()
        return await super().call(call)


LISTED = (
    "lcel.py:fan_out",
    "engines.py:multi_step",
    "engines.py:retry",
    "engines.py:own_retriever",
    "engines.py:workflow",
)


@pytest.mark.parametrize("shape", LISTED)
async def test_of_two_requests_neither_waits_for_the_other(deployed: Deployed, shape: str) -> None:
    """Shapes whose asynchronous methods call synchronously, or wait for a thread, on the loop."""
    loop = asyncio.get_running_loop()
    install_portal(loop)
    how = next(how for name, how, _ in MIX if name == shape)
    meeting = Rendezvous(deployed.cluster)
    deployed.bridge._transport = meeting
    for question in QUESTIONS:
        both = (f"{name} {question}" for name in ("one", "other"))
        await asyncio.gather(*(asyncio.create_task(ask(deployed, id_, shape, how, question)) for id_ in both))
    loop.set_task_factory(None)
    assert len(meeting.calls) >= 4
