"""One experiment twice: in the simulator, and through the real stack with emulated engines. What both say, and where they differ.

    python tests/benchmarks/bench_simulated_real.py -o docs/benchmarks/simulated_real.json

CRAG's shape (``chains/crag.py``), one plan, one cost of each engine, ``patchwork bench``'s own load generator. Both sides get the same
arrivals, and each request the same branch and the same lengths: an emulated engine draws them from the prompt, so they are known
beforehand. Each policy is deployed once and meets everything in one run: requests one by one, then the loads, with pauses. Neither side
knows anything of requests when it begins.

Between the two stands a third: the stack's own scheduling, hosts and emulated engines on a clock that jumps. What differs there is decided
otherwise than simulated; what differs only through the real stack is the machine's doing.

What the stack adds is an argument of the simulation, measured on the requests that came one by one (medians): of each component, its
seconds over those of its engine; of a request, what it spent in no component. Nothing is fitted to the loads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import results
import yaml
from bench_plan_real import CHAINS
from simulated_side import FIXED, GLUE, Experiment, Seen, Simulation, experiment

from kit.deployed import Home, a_home, deployed
from patchwork_serving.bench.apis import api
from patchwork_serving.bench.observe import Observation
from patchwork_serving.bench.open_loop import OpenLoop

CHAIN = CHAINS / "crag.py"
#: Of the requests that come one by one, these find things cold and are not measured.
COLD = 4
#: Policies as both sides are told; ``least_slack`` is what a deployment does by itself.
POLICIES: dict[str, dict[str, Any]] = {"fifo": {"policy": "fifo", "admission": "off"}, "least_slack": {}}


# -- real --------------------------------------------------------------------------------------------------------------


@dataclass
class Busy:
    """How much of the machine was in use, each second."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, start: float, end: float) -> float | None:
        found = [share for at, share in self.samples if start <= at - began < end]
        return statistics.fmean(found) if found else None


@contextmanager
def watched() -> Iterator[Busy]:
    busy, over = Busy(), threading.Event()
    psutil.cpu_percent()

    def watch() -> None:
        while not over.wait(1.0):
            busy.samples.append((time.monotonic(), psutil.cpu_percent() / 100))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield busy
    finally:
        over.set()
        thread.join()


def really(home: Home, made: Experiment, policy: str) -> tuple[list[Seen], dict[str, float | None]]:
    """What the clients saw, and how busy the machine was in each window."""
    config, plan = home.path / f"{policy}.yaml", home.path / f"{policy}.plan.json"
    config.write_text(yaml.safe_dump({**made.config, "scheduler": POLICIES[policy]}), encoding="utf-8")
    made.plan.save(plan)
    given = ["--config", str(config), "--plan", str(plan), "--slo", f"{made.slo.deadline_s:.4f}s"]
    with deployed(home, str(CHAIN), *given) as url, watched() as busy:
        asked = api("langserve", url, stream=False, headers={})
        bodies = [asked.encoded(made.question(number)) for number in range(len(made.times))]
        loop = OpenLoop(asked, bodies, made.times, timeout_s=110.0, connections=1024, told=lambda sent, ended: None)
        began = time.monotonic()
        observed = asyncio.run(loop.run())
    shares = {f"{load:g}": busy.between(began, *window) for load, window in made.windows.items()}
    return [_seen(one) for one in observed], shares


def _seen(one: Observation) -> Seen:
    answer = one.answer
    if answer is None or not answer.is_whole:
        return Seen(one.intended, refused=answer is not None and answer.status == 429)
    stages = {name: seconds for name, seconds in answer.stages.items() if name not in ("total", "queue")}
    stages[GLUE] = one.latency_s - sum(stages.values())
    return Seen(one.intended, one.latency_s, stages=stages)


def check_draws(made: Experiment, side: Simulation, seen: Sequence[Seen]) -> None:
    """Exits when a request went another way than the one that is simulated."""
    for number, one in enumerate(seen):
        if one.latency_s is not None:
            expected = {step.site.component for step in side.way(number)}
            if one.stages.keys() != expected:
                raise SystemExit(
                    f"request {number} visited {sorted(one.stages)}, and is simulated as {sorted(expected)}"
                )


def measured_overhead(made: Experiment, side: Simulation, seen: Sequence[Seen]) -> tuple[dict[str, float], float]:
    """Of the requests that came one by one: seconds over the engine's by component, and outside all components."""
    over: dict[str, list[float]] = {}
    for number, one in enumerate(seen[: made.alone]):
        if number >= COLD and one.latency_s is not None:
            for step in side.way(number):
                name = step.site.component
                over.setdefault(name, []).append(one.stages[name] - (0.0 if name == GLUE else side.engine_s(step)))
    medians = {name: statistics.median(values) for name, values in over.items()}
    return medians, medians.pop(GLUE)


# -- compared ----------------------------------------------------------------------------------------------------------


