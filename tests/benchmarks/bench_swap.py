"""What a swap costs: a leaf's call through a transport that does nothing, over the same call of the class as written; and walk and swap.

    python tests/benchmarks/bench_swap.py --passes 5 -o docs/benchmarks/swap.json

``call_us``: medians, taken in turns, and what lies between them: ``over`` is the median, over rounds of a few milliseconds, of the
difference of the two medians in a round, so that a machine that is faster now and then does not count.
``local``: the transport says in the calling thread what it has to say, so
that encoding, finding the call-site and decoding are what a swap adds. ``io_loop``: the transport is asked on the I/O loop, as one that
sends calls to replicas is: the way to that loop's thread and back comes on top.
The machine's speed may change by a factor of two meanwhile: before and after each round a fixed piece of work is timed, and a round was
at full speed when both took at most 15 % more than the fastest tenth of all of them. ``over_full_speed`` is ``over`` of those rounds,
``rounds_full_speed`` how many; null when there was none. ``pace_us``: that work's fastest tenth, and its median.
A stream is also timed to its ``first chunk``, which is when the call has been made; ``per_chunk`` is what each of the others costs.
The transport answers at once with bytes made before. Each call is part of a request with a deadline, and its call-site is followed.
``async``: awaited on a loop; ``thread``: called synchronously in a thread without a loop; ``portal``: called synchronously on a loop whose
tasks have portals. The originals do nothing but answer (``swap_leaves``), but for the exported store, whose search is the
framework's own, and ``ChatOpenAI``, whose client builds and parses HTTP on both sides.
``load_average`` above the number of cores says that others used the machine: medians are then higher than the swap alone makes them.
``over_p10`` compares the tenth percentiles: calls that nobody disturbed. ``cpu_over`` is processor time, of all threads. ``handoff_us``: a
loop in another thread woken and waking its caller, with nothing in between; on an idle virtual machine that alone may take most of the
time. ``codec_us``: there and back. ``site_us``: what finding a call's place takes in chains that run. ``shapes_s``: seconds of processor
time for finding the leaves of a chain and swapping them, classes generated anew, for each shape of tests/kit/shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import inspect
import itertools
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.swap_leaves import ANSWER, ASKED, CASES, CHUNKS, FIRST, FOUND, HTTP_ANSWER, VECTOR, openai_model
from kit.twins import Twins, leaf_of
from patchwork_adapters import binding, codec, sites
from patchwork_adapters import swap as swapping
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.checking.sides import placement_of
from patchwork_adapters.checking.twin import Collections
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.placement import place
from patchwork_adapters.protocol import HttpResponse, encode_response
from patchwork_adapters.stores import export
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves

HERE = Path(__file__).parents[1]
FULL_SPEED = 1.15  #: of the time that the piece of work takes at its fastest


class Turns(NamedTuple):
    """In turns, so that both sides see the same machine."""

    rounds: int
    calls: int


TURNS = Turns(100, 12)
SHORT_TURNS = Turns(150, 6)  #: of calls of milliseconds: the machine has to keep its speed for a round


class Ready:
    """Answers with what the leaf would have returned, encoded before: each call is carried out once, by an object of the same content.

    Asked on the I/O loop.
    """

    def __init__(self, twins: Twins) -> None:
        self._twins = twins
        self._known: dict[str, list[bytes]] = {}

    async def call(self, call: LeafCall) -> bytes:
        known = self._known.get(call.method)
        if known is None:
            known = self._known[call.method] = [await self._twins.call(call)]
        return known[0]

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        known = self._known.get(call.method)
        if known is None:
            known = self._known[call.method] = [frame async for frame in self._twins.stream(call)]
        for frame in known:
            yield frame


class ReadyHere(Ready):
    """The same, in the calling thread."""

    def answer_now(self, call: LeafCall) -> list[bytes] | None:
        return self._known.get(call.method)


@contextmanager
def moved(make: Callable[[], Any], transport: Callable[[Twins], Ready]) -> Iterator[Any]:
    """A swapped leaf, called as part of a request with a deadline, its call-sites known as in a deployed orchestrator."""
    obj = make()
    leaf, twins = leaf_of(obj), Twins()
    if leaf.spec.export is not None:
        twins.stores["store"] = Collections({"store": export(leaf.spec, obj)})
        assignment = Assignment("store", "engine", collection="store")
    else:
        twins.runners["own"] = OwnLeafRunner(make())
        assignment = Assignment("own", "own")
    undo = sites.install(find_leaves(obj, sys.modules[__name__]))
    with Bridge(transport(twins)) as bridge:
        made = swapping.swap([leaf], {"leaf": assignment}, bridge)
        assert made.skipped == []
        try:
            with request_context(RequestContext("request", "run", time.monotonic() + 3600)):
                yield obj
        finally:
            made.undo()
            undo()


@dataclass
class Taken:
    """What calls took, in seconds, round by round; processor time is that of all threads of this process."""

    rounds: list[list[float]] = field(default_factory=list)
    cpu: float = 0.0

    def walls(self) -> list[float]:
        return list(itertools.chain(*self.rounds))

    def per_call_us(self) -> float:
        return self.cpu / sum(map(len, self.rounds)) * 1e6


@dataclass
class Measured:
    """Of the sides that are compared, by name, in turns: "original" is the first."""

    sides: dict[str, Taken]
    paces: list[tuple[float, float]] = field(default_factory=list)  #: before and after each round

    def add(self, other: Measured) -> None:
        """The rounds of another pass."""
        for side, taken in other.sides.items():
            self.sides[side].rounds += taken.rounds
            self.sides[side].cpu += taken.cpu
        self.paces += other.paces


def pace() -> float:
    """Seconds of some fixed work, by which rounds are told apart in which the machine was slow."""
    before = time.perf_counter()
    counts: dict[int, int] = {}
    for n in range(1200):
        counts[n % 16] = counts.get(n % 16, 0) + n
    return time.perf_counter() - before


def timed(call: Callable[[], Any], taken: Taken, calls: int) -> None:
    walls, began = list[float](), time.process_time()
    for _ in range(calls):
        before = time.perf_counter()
        reply = call()
        walls.append(time.perf_counter() - before)
        if inspect.isgenerator(reply):  # the rest of a stream is not asked for
            reply.close()
    taken.cpu += time.process_time() - began
    taken.rounds.append(walls)


async def atimed(call: Callable[[], Awaitable[Any]], taken: Taken, calls: int) -> None:
    walls, began = list[float](), time.process_time()
    for _ in range(calls):
        before = time.perf_counter()
        reply = await call()
        walls.append(time.perf_counter() - before)
        if inspect.isasyncgen(reply):
            await reply.aclose()
    taken.cpu += time.process_time() - began
    taken.rounds.append(walls)


Sides = dict[str, Callable[[], Any]]  #: "original" and what is compared with it
Row = dict[str, Any]


def full_speed(paces: Sequence[tuple[float, float]], fastest: float) -> list[bool]:
    return [max(both) <= FULL_SPEED * fastest for both in paces]


def fastest_tenth(paces: Iterable[tuple[float, float]]) -> float:
    return statistics.quantiles(itertools.chain(*paces), n=10)[0]


def over(plain: Taken, away: Taken, at_full_speed: Sequence[bool]) -> Row:
    each = [statistics.median(b) - statistics.median(a) for a, b in zip(plain.rounds, away.rounds, strict=True)]
    undisturbed = statistics.quantiles(away.walls(), n=10)[0] - statistics.quantiles(plain.walls(), n=10)[0]
    fast = list(itertools.compress(each, at_full_speed))
    return {
        "median": us(statistics.median(away.walls())), "over": us(statistics.median(each)), "over_p10": us(undisturbed),
        "over_full_speed": us(statistics.median(fast)) if fast else None,
        "cpu_over": round(away.per_call_us() - plain.per_call_us(), 1),
    }  # fmt: skip


def us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def row(measured: Measured, fastest: float) -> Row:
    plain, *others = measured.sides
    at_full_speed = full_speed(measured.paces, fastest)
    original = measured.sides[plain]
    return {
        plain: us(statistics.median(original.walls())),
        **{side: over(original, measured.sides[side], at_full_speed) for side in others},
        "rounds_full_speed": sum(at_full_speed),
    }


def in_thread(sides: Sides, turns: Turns = TURNS) -> Measured:
    measured = Measured({side: Taken() for side in sides})
    for _ in range(turns.rounds):
        before = pace()
        for side, call in sides.items():
            timed(call, measured.sides[side], turns.calls)
        measured.paces.append((before, pace()))
    return measured


def on_loop(sides: Sides, turns: Turns = TURNS) -> Measured:
    async def main() -> Measured:
        measured = Measured({side: Taken() for side in sides})
        for _ in range(turns.rounds):
            before = pace()
            for side, call in sides.items():
                await atimed(call, measured.sides[side], turns.calls)
            measured.paces.append((before, pace()))
        return measured

    return asyncio.run(main())


def handoff() -> Measured:
    """The least that a call through a loop in another thread can take on this machine: the loop is woken, and wakes the caller."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def there_and_back() -> None:
        gate = threading.Lock()
        gate.acquire()
        loop.call_soon_threadsafe(gate.release)
        gate.acquire()

    try:
        return in_thread({"original": lambda: None, "io_loop": there_and_back})
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def by_portal(sides: Sides, turns: Turns = TURNS) -> Measured:
    async def work() -> Measured:
        return in_thread(sides, turns)

    async def main() -> Measured:
        install_portal(asyncio.get_running_loop())
        return await asyncio.create_task(work())

    return asyncio.run(main())


