"""What company costs a request: so many inside all the time, closed loop, door open.

    python tests/benchmarks/bench_company.py --applications crag -o docs/benchmarks/company.json
    python tests/benchmarks/bench_company.py --applications hipporag --systems ours,whole --inside 1,2,1,2 -o DIR/systems.json

No door and no order makes more requests be in time than are when the best number of them is inside all the time. So this tells what a
comparison with an SLO of twice the unloaded mean can give, on the machine that it runs on: for each number inside, requests per second
over one after another, and the share within twice the mean of one alone. One alone comes first and last: what differs between the two is
the machine, and what the engine has come to keep of prompts meanwhile. Real engines. ``--systems`` compares what each makes of the same
number inside; each is asked the same questions. ``took_s`` is kept, for other SLOs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import results
from baselines.applications import APPLICATIONS, CHAT, Application
from baselines.systems import Engines, Served, ours, whole
from bench_demo_chain import cpu_seconds

from patchwork_serving.bench.run import SLO_FACTOR

SYSTEMS: dict[str, Callable[[Application, Engines], AbstractContextManager[Served]]] = {
    "ours": lambda app, engines: ours(app, engines, slo_s=PATIENCE_S, settings={"scheduler": {"admission": "off"}}),
    "whole": lambda app, engines: whole(app, engines, workers=1),
}
LEARN = 8  #: requests before, two at a time
STAGGER_S = 0.37  #: between the first requests of clients: none of them go in step
PATIENCE_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--applications", default="crag", help=", ".join(APPLICATIONS))
    parser.add_argument("--requests", type=int, default=14, help="of each number inside, beyond those that fill it")
    parser.add_argument("--chat-engine", choices=("llamacpp", "openvino"), default="openvino")
    parser.add_argument(
        "--exact", action="store_true", help="openvino as it comes, not in the processor's fastest precision"
    )
    parser.add_argument("--systems", default="ours", help=", ".join(SYSTEMS))
    parser.add_argument("--inside", default="1,2,3,4,6,1", help="how many at once, in this order")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    engines = Engines(False, chat=options.chat_engine, inexact=not options.exact)
    inside = [int(number) for number in options.inside.split(",")]
    found = {
        name: {
            system: measured(system, APPLICATIONS[name], engines, inside, options.requests)
            for system in options.systems.split(",")
        }
        for name in options.applications.split(",")
    }
    conditions = {"chat": engines.chat, "inexact": engines.inexact, "requests": options.requests}
    results.write(options.output, {**conditions, "environment": results.environment(), "applications": found})


def measured(
    system: str, app: Application, engines: Engines, numbers: Sequence[int], requests: int
) -> list[dict[str, Any]]:
    questions = iter(app.values())
    with SYSTEMS[system](app, engines) as served:
        asyncio.run(latencies(served, questions, 2, LEARN))
        rows: list[dict[str, Any]] = []
        for inside in numbers:
            before, began = llm_seconds(served), time.perf_counter()
            took = asyncio.run(latencies(served, questions, inside, requests + inside))
            seconds, worked = time.perf_counter() - began, llm_seconds(served) - before
            rows.append(row(inside, took, seconds, worked, rows[0] if rows else None))
            print(app.name, system, rows[-1], flush=True)
    return rows


def row(inside: int, took: list[float], seconds: float, worked: float, alone: dict[str, Any] | None) -> dict[str, Any]:
    mean = statistics.mean(took)
    found = {
        "inside": inside, "requests": len(took), "mean_s": mean, "p95_s": statistics.quantiles(took, n=20)[-1],
        "per_s": len(took) / seconds, "llm_cpu_s_per_request": worked / len(took),
    }  # fmt: skip
    limit, rate = SLO_FACTOR * (alone or found)["mean_s"], (alone or found)["per_s"]
    share = sum(one <= limit for one in took) / len(took)
    return {
        **found, "mean_over_alone": SLO_FACTOR * mean / limit, "in_time": share, "per_s_over_alone": found["per_s"] / rate,
        "in_time_per_s_over_alone": share * found["per_s"] / rate, "took_s": sorted(took),
    }  # fmt: skip


async def latencies(served: Served, questions: Iterator[Any], inside: int, requests: int) -> list[float]:
    """Seconds of each, ``inside`` of them at any time until the last ones."""
    left, took = itertools.repeat(None, requests), list[float]()

    async def client(number: int, http: httpx.AsyncClient) -> None:
        await asyncio.sleep(STAGGER_S * number)
        for _ in left:
            began = time.perf_counter()
            response = await http.post("/invoke", json={"input": next(questions)})
            response.raise_for_status()
            took.append(time.perf_counter() - began)

    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S) as http:
        await asyncio.gather(*(client(number, http) for number in range(inside)))
    return took


def llm_seconds(served: Served) -> float:
    """Processor time of the process in which the LLM is (of ``whole``, the embedder, too)."""
    parts = served.processes()
    return cpu_seconds({"llm": parts.get(f"llm-{CHAT}", parts.get("model server", []))})["llm"]


if __name__ == "__main__":
    main()
