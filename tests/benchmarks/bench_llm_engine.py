"""The engines for CPUs alone, by configuration: what the demo chain's speed can be at most, whatever is built around it.

    python tests/benchmarks/bench_llm_engine.py --rounds 3 -o docs/benchmarks/llm_engine.json

Prompts of the demo chain's form (three passages and a question, none twice), answers of 64 forced tokens. ``lone`` is what a plain
single-sequence llama.cpp server is by default; ``lone-as-ours`` the same with our engine's settings. The lone ones get one prompt at a
time, all others 16. Every round starts each configuration once, in turns, so that what else runs on the machine falls on all; medians
over the rounds.

CPU seconds are those of this process: of the engine, and of the HTTP between it and llama.cpp. Prefill is measured by answers of one token,
decoding by what 63 more cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_serving.components.engine import ContinuousEngine, EngineCall
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions, available_cores
from patchwork_serving.components.openvino_engine import OpenVinoEngine, OpenVinoOptions
from patchwork_serving.config import Paths
from patchwork_serving.models.fetch import files_of

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
ROUTE = "/v1/chat/completions"
AT_ONCE = 16
PASSAGES = 3
ANSWER = 64  #: tokens
SYSTEM = "Answer the question about Python in one or two sentences, using only the context."  #: the example's own

CORES = available_cores()
CONFIGURATIONS: dict[str, LlamaCppOptions | OpenVinoOptions] = {
    "lone": LlamaCppOptions(slots=1, shards=1, threads=CORES, flash_attention=True),
    "lone-as-ours": LlamaCppOptions(slots=1, shards=1, threads=CORES),
    "lone-one-thread": LlamaCppOptions(slots=1, shards=1, threads=1, flash_attention=True),
    "default": LlamaCppOptions(slots=AT_ONCE),
    "flash": LlamaCppOptions(slots=AT_ONCE, flash_attention=True),
    "one-server": LlamaCppOptions(slots=AT_ONCE, shards=1, threads=CORES),
    "ubatch-128": LlamaCppOptions(slots=AT_ONCE, n_ubatch=128),
    "openvino-lone": OpenVinoOptions(slots=1),
    "openvino": OpenVinoOptions(slots=AT_ONCE),
    "openvino-256": OpenVinoOptions(slots=AT_ONCE, n_batch=256),
    "openvino-inexact": OpenVinoOptions(slots=AT_ONCE, exact=False),
}


@dataclass(frozen=True)
class Load:
    """What a number of requests cost, and the tokens that they really prefilled and decoded."""

    requests: int
    prefilled: int
    decoded: int
    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Figures:
    prefill_cpu_ms: float  #: per token
    decode_cpu_ms: float  #: per token
    request_cpu_s: float  #: prefill and 64 tokens
    requests_per_s: float

    @classmethod
    def of(cls, short: Load, whole: Load) -> Figures:
        prefill = short.cpu_s / short.prefilled
        decode = max(0.0, whole.cpu_s - prefill * whole.prefilled) / (whole.decoded - whole.requests)
        return cls(
            round(1000 * prefill, 2),
            round(1000 * decode, 2),
            round(whole.cpu_s / whole.requests, 3),
            round(whole.requests / whole.wall_s, 3),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--configurations", default=",".join(CONFIGURATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=AT_ONCE, help="per measurement; lone ones get a quarter")
    options = parser.parse_args()
    names = options.configurations.split(",")
    found: dict[str, list[Figures]] = {name: [] for name in names}
    asked = prompts()
    for _ in range(options.rounds):
        for name in names:
            figures = asyncio.run(measured(CONFIGURATIONS[name], options.requests, lambda: next(asked)))
            print(name, figures, file=sys.stderr, flush=True)
            found[name].append(figures)
    report = told(found)
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def told(found: dict[str, list[Figures]]) -> dict[str, Any]:
    medians = {
        name: {
            field: statistics.median(getattr(figures, field) for figures in rounds)
            for field in Figures.__dataclass_fields__
        }
        for name, rounds in found.items()
    }
    over = {
        name: {
            base: {
                "rate": round(of["requests_per_s"] / medians[base]["requests_per_s"], 2),
                "cpu": round(medians[base]["request_cpu_s"] / of["request_cpu_s"], 2),
            }
            for base in ("lone", "lone-as-ours")
            if base in medians and not name.startswith("lone")
        }
        for name, of in medians.items()
    }
    return {
        "configurations": medians,
        "over": {name: bases for name, bases in over.items() if bases},
        "rounds": max(len(rounds) for rounds in found.values()),
        "environment": {
            "cpus": CORES,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "load_average": [round(value, 1) for value in os.getloadavg()],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def prompts() -> Iterator[list[dict[str, str]]]:
    """Never the same three passages again."""
    sys.path.insert(0, str(ROOT / "examples"))
    from corpus import passages  # type: ignore[import-not-found]

    questions = [
        json.loads(line)["question"] for line in (ROOT / "examples" / "questions.jsonl").read_text().splitlines()
    ]
    known, at = passages(), 0
    order = random.Random(7).sample(range(len(known)), len(known))
    while True:
        context = "\n\n".join(known[order[(at + i) % len(order)]].text for i in range(PASSAGES))
        question = questions[at // PASSAGES % len(questions)]
        at += PASSAGES
        yield [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Context:\n{context}\n\nQuestion: {question}"},
        ]


async def measured(
    options: LlamaCppOptions | OpenVinoOptions, requests: int, prompt: Callable[[], list[dict[str, str]]]
) -> Figures:
    engine: LlamaCppEngine | OpenVinoEngine
    if isinstance(options, OpenVinoOptions):
        engine = OpenVinoEngine(lambda: files_of(MODEL, {}, Paths.from_env()), name=MODEL, options=options)
    else:
        engine = LlamaCppEngine(lambda: files_of(MODEL, {}, Paths.from_env()), name=MODEL, options=options)
    await engine.start()
    try:
        at_once = options.slots
        count = requests if at_once > 1 else max(1, requests // 4)
        # each sequence has seen the system prompt, as in a server that has run for a while
        await load(engine, [prompt() for _ in range(at_once)], at_once, tokens=1)
        short = await load(engine, [prompt() for _ in range(count)], at_once, tokens=1)
        return Figures.of(short, await load(engine, [prompt() for _ in range(count)], at_once, tokens=ANSWER))
    finally:
        await engine.close()


async def load(engine: ContinuousEngine, messages: list[list[dict[str, str]]], at_once: int, *, tokens: int) -> Load:
    room = asyncio.Semaphore(at_once)

    async def one(prompt: list[dict[str, str]]) -> dict[str, Any]:
        async with room:
            return await usage(engine, prompt, tokens)

    cpu, wall = time.process_time(), time.perf_counter()
    used = await asyncio.gather(*(one(prompt) for prompt in messages))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    # OpenVINO does not tell what it found in its cache: it counts as prefilled
    prefilled = sum(u["prompt_tokens"] - u.get("prompt_tokens_details", {}).get("cached_tokens", 0) for u in used)
    return Load(len(used), prefilled, sum(u["completion_tokens"] for u in used), cpu, wall)


async def usage(engine: ContinuousEngine, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    body = {"messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    payload = encode_request(HttpRequest("POST", ROUTE, {}, orjson.dumps(body)))
    [frame] = [frame async for frame in engine.generate(EngineCall("1", "llm", f"POST {ROUTE}", payload))]
    document = json.loads(decode_response(frame).body)
    if "usage" not in document:
        raise SystemExit(f"the engine answered {document}")
    used: dict[str, Any] = document["usage"]
    return used


if __name__ == "__main__":
    main()