def calls(only: str) -> dict[str, Measured]:
    found = {}
    for case in CASES:
        if only not in case.name:
            continue
        with moved(case.make, ReadyHere) as here, moved(case.make, Ready) as away:
            objects = {"original": case.make(), "local": here, "io_loop": away}
            sides = {side: functools.partial(case.call, obj) for side, obj in objects.items()}
            found[f"{case.name}, thread"] = in_thread(sides)
            found[f"{case.name}, portal"] = by_portal(sides)
            if case.acall is not None:
                asides = {side: functools.partial(case.acall, obj) for side, obj in objects.items()}
                found[f"{case.name}, async"] = on_loop(asides)
    return found


def per_chunk(rows: Mapping[str, Row]) -> dict[str, Row]:
    """What each chunk after the first costs over the original's."""
    found: dict[str, Row] = {}
    for name, first in rows.items():
        if FIRST not in name:
            continue
        whole = rows[name.replace(FIRST, "")]
        found[name.replace(FIRST, "")] = {
            side: {
                key: None if None in (whole[side][key], first[side][key])
                else round((whole[side][key] - first[side][key]) / (len(CHUNKS) - 1), 1)
                for key in ("over", "over_p10", "over_full_speed")
            }
            for side in ("local", "io_loop")
        }  # fmt: skip
    return found