def summary(made: Experiment, seen: Sequence[Seen], window: tuple[float, float]) -> dict[str, Any]:
    counted = [one for one in seen if window[0] <= one.at < window[1]]
    whole = [one for one in counted if one.latency_s is not None]
    taken = [one.latency_s for one in whole if one.latency_s is not None]
    attained = sum(seconds <= made.slo.deadline_s for seconds in taken)
    refused = sum(one.refused for one in counted)
    stages: dict[str, list[float]] = {}
    for one in whole:
        for name, seconds in one.stages.items():
            stages.setdefault(name, []).append(seconds)
    return {
        "offered": len(counted), "attained": attained, "missed": len(taken) - attained, "refused": refused,
        "failed": len(counted) - len(taken) - refused, "attained_share": attained / max(len(counted), 1),
        "latency_s": {f"p{q}": float(np.percentile(taken, q)) if taken else None for q in (50, 95)},
        "mean_s_by_stage": {name: statistics.fmean(values) for name, values in sorted(stages.items())},
    }  # fmt: skip


def difference(simulated: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    ratios = {
        q: simulated["latency_s"][q] / real["latency_s"][q] - 1.0
        for q in ("p50", "p95")
        if simulated["latency_s"][q] and real["latency_s"][q]
    }
    stages, others = simulated["mean_s_by_stage"], real["mean_s_by_stage"]
    return {
        "attained_points": 100.0 * (simulated["attained_share"] - real["attained_share"]),
        "latency": ratios,
        # where the seconds differ: simulated less real, mean of a request that goes there
        "seconds_by_stage": {name: stages[name] - others[name] for name in stages.keys() & others.keys()},
    }


def compare(home: Home, made: Experiment, policy: str) -> dict[str, Any]:
    plain = Simulation(made, {}, 0.0)
    real, busy = really(home, made, policy)
    check_draws(made, plain, real)
    hops, glue_s = measured_overhead(made, plain, real)
    side = Simulation(made, hops, glue_s)
    simulated, virtual = side.run(policy), side.run_virtually(policy)
    rows = {}
    for load, window in made.windows.items():
        mine, between, theirs = (summary(made, seen, window) for seen in (simulated, virtual, real))
        rows[f"{load:g}"] = {
            "simulated": mine, "virtual": between, "real": theirs, "difference": difference(mine, theirs),
            "difference_to_virtual": difference(mine, between), "machine_busy": busy[f"{load:g}"],
        }  # fmt: skip
    return {"overhead_s": {**hops, GLUE: glue_s}, "loads": rows}


def show(policy: str, found: Mapping[str, Any]) -> None:
    print(f"{policy}: the stack adds", {name: round(1000 * s, 1) for name, s in found["overhead_s"].items()}, "ms")
    for load, row in found["loads"].items():
        mine, theirs, apart = row["simulated"], row["real"], row["difference"]
        latencies = "  ".join(
            f"{q} {mine['latency_s'][q]:.2f}/{theirs['latency_s'][q]:.2f} s ({100 * ratio:+.0f} %)"
            for q, ratio in apart["latency"].items()
        )
        print(
            f"  load {load}: attained {100 * mine['attained_share']:.1f}/{100 * theirs['attained_share']:.1f} %"
            f" ({apart['attained_points']:+.1f})  refused {mine['refused']}/{theirs['refused']} of {theirs['offered']}"
            f"  {latencies}  machine {100 * (row['machine_busy'] or 0.0):.0f} % busy"
        )
        decided = row["difference_to_virtual"]
        print(
            f"    by decisions alone: attained {decided['attained_points']:+.1f}, "
            + ", ".join(f"{q} {100 * ratio:+.0f} %" for q, ratio in decided["latency"].items())
        )
        print(
            "    simulated less real, ms:", {n: round(1000 * s) for n, s in sorted(apart["seconds_by_stage"].items())}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--slower", type=float, default=10.0, help="times slower than the engines that were measured")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 1.0, 1.5], help="of capacity")
    parser.add_argument("--window", type=float, default=60.0, help="seconds of each load that count")
    parser.add_argument("--lead", type=float, default=12.0, help="seconds of each load before that")
    parser.add_argument("--alone", type=int, default=13, help="requests that come one by one, first")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument(
        "--dry", action="store_true", help="nothing deployed: simulated, and decided by the stack on a clock that jumps"
    )
    options = parser.parse_args()
    if options.alone <= COLD:
        parser.error(f"--alone must be more than {COLD}: the first {COLD} are not measured")
    with a_home() as home:
        made = experiment(options, home.path)
        print(
            f"capacity {made.capacity:.2f}/s, SLO {made.slo.deadline_s:.2f} s, {len(made.times)} requests in {made.end_s:.0f} s"
        )
        if options.dry:
            dry(made, options.policies)
            return
        found = {}
        for policy in options.policies:
            found[policy] = compare(home, made, policy)
            show(policy, found[policy])
    if options.output is not None:
        write(options.output, made, options, found)


def dry(made: Experiment, policies: Sequence[str]) -> None:
    for policy in policies:
        side = Simulation(made, {}, 0.0)
        simulated, virtual = side.run(policy), side.run_virtually(policy)
        for load, window in made.windows.items():
            mine, between = summary(made, simulated, window), summary(made, virtual, window)
            print(policy, load, json.dumps({"simulated": mine, "by decisions alone": difference(mine, between)}))


def write(path: Path, made: Experiment, options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    document = {
        "environment": {
            "emulated": f"every component, in the time of profiles of one H100, {options.slower:g} times slower",
            "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat(),
        },
        "capacity_per_s": made.capacity, "slo_s": made.slo.deadline_s, "window_s": options.window, "lead_s": options.lead,
        "replicas_and_batches": FIXED, "policies": found,
    }  # fmt: skip
    results.write(path, document)


if __name__ == "__main__":
    main()
