"""The first minutes of a deployment whose engines nobody has profiled: what the door makes of them, against an open one.

    python tests/benchmarks/bench_first_minutes.py [--seeds 48] -o docs/benchmarks/first_minutes.json

The ingress's own ``Scheduling`` and the replicas' hosts on a clock that jumps, in front of an emulated engine that costs what a small LLM
does on two cores (a step costs more than what is in it, so that company is cheap): nothing is known when the first request comes. Forty
requests at the middle rate, then half a minute at each of three. As arrivals decide most, both doors see the same, for every seed.
Told is the share in time (mean over seeds, and the worst seed), refused, and late of those let in.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import results

from kit.virtual_stack import Part, VirtualStack
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_serving.components.emulated_replies import Wish

#: Seconds as of SmolLM2-135M in OpenVINO on two cores, about: alone 0.7 s for 450 tokens in and 42 out, sixteen at once 0.25 s each.
LLM = TokenCost(0.010, 0.00025, 0.0015, call_s=0.01)
PARTS = {
    "embedder": Part(BatchCost((1.0, 8.0), (0.01, 0.05)), 1, 8),
    "llm": Part(LLM, 1, 16, Wish(n_in=450, n_out=(20, 64))),
}
LEARN, WINDOW_S, PAUSE_S, PROMISED = 40, 35.0, 6.0, 0.8
DOORS = {"open": ("fifo", "off"), "ours": ("least_slack", "refuse")}


@dataclass(frozen=True)
class Chain:
    calls: tuple[str, ...]  #: components, one after the other
    rates: tuple[float, float, float]  #: requests per second
    slo_s: float  #: about twice what a request takes alone


CHAINS = {
    "one LLM call": Chain(("embedder", "llm"), (1.0, 1.7, 3.4), 1.6),
    "two LLM calls": Chain(("llm", "embedder", "llm"), (0.7, 1.1, 2.2), 2.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for name, door in ((name, door) for name in CHAINS for door in DOORS):
            runs = list(pool.map(partial(run, name, door), range(options.seeds), chunksize=4))
            for part in ("learning", *map(str, CHAINS[name].rates)):
                rows.append({"chain": name, "door": door, "rate_per_s": part, **told([one[part] for one in runs])})
                print(rows[-1], flush=True)
    results.write(
        options.output,
        {
            "emulated": True,
            "seeds": options.seeds,
            "target_share": PROMISED,
            "environment": results.environment(),
            "rows": rows,
        },
    )


def run(name: str, door: str, seed: int) -> dict[str, list[str]]:
    """Outcomes by part: ``in time``, ``late`` or ``refused``."""
    chain, (policy, admission) = CHAINS[name], DOORS[door]
    slo = SloClass("slo", chain.slo_s, target_share=PROMISED)
    offered = list(arrivals(chain, seed))

    async def served(loop: VirtualLoop) -> list[str]:
        stack = VirtualStack(loop, PARTS, slo, policy=policy, admission=admission, profiled=False)  # type: ignore[arg-type]
        await stack.start()
        began = loop.time()

        async def one(number: int, at: float) -> str:
            await asyncio.sleep(began + at - loop.time())
            arrived = loop.time()
            request = stack.enter(f"r{number}", arrived)
            if request is None:
                return "refused"
            for place, component in enumerate(chain.calls):
                await stack.call(request, component, f"question {number} of {seed}, call {place}")
            stack.leave(request)
            return "in time" if loop.time() - arrived <= slo.deadline_s else "late"

        outcomes = await asyncio.gather(*(one(number, at) for number, (_, at) in enumerate(offered)))
        await stack.close()
        return list(outcomes)

    found: dict[str, list[str]] = {}
    for (part, _), outcome in zip(offered, run_virtually(served), strict=True):
        found.setdefault(part, []).append(outcome)
    return found


def arrivals(chain: Chain, seed: int) -> list[tuple[str, float]]:
    """Part, and seconds from the beginning; Poisson."""
    rng, now, found = random.Random(seed), 0.0, list[tuple[str, float]]()
    for _ in range(LEARN):
        now += rng.expovariate(chain.rates[1])
        found.append(("learning", now))
    for rate in chain.rates:
        now += PAUSE_S
        end = now + WINDOW_S
        while (now := now + rng.expovariate(rate)) < end:
            found.append((str(rate), now))
        now = end
    return found


def told(runs: list[list[str]]) -> dict[str, float]:
    shares = [outcomes.count("in time") / len(outcomes) for outcomes in runs]
    every = [outcome for outcomes in runs for outcome in outcomes]
    let_in = len(every) - every.count("refused")
    return {
        "attained_share": statistics.mean(shares), "worst_attained_share": min(shares),
        "refused_share": every.count("refused") / len(every), "missed_share_of_accepted": every.count("late") / max(let_in, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