class Engine:
    """Answers requests of the protocol, on the I/O loop."""

    reply = encode_response(HttpResponse(200, {"content-type": "application/json"}, HTTP_ANSWER))

    async def call(self, call: LeafCall) -> bytes:
        return self.reply

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        yield self.reply


class EngineHere(Engine):
    """The same, in the calling thread."""

    def answer_now(self, call: LeafCall) -> list[bytes]:
        return [self.reply]


@contextmanager
def cut(model: Any, engine: Engine) -> Iterator[Any]:
    """A ChatOpenAI whose requests go to a component, as :func:`moved`."""
    undo = sites.install(find_leaves(model, sys.modules[__name__]))
    with Bridge(engine) as bridge:
        made = OpenAICut(bridge, lambda base_url, path, model: "llm")
        for client in leaf_of(model).spec.openai_clients(model):
            made.attach(client, "leaf", "llm")
        try:
            with request_context(RequestContext("request", "run", time.monotonic() + 3600)):
                yield model
        finally:
            made.undo()
            undo()


def protocol() -> dict[str, Measured]:
    """Of a client of the OpenAI protocol, whose own transport answers at once as well: client and parsing are on both sides."""
    with cut(openai_model(), EngineHere()) as here, cut(openai_model(), Engine()) as away:
        models = {"original": openai_model(), "local": here, "io_loop": away}
        sides = {side: functools.partial(model._generate, ASKED) for side, model in models.items()}
        asides = {side: functools.partial(model._agenerate, ASKED) for side, model in models.items()}
        return {
            "ChatOpenAI by its protocol, thread": in_thread(sides, SHORT_TURNS),
            "ChatOpenAI by its protocol, portal": by_portal(sides, SHORT_TURNS),
            "ChatOpenAI by its protocol, async": on_loop(asides, SHORT_TURNS),
        }


