"""Benchmarks of the scheduler. What is printed is simulated from measured profiles, except the cost of decisions.

    python tests/benchmarks/bench_scheduler.py decisions                                    [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py speed    --profiles DIR                      [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py policies --profiles DIR --traces DIR         [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py overload --profiles DIR                      [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py promises --profiles DIR                      [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py draws    --profiles DIR --traces DIR         [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py steps    --profiles DIR --traces DIR          -o scheduler.json
    python tests/benchmarks/bench_scheduler.py overhead --profiles DIR                      [-o scheduler.json]
    python tests/benchmarks/bench_scheduler.py bounds   --profiles DIR --traces DIR          -o scheduler.json
    python tests/benchmarks/bench_scheduler.py plots    -o scheduler.json
    python tests/benchmarks/bench_scheduler.py all      --profiles DIR --traces DIR -o scheduler.json

``--profiles`` holds llama-3.2-3b.json, llama-3.1-8b.json, encoders.json and overload_crag.json: rows measured on one GPU.
``--traces`` holds azure-llm-2023/AzureLLMInferenceTrace_{code,conv}.csv and ragpulse/0_trace.jsonl. ``-o`` replaces the part of the
file that was run; ``steps`` and ``bounds`` take the loads from the part ``policies`` in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path as File
from typing import Any

sys.path.insert(0, str(File(__file__).parents[1]))

import bench_overload
import results
import scheduler_choices
import scheduler_decisions
import scheduler_draws
from scheduler_bound import WINDOW_S, bound
from scheduler_graphs import GRAPHS, costs

from kit.scheduled_graphs import TOKEN_BUDGET, crag, plan
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.results import Results
from patchwork_scheduler.simulate import SETUPS, closed_loop, simulate, unloaded, unloaded_s
from patchwork_scheduler.workload import at_rate, poisson, trace_times

Costs = Mapping[str, BatchCost | TokenCost]

LOADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
TRACES = {
    "azure_code": "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
    "azure_conv": "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
    "ragpulse": "ragpulse/0_trace.jsonl",
}
ARRIVALS = ("poisson", *TRACES)
#: Requests of a run at capacity; as many more at higher loads, so that all last about as long.
REQUESTS = 2500
SLO_TIMES = 2.0
PROMISED = 0.98  # the target is at most 2 % late of those let in
#: Of what requests do, and of Poisson arrivals.
SEED, ARRIVALS_SEED = 3, 11
#: Where first come first served attains this, ours is asked for more.
FIFO_ATTAINS = 0.70


# -- policies by load --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A graph with its capacity and promise."""

    graph: str
    profiles: File
    token_budget: int
    capacity: float
    slo: SloClass
    overhead_s: tuple[float, float] = (0.0, 0.0)  #: of each step of an LLM, and more of those that prefill

    def run(self, policy: str, times: tuple[float, ...], seed: int = SEED) -> Results:
        kinds, planned = with_overhead(costs(self.profiles), self.overhead_s), plan(self.token_budget)
        return simulate(GRAPHS[self.graph](), planned, kinds, times, self.slo, setup=SETUPS[policy], seed=seed)


def with_overhead(kinds: Costs, overhead_s: tuple[float, float]) -> Costs:
    return {
        name: cost.with_overhead(*overhead_s) if isinstance(cost, TokenCost) else cost for name, cost in kinds.items()
    }


def case(
    graph: str, profiles: File, token_budget: int, overhead_s: tuple[float, float] = (0.0, 0.0)
) -> tuple[Case, dict[str, Any]]:
    workload, kinds, planned = GRAPHS[graph](), with_overhead(costs(profiles), overhead_s), plan(token_budget)
    closed = closed_loop(workload, planned, kinds, in_flight=250, span_s=60.0)
    slo = SloClass("slo", SLO_TIMES * unloaded_s(workload, planned, kinds), target_share=PROMISED)
    alone = unloaded(workload, planned, kinds, slo, requests=2000)
    found = Case(graph, profiles, token_budget, closed.offered / closed.end, slo, overhead_s)
    return found, {
        "capacity_per_s": found.capacity, "slo_s": slo.deadline_s, "token_budget": token_budget,
        "unloaded": {"mean_s": alone.mean_s, "p98_s": alone.percentile(98), "missed_share": alone.missed_share},
    }  # fmt: skip


