"""What it is worth to send a prompt to the replica that has its beginning: the same questions with prefix routing and without.

    python tests/benchmarks/bench_prefix.py --engine openvino -o docs/benchmarks/prefix.json

Some long documents, each with several questions, asked of some replicas of a real LLM that keep prompts, so many at once; documents take
turns, so that the router has a choice each time. With ``scheduler.prefix_routing: false`` it goes by load alone, and a later question finds
its document by chance: the second one by one in ``--replicas``, the next ones more often, as every replica comes to have it. Both sides in
one run, one after the other, in ``--rounds`` turns, after ``--learnt`` other documents from which each learns what there is to learn (0: a
deployment's first minute). What is told is
the latency and the processor time that the LLM's replicas took for a question: for first ones, whose beginning nobody has, and for later
ones; and for ``on`` how much of later prompts their replica had seen, as the ingress counts it (``/info``).

Where all later prompts are seen, ``first/later`` is what the engine's cache saves, which is the most that routing can give.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import results
from baselines.applications import CHAT, EXAMPLES, Application
from baselines.systems import Engines, ours
from bench_demo_chain import cpu_seconds

APP = Application("conversation", Path(__file__).parent / "chains" / "conversation.py", "chain", {})
PASSAGES = 12  #: of a document: some 800 tokens


@dataclass(frozen=True)
class Figures:
    """Of later questions, but for what begins with ``first``."""

    latency_mean_s: float
    latency_p95_s: float
    llm_cpu_s_per_request: float
    first_latency_mean_s: float
    first_llm_cpu_s_per_request: float


NAMES = tuple(field.name for field in fields(Figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engine", choices=("llamacpp", "openvino"), default="openvino")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--questions", type=int, default=3, help="about each document")
    parser.add_argument("--learnt", type=int, default=8, help="documents asked about beforehand, not counted")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    found: dict[str, list[Figures]] = {"on": [], "off": []}
    told: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        for side in ("on", "off") if turn % 2 == 0 else ("off", "on"):
            figures, prefixes = measured(options, turn, routed=side == "on")
            print(f"prefix routing {side}: {figures} {prefixes or ''}", file=sys.stderr)
            found[side].append(figures)
            told += [prefixes] if prefixes else []
    sides = {
        side: {name: statistics.mean(getattr(one, name) for one in found[side]) for name in NAMES} for side in found
    }
    document = {
        **{name: getattr(options, name) for name in ("engine", "replicas", "documents", "questions", "learnt", "clients", "rounds")},
        "environment": results.environment(), "rounds_of": {side: [asdict(one) for one in found[side]] for side in found},
        "sides": sides, "prefixes": told, "off/on": {name: sides["off"][name] / sides["on"][name] for name in NAMES},
        "first/later": {
            side: {name: of[f"first_{name}"] / of[name] for name in ("latency_mean_s", "llm_cpu_s_per_request")}
            for side, of in sides.items()
        },
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


def measured(options: argparse.Namespace, turn: int, *, routed: bool) -> tuple[Figures, dict[str, Any] | None]:
    """And what the ingress counted of all but what was learnt from (None where it does not route by prefix)."""
    settings = {
        "components": {f"llm-{CHAT}": {"replicas": options.replicas}},
        "scheduler": {"prefix_routing": routed, "admission": "off"},
    }
    with ours(APP, Engines(emulated=False, chat=options.engine), slo_s=120.0, settings=settings) as served:

        def ask(asked: Sequence[list[dict[str, str]]]) -> tuple[list[float], float]:
            """Latencies, and seconds of processor time of a question."""
            before = cpu_seconds(served.processes())
            latencies = [one for each in asked for one in asyncio.run(load(served.url, each, options.clients))]
            after = cpu_seconds(served.processes())
            used = sum(after[part] - before.get(part, 0.0) for part in after if part.startswith("llm-"))
            return latencies, used / len(latencies)

        if options.learnt:
            ask(questions(options.learnt, options.questions, seed=1000 + turn))
        first, *later = questions(options.documents, options.questions, seed=turn)
        first_latencies, first_cpu_s = ask([first])
        counted = _prefixes(served.url)
        latencies, cpu_s = ask(later)
        prefixes = _since(counted, _prefixes(served.url))
    p95 = sorted(latencies)[int(0.95 * len(latencies))]
    figures = Figures(statistics.mean(latencies), p95, cpu_s, statistics.mean(first_latencies), first_cpu_s)
    return figures, prefixes


def _prefixes(url: str) -> dict[str, Any] | None:
    found = httpx.get(f"{url}/info", timeout=30.0).raise_for_status().json()["scheduler"]["prefixes"]
    return next(iter(found.values()), None)


def _since(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    calls = after["calls"] - before["calls"]
    seen = after["calls"] * after["seen_share"] - before["calls"] * before["seen_share"]
    return {"calls": calls, "seen_share": seen / calls, "saved_share": after["saved_share"]}


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