def encodings() -> dict[str, float]:
    """Seconds of processor time of the codec alone, there and back, in microseconds."""
    found = {}
    for name, value in (("a vector", VECTOR), ("a chat result", ANSWER), ("four documents", FOUND)):
        taken = Taken()
        for _ in range(10):
            timed(lambda value=value: codec.decode(codec.encode(value)), taken, TURNS.calls)  # type: ignore[misc]
        found[name] = us(statistics.median(taken.walls()))
    return found


def places() -> dict[str, dict[str, float]]:
    """Microseconds that a leaf call spends on finding its call-site, in chains that run: median and ninth decile."""
    from unit.adapters.test_sites import swapped

    asked = {
        "LCEL": ("lcel.py:compressed", "why apples?"), "LangGraph": ("graphs.py:crag_graph", {"question": "why apples?"}),
        "LlamaIndex": ("engines.py:reranked", "why apples?"),
    }  # fmt: skip
    found = {}
    site_of, taken = binding.site_of, list[float]()

    def timed_site_of(*args: Any) -> str:
        before = time.perf_counter()
        site = site_of(*args)
        taken.append(time.perf_counter() - before)
        return site

    binding.site_of = timed_site_of
    try:
        for name, (shape, question) in asked.items():
            taken.clear()
            with swapped(shape) as (chain, _):
                for _ in range(TURNS.rounds):
                    (getattr(chain, "invoke", None) or chain.query)(question)
                    asyncio.run((getattr(chain, "ainvoke", None) or chain.aquery)(question))
            found[name] = {
                "p50": round(statistics.median(taken) * 1e6, 1),
                "p90": round(statistics.quantiles(taken, n=10)[-1] * 1e6, 1),
            }
    finally:
        binding.site_of = site_of
    return found


def shapes() -> dict[str, float]:
    from unit.adapters.test_shapes import LANGCHAIN, LLAMAINDEX

    found = {}
    with Bridge(Ready(Twins())) as bridge:
        for shape in (*LANGCHAIN, *LLAMAINDEX):
            loaded = load_target(parse_target(str(HERE / "kit" / "shapes" / shape)))
            swapping._generated.clear()
            gc.collect()  # what this benchmark left: a collection of all of it takes 0.3 s, whichever shape it happens to fall into
            before = time.process_time()
            walk = find_leaves(loaded.chain, loaded.module, loaded.root)
            made = swapping.swap(walk.leaves, place(walk.leaves, placement_of).assignments, bridge)
            found[shape] = round(time.process_time() - before, 4)
            made.undo()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--no-shapes", action="store_true")
    parser.add_argument(
        "--passes", type=int, default=1, help="over all leaves: a slow minute is not all that a leaf sees"
    )
    parser.add_argument("--only", default="", help="leaves with this in their name")
    options = parser.parse_args()
    bare = handoff()
    measured = {**calls(options.only), **protocol()}
    for _ in range(options.passes - 1):
        for name, again in {**calls(options.only), **protocol()}.items():
            measured[name].add(again)
    paces = [pair for each in measured.values() for pair in each.paces]
    fastest = fastest_tenth(paces)
    rows = {name: row(each, fastest) for name, each in measured.items()}
    result: dict[str, Any] = {
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "pace_us": {"fastest_tenth": us(fastest), "median": us(statistics.median(itertools.chain(*paces)))},
        "handoff_us": row(bare, fastest),
        "call_us": rows,
        "per_chunk_us": per_chunk(rows),
        "codec_us": encodings(),
        "site_us": places(),
    }
    if not options.no_shapes:
        seconds = shapes()
        slowest = max(seconds, key=lambda name: seconds[name])
        result["shapes_s"] = {
            "shapes": len(seconds), "median": statistics.median(seconds.values()), "max": seconds[slowest],
            "slowest": slowest,
        }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
