"""Streams through the whole stack against the same engine alone, at 1, 64 and 128 requests at once: tokens per second and first tokens.

    python tests/benchmarks/bench_streaming.py -o docs/benchmarks/streaming.json [--slower 20] [--clients 1,64,128] [--rounds 2]

The engine is emulated (a 3B model's time on an H100, times ``--slower``): what is compared is the way of the tokens, not the model. Sides:

``engine``   the engine's own ``generate``, called in this process, with nothing around it
``server``   the engine behind ``patchwork models serve`` and the openai client: as people use an engine without us
``whole``    the same chain in LangServe, one process, its model behind that server
``deployed`` ``patchwork deploy`` of a prompt and a model, ``POST /stream``: proxy, gateway, the user's chain, hop, queue, engine; with one
             ingress replica, or each number of them that ``--ingress`` asks for

Each of N clients asks one question after the other, so that N are always inside; answers have the same length everywhere. A side's tokens
per second count from the first question to the last token, so the start and the end, when the engine is not full, weigh the same for all.
Cores busy are the machine's: when they come near what there is, it is the machine that is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
from baselines.applications import Application
from baselines.systems import Engines, model_server, ours, whole
from openai import AsyncOpenAI

from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_serving.bench.report import percentiles
from patchwork_serving.bench.sse import LangServeEvents
from patchwork_serving.components.emulated_factory import build_emulated
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_profiles import load_profile
from patchwork_serving.components.engine import ContinuousEngine, EngineCall
from patchwork_serving.release import ComponentSpec

PROFILE, MODEL = "llama-3.2-3b-h100", "answerer"
QUESTION = "What does the finally clause of a try statement do?"
TIMEOUT_S = 300.0
DEPLOYED = "deployed, ingress replicas"

#: one answer: what it yields is the moments at which something of it came; the first one is its first token
Ask = Callable[[int], AsyncIterator[None]]


@dataclass(frozen=True)
class Wish:
    n_in: int
    n_out: int
    slower: float

    @property
    def arguments(self) -> dict[str, Any]:
        return {"profile": PROFILE, "n_in": self.n_in, "n_out": self.n_out}

    @property
    def application(self) -> Application:
        return Application("answer", Path(__file__).parent / "chains" / "answer.py", "chain", {MODEL: self.arguments})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--clients", default="1,64,128")
    parser.add_argument(
        "--rounds", type=int, default=3, help="answers that each client asks for (one alone: five times as many)"
    )
    parser.add_argument("--slower", type=float, default=20.0, help="times slower than the H100's profile")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--ingress", default="1", help="numbers of ingress replicas, one deployment after the other")
    options = parser.parse_args()
    wish = Wish(600, options.tokens, options.slower)
    loads = [(int(n), options.rounds * (5 if int(n) == 1 else 1)) for n in options.clients.split(",")]
    sides = {
        "engine": asyncio.run(measured(engine_alone(wish), loads, wish)),
        "server": served(wish, loads),
        "whole": chain_whole(wish, loads),
        **{f"{DEPLOYED}: {n}": deployed(wish, loads, n) for n in map(int, options.ingress.split(","))},
    }
    document = {
        "engines": f"emulated: {PROFILE}, {options.slower:g} times slower", "tokens": {"in": wish.n_in, "out": wish.n_out},
        "by_clients": {str(n): compared({side: found[n] for side, found in sides.items()}) for n, _ in loads},
        "environment": {
            "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    text = json.dumps(document, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    engine, server, chain = (found[side] for side in ("engine", "server", "whole"))
    return {
        **found,
        "compared": {side: over(found[side], engine, server, chain) for side in found if side.startswith(DEPLOYED)},
    }


def over(ours: dict[str, Any], engine: dict[str, Any], server: dict[str, Any], chain: dict[str, Any]) -> dict[str, Any]:
    return {
        "throughput_of_engine": round(ours["tokens_per_s"] / engine["tokens_per_s"], 3),
        "throughput_of_server": round(ours["tokens_per_s"] / server["tokens_per_s"], 3),
        "throughput_of_whole": round(ours["tokens_per_s"] / chain["tokens_per_s"], 3),
        "first_token_later_ms": {
            "than_engine": round(1000 * (ours["first_token_s"]["p50"] - engine["first_token_s"]["p50"]), 1),
            "than_server": round(1000 * (ours["first_token_s"]["p50"] - server["first_token_s"]["p50"]), 1),
        },
    }


def served(wish: Wish, loads: list[tuple[int, int]]) -> dict[int, dict[str, Any]]:
    with model_server(wish.application, Engines(True, wish.slower)) as models:
        return asyncio.run(measured(openai_stream(models.env["OPENAI_BASE_URL"], wish), loads, wish))


def chain_whole(wish: Wish, loads: list[tuple[int, int]]) -> dict[int, dict[str, Any]]:
    with whole(wish.application, Engines(True, wish.slower), workers=1) as system:
        return asyncio.run(measured(sse_stream(system.url), loads, wish))


def deployed(wish: Wish, loads: list[tuple[int, int]], ingress: int) -> dict[int, dict[str, Any]]:
    # nobody is refused and order plays no part: as many are inside as the engine is asked to take
    with ours(
        wish.application,
        Engines(True, wish.slower),
        slo_s=TIMEOUT_S,
        settings={"scheduler": {"admission": "off"}, "ingress_replicas": ingress},
    ) as system:
        return asyncio.run(measured(sse_stream(system.url), loads, wish))


@contextlib.asynccontextmanager
async def engine_alone(wish: Wish) -> AsyncIterator[Ask]:
    rows = load_profile(PROFILE, Path(), "bench").rows
    arguments = {"rows": list(rows), "n_in": wish.n_in, "n_out": wish.n_out, "slower": wish.slower}
    engine = build_emulated(
        ComponentSpec(id="llm", kind="llm", way="protocol", engine="emulated", engine_args=arguments), MODEL
    )
    assert isinstance(engine, EmulatedLlm)
    async with asking(engine, MODEL) as ask:
        yield ask


@contextlib.asynccontextmanager
async def asking(engine: ContinuousEngine, model: str) -> AsyncIterator[Ask]:
    """The engine's own ``generate`` in this process, started for the block."""
    question = [{"role": "user", "content": QUESTION}]
    body = orjson.dumps({"model": model, "messages": question, "stream": True, "temperature": 0})
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, body))

    async def ask(number: int) -> AsyncIterator[None]:
        call = EngineCall(f"call-{number}", "llm", "POST /v1/chat/completions", payload, stream=True)
        frames = engine.generate(call)
        await anext(frames)  # the response's head
        async for _ in frames:
            yield

    await engine.start()
    try:
        yield ask
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def openai_stream(base_url: str, wish: Wish) -> AsyncIterator[Ask]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with AsyncOpenAI(
        base_url=base_url, api_key="unused", timeout=TIMEOUT_S, http_client=httpx.AsyncClient(limits=limits)
    ) as client:

        async def ask(number: int) -> AsyncIterator[None]:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True
            )
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield

        yield ask


