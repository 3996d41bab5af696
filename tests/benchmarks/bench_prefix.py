"""What it is worth to send a prompt to the replica that has its beginning: the same questions with prefix routing and without.

    python tests/benchmarks/bench_prefix.py --engine openvino -o docs/benchmarks/prefix.json

Some long documents, each with several questions, asked of two replicas of a real LLM that keep prompts, so many at once; documents take
turns, so that the router has a choice each time. With ``scheduler.prefix_routing: false`` it goes by load alone. Both sides in one run,
one after the other, in ``--rounds`` turns; the first question of each document is left out, as nobody has its beginning then. What is told
is the latency and the processor time that the LLM's replicas took for a question.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import results
from baselines.applications import CHAT, EXAMPLES, Application
from baselines.systems import Engines, ours
from bench_demo_chain import cpu_seconds

APP = Application("conversation", Path(__file__).parent / "chains" / "conversation.py", "chain", {})
REPLICAS = 2
PASSAGES = 12  #: of a document: some 800 tokens


@dataclass(frozen=True)
class Figures:
    latency_mean_s: float
    latency_p95_s: float
    llm_cpu_s_per_request: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engine", choices=("llamacpp", "openvino"), default="openvino")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--questions", type=int, default=5, help="about each document")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    found: dict[str, list[Figures]] = {"on": [], "off": []}
    for turn in range(options.rounds):
        asked = questions(options.documents, options.questions, seed=turn)
        for side in ("on", "off") if turn % 2 == 0 else ("off", "on"):
            figures = measured(options, asked, routed=side == "on")
            print(f"prefix routing {side}: {figures}", file=sys.stderr)
            found[side].append(figures)
    sides = {
        side: {name: statistics.mean(getattr(one, name) for one in rounds) for name in Figures.__dataclass_fields__}
        for side, rounds in found.items()
    }
    document = {
        "engine": options.engine, "replicas": REPLICAS, "documents": options.documents, "questions": options.questions,
        "clients": options.clients, "rounds": options.rounds, "environment": results.environment(), "sides": sides,
        "off/on": {name: sides["off"][name] / sides["on"][name] for name in Figures.__dataclass_fields__},
    }  # fmt: skip
    results.write(options.output, document)
    print(json.dumps(results.rounded(document), indent=1))


def questions(documents: int, each: int, seed: int) -> list[list[dict[str, str]]]:
    """Rounds: in each, a question about every document, the documents in another order each time."""
    sys.path.insert(0, str(EXAMPLES))
    from corpus import passages  # type: ignore[import-not-found]

    rng = random.Random(seed)
    texts = ["\n\n".join(p.text for p in rng.sample(passages(), PASSAGES)) for _ in range(documents)]
    rows = [json.loads(line)["question"] for line in (EXAMPLES / "questions.jsonl").read_text().splitlines() if line]
    ask = itertools.cycle(rng.sample(rows, len(rows)))
    return [[{"document": text, "question": next(ask)} for text in rng.sample(texts, documents)] for _ in range(each)]


def measured(options: argparse.Namespace, asked: Sequence[list[dict[str, str]]], *, routed: bool) -> Figures:
    settings = {
        "components": {f"llm-{CHAT}": {"replicas": REPLICAS}},
        "scheduler": {"prefix_routing": routed, "admission": "off"},
    }
    with ours(APP, Engines(emulated=False, chat=options.engine), slo_s=120.0, settings=settings) as served:
        first, *others = asked
        asyncio.run(load(served.url, first, options.clients))
        before = cpu_seconds(served.processes())
        latencies = [one for questions in others for one in asyncio.run(load(served.url, questions, options.clients))]
        after = cpu_seconds(served.processes())
    used = sum(after[part] - before.get(part, 0.0) for part in after if part.startswith("llm-"))
    ordered = sorted(latencies)
    return Figures(
        statistics.mean(ordered), ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)], used / len(ordered)
    )


async def load(url: str, questions: Sequence[dict[str, Any]], clients: int) -> list[float]:
    """Seconds of each."""
    room = asyncio.Semaphore(clients)

    async def ask(http: httpx.AsyncClient, question: dict[str, Any]) -> float:
        async with room:
            began = time.monotonic()
            (await http.post("/invoke", json={"input": question})).raise_for_status()
            return time.monotonic() - began

    async with httpx.AsyncClient(base_url=url, timeout=120.0) as http:
        return await asyncio.gather(*(ask(http, question) for question in questions))


if __name__ == "__main__":
    main()