@lru_cache
def recorded(path: File) -> list[float]:
    try:
        with path.open() as lines:
            return trace_times(lines)
    except OSError as error:
        print(f"error: trace {path} cannot be read ({type(error).__name__}); see --help", file=sys.stderr)
        raise SystemExit(2) from None


def arrivals(kind: str, traces: File | None, rate: float, requests: int, draw: int | None = None) -> tuple[float, ...]:
    """``draw``: another seed, or another stretch of the trace."""
    if kind == "poisson":
        return tuple(itertools.islice(poisson(rate, seed=ARRIVALS_SEED if draw is None else draw), requests))
    assert traces is not None
    whole = recorded(traces / TRACES[kind])
    # a stretch of the trace has a rate of its own: it is brought to the one asked for as it stands
    part = (whole if draw is None else scheduler_draws.stretch(whole, draw))[:requests]
    return tuple(itertools.islice(at_rate(part, rate), requests))


def at_load(one: Case, kind: str, traces: File, policy: str, load: float) -> dict[str, Any]:
    requests = round(REQUESTS * max(load, 1.0))
    results = one.run(policy, arrivals(kind, traces, one.capacity * load, requests))
    row = {"graph": one.graph, "arrivals": kind, "load": load, "policy": policy, **results.to_json()}
    del row["components"], row["retry_after_s"], row["predictions"]
    row["busy"] = {name: round(use.busy_share, 3) for name, use in results.components.items()}
    row["calibration"] = [
        {"site": state.site, "loop": state.loop, "count": c.count, "predicted_over_actual": c.bias, "mean_error_s": c.mean_error_s}
        for state, c in results.calibration.items()
    ]  # fmt: skip
    if policy != "least_slack":
        del row["calibration"]
    return row


def where_fifo_attains(one: Case, kind: str, traces: File) -> float:
    """The load at which first come first served attains FIFO_ATTAINS, by bisection."""
    low, high = 0.05, 1.5
    for _ in range(7):
        middle = (low + high) / 2
        if at_load(one, kind, traces, "fifo", middle)["attained_share"] > FIFO_ATTAINS:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def one_kind(one: Case, kind: str, traces: File, loads: tuple[float, ...]) -> list[dict[str, Any]]:
    load = round(where_fifo_attains(one, kind, traces), 4)
    rows = [at_load(one, kind, traces, policy, at) for at in (*loads, load) for policy in SETUPS]
    print(f"{one.graph} {kind}: fifo attains {FIFO_ATTAINS:.0%} at {load} x capacity", file=sys.stderr, flush=True)
    return rows


