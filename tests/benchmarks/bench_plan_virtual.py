"""What a plan predicts against what the stack's own decisions sustain, on a clock that jumps: no machine is too slow for it.

    python tests/benchmarks/bench_plan_virtual.py [ircot hipporag memorag] [-o docs/benchmarks/plan_virtual.json]

The shapes of ``bench_plan_real.py`` that call the same components in every request, with its plans, engines and SLO, in
``kit.virtual_stack`` (the ingress's decisions, hosts and emulated engines; no processes, no sockets). Open loop, evenly spaced, so that
chance has no part; admission off; counted is what is completed per second in the second half of each load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_plan_real import CHAINS, SHAPES, SLO_FACTOR, plans, profiled

from kit.virtual_stack import Part, VirtualStack
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.plan_model import Plan, PlannedComponent
from patchwork_serving.components.emulated_factory import _wish
from patchwork_serving.config import Config, load_config

#: In the order of each request's calls.
PATHS = {
    "ircot": ["retriever-search", "llm-reasoner"] * 5 + ["llm-answerer"],
    "hipporag": ["llm-extractor", "embedder-entities", "retriever-pagerank", "llm-generator"],
    "memorag": ["llm-memory", "retriever-search", "llm-generator"],
}
LOADS = (0.85, 1.1, 1.35)
POLICIES = ("least_slack", "fifo")
SPAN_S = 60.0
HOP_S = 0.01


class Request(NamedTuple):
    arrived: float
    ended: float


def parts(plan: Plan, config: Config) -> dict[str, Part]:
    return {c.id: _part(c, config) for c in plan.components}


def _part(planned: PlannedComponent, config: Config) -> Part:
    batch, (kind, _, name) = planned.placements[0].batch, planned.id.partition("-")
    component = config.components.get(planned.id)
    if component is not None and component.emulate is not None:
        rows, slower = component.emulate.rows, component.emulate.slower
        return Part(BatchCost.fit(rows or []).scaled(slower), planned.replicas, batch, hop_s=HOP_S)
    arguments = config.models[name].engine_args
    cost = (TokenCost if kind == "llm" else BatchCost).fit(arguments["rows"]).scaled(arguments.get("slower", 1.0))
    return Part(cost, planned.replicas, batch, _wish(arguments, name), HOP_S)


def served(
    made: dict[str, Part], path: Sequence[str], times: Sequence[float], slo: SloClass, policy: str
) -> list[Request]:
    async def main(loop: VirtualLoop) -> list[Request]:
        stack = VirtualStack(loop, made, slo, policy=policy, admission="off")
        await stack.start()
        began = loop.time()

        async def one(number: int, at: float) -> Request:
            await asyncio.sleep(began + at - loop.time())
            request = stack.enter(f"r{number}", began + at)
            assert request is not None
            for step, component in enumerate(path):
                await stack.call(request, component, f"question {number} step {step}")
            stack.leave(request)
            return Request(at, loop.time() - began)

        found = await asyncio.gather(*(one(number, at) for number, at in enumerate(times)))
        await stack.close()
        return found

    return run_virtually(main)


def measure(name: str, policies: Sequence[str]) -> dict[str, Any]:
    config = load_config(CHAINS / f"{name}.yaml")
    rows: dict[str, Any] = {}
    for how, plan in plans(SHAPES[name], profiled(SHAPES[name], config)).items():
        slo = SloClass("default", SLO_FACTOR * plan.full_batch_path_s)
        made = parts(plan, config)
        rows[how] = {"predicted_per_s": round(plan.rate_per_s, 3), "slo_s": round(slo.deadline_s, 2)}
        for policy in policies:
            for load in LOADS:
                rate = load * plan.rate_per_s
                times = [number / rate for number in range(int(SPAN_S * rate))]
                found = served(made, PATHS[name], times, slo, policy)
                told = rows[how].setdefault(policy, {})[str(load)] = _told(found, plan.rate_per_s, slo)
                print(f"{name:9} {how:8} {policy:12} {load:4} of {plan.rate_per_s:.2f}/s: {told}", flush=True)
    return rows


def _told(found: Sequence[Request], predicted: float, slo: SloClass) -> dict[str, float]:
    counted = sum(SPAN_S / 2 <= one.ended < SPAN_S for one in found) / (SPAN_S / 2)
    in_time = sum(one.ended - one.arrived <= slo.deadline_s for one in found) / len(found)
    return {
        "completed_over_predicted": round(counted / predicted, 3),
        "attained_share": round(in_time, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(PATHS), help=", ".join(PATHS))
    parser.add_argument("--policies", nargs="*", default=list(POLICIES))
    parser.add_argument("-o", "--output", type=Path, help="JSON file; shapes that are there already are kept")
    options = parser.parse_args()
    known = json.loads(options.output.read_text()) if options.output and options.output.is_file() else {"shapes": {}}
    document = {
        "what": (__doc__ or "").splitlines()[0],
        "virtual": True,
        "span_s": SPAN_S,
        "counted": "the second half",
        "date": datetime.now(UTC).date().isoformat(),
        "shapes": known["shapes"],
    }
    for name in options.shapes:
        document["shapes"][name] = measure(name, options.policies)
        if options.output is not None:
            options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