@contextlib.asynccontextmanager
async def sse_stream(url: str) -> AsyncIterator[Ask]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:

        async def ask(number: int) -> AsyncIterator[None]:
            async with client.stream("POST", "/stream", json={"input": {"question": QUESTION}}) as response:
                response.raise_for_status()
                watch = LangServeEvents()
                async for block in response.aiter_bytes():
                    watch.feed(block)
                    if watch.first:
                        yield
                if watch.error or not watch.ended:
                    raise RuntimeError(watch.error or "the stream broke off")

        yield ask


async def measured(
    opened: contextlib.AbstractAsyncContextManager[Ask], loads: list[tuple[int, int]], wish: Wish
) -> dict[int, dict[str, Any]]:
    found = {}
    async with opened as ask:
        await asyncio.gather(*(drain(ask(-1 - n)) for n in range(2)))  # connections, caches of the frameworks
        for clients, rounds in loads:
            found[clients] = await one_load(ask, clients, rounds, wish)
            print(clients, found[clients], file=sys.stderr)
    return found


async def drain(answer: AsyncIterator[None]) -> None:
    async for _ in answer:
        pass


async def one_load(ask: Ask, clients: int, rounds: int, wish: Wish) -> dict[str, Any]:
    firsts: list[float] = []
    pieces = 0

    async def client(who: int) -> None:
        nonlocal pieces
        for turn in range(rounds):
            began = time.perf_counter()
            first = None
            async for _ in ask(who * rounds + turn):
                pieces += 1
                first = first or time.perf_counter() - began
            assert first is not None, "an answer without a token"
            firsts.append(first)

    busy = psutil.cpu_times()
    began = time.perf_counter()
    await asyncio.gather(*(client(who) for who in range(clients)))
    took = time.perf_counter() - began
    after = psutil.cpu_times()
    work = sum(getattr(after, kind) - getattr(busy, kind) for kind in ("user", "system", "nice"))
    return {
        "answers": len(firsts), "tokens_per_s": round(len(firsts) * wish.n_out / took, 2),
        "first_token_s": percentiles(firsts), "pieces_per_answer": round(pieces / len(firsts), 1),
        "cores_busy": round(work / took, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