def policies(args: argparse.Namespace) -> dict[str, Any]:
    cases = {graph: case(graph, args.profiles, args.token_budget) for graph in args.graphs}
    jobs = [(one, kind) for one, _ in cases.values() for kind in args.arrivals]
    with ProcessPoolExecutor(args.processes) as pool:
        parts = pool.map(partial(_job, traces=args.traces, loads=tuple(args.loads)), jobs)
        rows = [row for part in parts for row in part]
    for row in rows:
        print(line(row))
    graphs = {graph: facts for graph, (_, facts) in cases.items()}
    return joined(earlier(args.output, args.part), {"graphs": graphs, "rows": rows})


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Rows of graphs and arrivals that were not run again are kept."""
    rows = all_rows(old.get("rows", []), new["rows"])
    return {"graphs": {**old.get("graphs", {}), **new["graphs"]}, "targets": targets(rows), "rows": rows}


def all_rows(
    old: list[dict[str, Any]], new: list[dict[str, Any]], by: tuple[str, ...] = ("graph", "arrivals")
) -> list[dict[str, Any]]:
    """The new ones, and of the old ones those that are not the same ``by``."""
    again = {tuple(row[key] for key in by) for row in new}
    return [row for row in old if tuple(row[key] for key in by) not in again] + new


def _job(job: tuple[Case, str], *, traces: File, loads: tuple[float, ...]) -> list[dict[str, Any]]:
    return one_kind(*job, traces, loads)


def line(row: Mapping[str, Any]) -> str:
    latency = row["latency_s"]
    first = row["ttft_s"]["p50"] if row["ttft_s"] else float("nan")
    return (
        f"{row['graph']} {row['arrivals']} {row['load']} {row['policy']}: attained {row['attained_share']:.1%}, missed of accepted"
        f" {row['missed_share_of_accepted']:.1%}, refused {row['refused'] / row['offered']:.1%}, {row['goodput_per_s']:.1f}/s,"
        f" {latency['p50']:.2f} {latency['p95']:.2f} {latency['p99']:.2f} s, first token {first:.2f} s"
    )


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per graph and arrivals, what was asked of least_slack."""
    found = []
    for graph, kind in dict.fromkeys((row["graph"], row["arrivals"]) for row in rows):
        mine = [row for row in rows if (row["graph"], row["arrivals"]) == (graph, kind)]
        by = {(row["policy"], row["load"]): row for row in mine}
        loads = sorted({row["load"] for row in mine})
        odd = next(load for load in loads if load not in LOADS)
        ours = [by["least_slack", load] for load in loads]
        best = max(row["goodput_per_s"] for row in ours)
        behind = [by["ideal", load]["attained_share"] - by["least_slack", load]["attained_share"] for load in loads]
        found.append({
            "graph": graph, "arrivals": kind, "fifo_70_load": odd,
            "worst_missed_share_of_accepted": max(row["missed_share_of_accepted"] for row in ours),
            "goodput_at_3_of_best": by["least_slack", 3.0]["goodput_per_s"] / best if 3.0 in loads else None,
            "attained_where_fifo_attains_70": by["least_slack", odd]["attained_share"],
            "fifo_there": by["fifo", odd]["attained_share"],
            "ideal_there": by["ideal", odd]["attained_share"],
            "worst_behind_ideal": max(behind),
        })  # fmt: skip
    return found


# -- choices -----------------------------------------------------------------------------------------------------------


def promises(args: argparse.Namespace) -> dict[str, Any]:
    cases = [case(graph, args.profiles, args.token_budget)[0] for graph in args.graphs]
    rows = scheduler_choices.promises(
        cases, lambda one, kind, policy, load: at_load(one, kind, args.traces, policy, load)
    )
    return {"rows": all_rows(earlier(args.output, args.part).get("rows", []), rows)}


def draws(args: argparse.Namespace) -> dict[str, Any]:
    cases = [case(graph, args.profiles, args.token_budget)[0] for graph in args.graphs]
    with ProcessPoolExecutor(args.processes) as pool:
        rows = scheduler_draws.draws(cases, args.arrivals, args.loads, partial(_drawn, traces=args.traces), pool)
    for text in scheduler_draws.lines(rows):
        print(text)
    return {
        "draws": len(scheduler_draws.DRAWS),
        "rows": all_rows(earlier(args.output, args.part).get("rows", []), rows),
    }


def _drawn(one: Case, kind: str, policy: str, load: float, draw: int, *, traces: File | None) -> Results:
    times = arrivals(kind, traces, one.capacity * load, round(REQUESTS * max(load, 1.0)), draw)
    return one.run(policy, times, draw)


def steps(args: argparse.Namespace) -> dict[str, Any]:
    """At the loads of the part ``policies`` of the output."""

    def run(one: Case, kind: str, policy: str, load: float) -> dict[str, Any]:
        return at_load(one, kind, args.traces, policy, load)

    loads = {
        (one["graph"], one["arrivals"]): one["fifo_70_load"] for one in earlier(args.output, "policies")["targets"]
    }
    cases = {graph: case(graph, args.profiles, args.token_budget)[0] for graph in args.graphs}
    cells = [
        (cases[graph], kind, load) for (graph, kind), load in loads.items() if graph in cases and kind in args.arrivals
    ]
    rows = scheduler_choices.steps(cells, run)
    return {"rows": all_rows(earlier(args.output, args.part).get("rows", []), rows)}


