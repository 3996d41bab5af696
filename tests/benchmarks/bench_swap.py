"""What a swap costs: a leaf's call through a transport that does nothing, over the same call of the class as written; and walk and swap.

    python tests/benchmarks/bench_swap.py -o docs/benchmarks/swap.json

``call_us``: medians of both, taken in turns, and their difference: what encoding, the way to the I/O loop and back, and decoding add.
The transport answers at once with bytes made before. ``async``: awaited on a loop; ``thread``: called synchronously in a thread without
a loop; ``portal``: called synchronously on a loop whose tasks have portals. The work of the original is nothing but its answer.
``load_average`` above the number of cores says that others used the machine: medians are then higher than the swap alone makes them.
``over_p10`` compares the tenth percentiles: calls that nobody disturbed. ``shapes_s``: seconds of processor time for finding the leaves
of a chain and swapping them, classes generated anew, for each shape of tests/kit/shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from patchwork_adapters import codec
from patchwork_adapters import swap as swapping
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.checking.sides import placement_of
from patchwork_adapters.placement import place
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Leaf, find_leaves, spec_for

HERE = Path(__file__).parents[1]
VECTOR = [i / 384 for i in range(384)]
ANSWER = ChatResult(generations=[ChatGeneration(message=AIMessage("a short answer", id="1"))])
ASKED = [HumanMessage(f"{'a passage of the corpus ' * 20} and a question")]
ROUNDS, CALLS = 30, 40  #: in turns, so that both sides see the same machine


class Vectors(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTOR for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return VECTOR

    async def aembed_query(self, text: str) -> list[float]:
        return VECTOR


class Chat(BaseChatModel):
    temperature: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "bench"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ANSWER

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ANSWER


class Immediate:
    """Answers with what the method would have returned, encoded before."""

    def __init__(self) -> None:
        self._replies = {
            "embed_query": codec.encode_outcome(VECTOR), "aembed_query": codec.encode_outcome(VECTOR),
            "_generate": codec.encode_outcome(ANSWER), "_agenerate": codec.encode_outcome(ANSWER),
        }  # fmt: skip

    async def call(self, call: LeafCall) -> bytes:
        return self._replies[call.method]

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        yield self._replies[call.method]


@contextmanager
def moved(obj: Any) -> Iterator[Any]:
    spec = spec_for(type(obj))
    assert spec is not None
    with Bridge(Immediate()) as bridge:
        made = swapping.swap([Leaf("leaf", obj, spec.kind, spec)], {"leaf": Assignment("own", "own")}, bridge)
        yield obj
        made.undo()


def timed(call: Callable[[], Any]) -> list[float]:
    taken = []
    for _ in range(CALLS):
        before = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before)
    return taken


async def atimed(call: Callable[[], Awaitable[Any]]) -> list[float]:
    taken = []
    for _ in range(CALLS):
        before = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - before)
    return taken


def row(plain: list[float], away: list[float]) -> dict[str, float]:
    a, b = statistics.median(plain) * 1e6, statistics.median(away) * 1e6
    undisturbed = (statistics.quantiles(away, n=10)[0] - statistics.quantiles(plain, n=10)[0]) * 1e6
    return {"original": round(a, 1), "swapped": round(b, 1), "over": round(b - a, 1), "over_p10": round(undisturbed, 1)}


def in_thread(plain: Callable[[], Any], away: Callable[[], Any]) -> dict[str, float]:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        taken[0].extend(timed(plain))
        taken[1].extend(timed(away))
    return row(*taken)


def on_loop(plain: Callable[[], Awaitable[Any]], away: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    async def main() -> dict[str, float]:
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            taken[0].extend(await atimed(plain))
            taken[1].extend(await atimed(away))
        return row(*taken)

    return asyncio.run(main())


def by_portal(plain: Callable[[], Any], away: Callable[[], Any]) -> dict[str, float]:
    async def work() -> dict[str, float]:
        return in_thread(plain, away)

    async def main() -> dict[str, float]:
        install_portal(asyncio.get_running_loop())
        return await asyncio.create_task(work())

    return asyncio.run(main())


def calls() -> dict[str, dict[str, float]]:
    with moved(Vectors()) as vectors, moved(Chat()) as chat:
        plain, model = Vectors(), Chat()
        return {
            "embed_query, 384 numbers, thread": in_thread(
                lambda: plain.embed_query("a question"), lambda: vectors.embed_query("a question")
            ),
            "aembed_query, 384 numbers, async": on_loop(
                lambda: plain.aembed_query("a question"), lambda: vectors.aembed_query("a question")
            ),
            "embed_query, 384 numbers, portal": by_portal(
                lambda: plain.embed_query("a question"), lambda: vectors.embed_query("a question")
            ),
            "chat _generate, thread": in_thread(lambda: model._generate(ASKED), lambda: chat._generate(ASKED)),
            "chat _agenerate, async": on_loop(lambda: model._agenerate(ASKED), lambda: chat._agenerate(ASKED)),
            "chat _generate, portal": by_portal(lambda: model._generate(ASKED), lambda: chat._generate(ASKED)),
        }


def encodings() -> dict[str, float]:
    """Seconds of processor time of the codec alone, there and back, in microseconds."""
    documents = [Document(page_content="a passage " * 40, id=str(i), metadata={"n": i, "s": "x"}) for i in range(10)]
    found = {}
    for name, value in (("a vector", VECTOR), ("a chat result", ANSWER), ("ten documents", documents)):
        taken = [timed(lambda value=value: codec.decode(codec.encode(value))) for _ in range(10)]  # type: ignore[misc]
        found[name] = round(statistics.median(t for part in taken for t in part) * 1e6, 1)
    return found


def shapes() -> dict[str, float]:
    from unit.adapters.test_shapes import LANGCHAIN, LLAMAINDEX

    found = {}
    with Bridge(Immediate()) as bridge:
        for shape in (*LANGCHAIN, *LLAMAINDEX):
            loaded = load_target(parse_target(str(HERE / "kit" / "shapes" / shape)))
            swapping._generated.clear()
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
    options = parser.parse_args()
    result: dict[str, Any] = {
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "call_us": calls(),
        "codec_us": encodings(),
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