def bounds(args: argparse.Namespace) -> dict[str, Any]:
    """What nobody can exceed, where first come first served attains 70 % (by the part ``policies`` of the output) and at capacity."""
    rows = []
    for known in earlier(args.output, "policies")["targets"]:
        graph, kind = known["graph"], known["arrivals"]
        if graph not in args.graphs or kind not in args.arrivals:
            continue
        one = case(graph, args.profiles, args.token_budget)[0]
        for load in (known["fifo_70_load"], 1.0):
            times = arrivals(kind, args.traces, one.capacity * load, round(REQUESTS * max(load, 1.0)))
            most = bound(
                GRAPHS[graph](), plan(args.token_budget), costs(args.profiles), times, one.slo.deadline_s, seed=SEED
            )
            rows.append({"graph": graph, "arrivals": kind, "load": load, "attained_share_at_most": most})
            print(rows[-1], flush=True)
    return {"window_s": WINDOW_S, "rows": all_rows(earlier(args.output, args.part).get("rows", []), rows)}


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """CRAG and Poisson arrivals, with what steps that prefill took more on a GPU than computing."""
    overhead_s = scheduler_choices.OVERHEAD_S
    slowed, facts = case("crag", args.profiles, args.token_budget, overhead_s)
    rows = scheduler_choices.steps_with_overhead(
        slowed,
        lambda one, kind, policy, load: at_load(one, kind, args.traces, policy, load),
        lambda one, kind: where_fifo_attains(one, kind, args.traces),
    )
    return {"overhead_s": overhead_s, **facts, "rows": rows}


# -- speed --------------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """100,000 requests through the CRAG graph (five components and the web)."""
    kinds, planned = costs(args.profiles), plan(args.token_budget)
    slo = SloClass("slo", SLO_TIMES * unloaded_s(crag(), planned, kinds), target_share=PROMISED)
    found = {}
    for name, rate in (("least_slack", 30.0), ("fifo", 30.0)):
        began, wall = time.process_time(), time.perf_counter()
        results = simulate(crag(), planned, kinds, poisson(rate, 1), slo, setup=SETUPS[name], requests=args.requests)
        found[name] = {
            "requests": results.offered, "rate_per_s": rate, "processor_s": time.process_time() - began,
            "wall_s": time.perf_counter() - wall, "attained_share": results.attained_share,
        }  # fmt: skip
        print(name, json.dumps(found[name]))
    return found


def plots(args: argparse.Namespace) -> None:
    import scheduler_plots

    scheduler_plots.draw(json.loads(args.output.read_text())["policies"], args.output.parent)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "decisions": lambda args: scheduler_decisions.decisions(),
    "speed": speed,
    "policies": policies,
    "promises": promises,
    "draws": draws,
    "steps": steps,
    "overhead": overhead,
    "bounds": bounds,
    "overload": lambda args: bench_overload.overload(args.profiles, args.token_budgets),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PARTS, "plots", "all"])
    parser.add_argument("--profiles", type=File)
    parser.add_argument("--traces", type=File)
    parser.add_argument("-o", "--output", type=File)
    parser.add_argument("--part", help="the part of the file that is written; default: what is run")
    parser.add_argument("--graphs", nargs="+", choices=list(GRAPHS), default=list(GRAPHS))
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=ARRIVALS)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--token-budget", type=int, default=TOKEN_BUDGET, help="of the engines, per step")
    parser.add_argument("--token-budgets", type=int, nargs="+", default=[2048, 8192], help="overload: those to try")
    parser.add_argument("--requests", type=int, default=100_000, help="speed: how many")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    args.part = args.part or args.what
    if (
        args.what in ("speed", "policies", "promises", "draws", "steps", "overhead", "bounds", "overload", "all")
        and args.profiles is None
    ):
        parser.error("--profiles is needed: a folder with rows measured on a GPU")
    if (
        args.what in ("policies", "draws", "steps", "bounds", "all")
        and args.traces is None
        and set(args.arrivals) & set(TRACES)
    ):
        parser.error("--traces is needed for arrivals other than poisson")
    if args.what in ("steps", "bounds", "plots", "all") and args.output is None:
        parser.error("-o is needed: the file to write and draw")
    for part in PARTS if args.what == "all" else [args.what] if args.what != "plots" else []:
        args.part = part if args.what == "all" else args.part
        found = PARTS[part](args)
        if args.output is not None:
            keep(args.output, args.part, found)
    if args.what in ("plots", "all"):
        plots(args)


def earlier(path: File | None, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()).get(part, {}) if path is not None and path.exists() else {}
    return found


def keep(path: File, part: str, found: dict[str, Any]) -> None:
    """Replace one part of the file."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[part] = found
    results.write(path, whole, digits=5)


if __name__ == "__main__":
    main()
