"""Benchmarks of the scheduler. What is printed is simulated from measured profiles, except the cost of decisions.

    python tests/benchmarks/bench_scheduler.py decisions
    python tests/benchmarks/bench_scheduler.py speed    --profiles DIR
    python tests/benchmarks/bench_scheduler.py policies --profiles DIR [--graph crag|ircot] [--arrivals poisson|TRACE] [--requests N]
    python tests/benchmarks/bench_scheduler.py overload --profiles DIR

``DIR`` holds llama-3.2-3b.json, llama-3.1-8b.json, encoders.json and overload_crag.json: rows measured on one GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import numpy as np

from patchwork_scheduler.admission import Admission, Admit, Decision, Refuse
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.estimate import Ahead
from patchwork_scheduler.model import Call, SloClass
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.results import Results
from patchwork_scheduler.router import Router
from patchwork_scheduler.simulate import ComponentPlan, Setup, closed_loop, simulate, unloaded_s
from patchwork_scheduler.workbound import WorkBound
from patchwork_scheduler.workload import END, Path, Site, Step, Way, Workload, at_rate, poisson, trace_times

#: Not in the profiles: one pgvector query on one connection, and a web search. Stated, not measured on that machine.
SEARCH_S, WEB_S = 0.0012, 0.3
FIFO = Setup("fifo", "open", bounded=False, engine_priority=False)
SETUPS = {
    "fifo": FIFO,
    "edf": Setup("edf", "open", bounded=False),
    "paper": Setup("paper", "hold", bounded=False, engine_priority=False),
    "least_slack, open door": Setup(admission="open"),
    "least_slack": Setup(),
    "central (bound)": Setup(central=True),
}
LOADS = (0.5, 0.8, 0.9, 1.0, 1.2, 1.6, 2.0, 3.0)


# -- graphs ------------------------------------------------------------------------------------------------------------


def crag() -> Workload:
    """Embed, search, four graders; for 30 % a rewrite and a web search; answer. Five components, 7.6 calls a request."""
    return Workload(
        "embed",
        [
            Site("embed", "embedder", ways=(Way("search", 1.0),)),
            Site("search", "retriever", ways=(Way("grade", 1.0),)),
            Site("grade", "small", fan=4, prompt_tokens=600, output_tokens=4, ways=(Way("rewrite", 0.3), Way("answer", 0.7))),
            Site("rewrite", "small", prompt_tokens=120, output_tokens=32, output_spread=0.3, ways=(Way("web", 1.0),)),
            Site("web", "web", ways=(Way("answer", 1.0),)),
            Site("answer", "large", prompt_tokens=1500, output_tokens=128, output_spread=0.3),
        ],
    )  # fmt: skip


def ircot() -> Workload:
    """A step of thought and a retrieval by turns, up to five times; then the answer."""
    return Workload(
        "embed",
        [
            Site("embed", "embedder", ways=(Way("search", 1.0),)),
            Site("search", "retriever", ways=(Way("rerank", 1.0),)),
            Site("rerank", "reranker", size=16, ways=(Way("think", 1.0),)),
            Site("think", "small", prompt_tokens=900, output_tokens=40, output_spread=0.4, max_visits=5,
                 ways=(Way("answer", 0.4), Way("embed", 0.6))),
            Site("answer", "large", prompt_tokens=1800, output_tokens=80, output_spread=0.3),
        ],
    )  # fmt: skip


def costs(profiles: File) -> dict[str, BatchCost | TokenCost]:
    encoders = load(profiles / "encoders.json")["rows"]
    return {
        "embedder": BatchCost.fit(encoders["embedder-minilm-l6"], n_in=16),
        "reranker": BatchCost.fit(encoders["reranker-bge-base"], n_in=256),
        "retriever": BatchCost((1.0, 2.0), (SEARCH_S, 2 * SEARCH_S)),
        "web": BatchCost.constant(WEB_S),
        "small": TokenCost.fit(load(profiles / "llama-3.2-3b.json")["rows"]),
        "large": TokenCost.fit(load(profiles / "llama-3.1-8b.json")["rows"]),
    }


def plan() -> dict[str, ComponentPlan]:
    """For about 50 requests a second."""
    return {
        "embedder": ComponentPlan(1, max_batch=64), "reranker": ComponentPlan(2, max_batch=64), "retriever": ComponentPlan(1, max_batch=8),
        "web": ComponentPlan(24, max_batch=1), "small": ComponentPlan(2), "large": ComponentPlan(4),
    }  # fmt: skip


# -- policies by load --------------------------------------------------------------------------------------------------


def policies(args: argparse.Namespace) -> None:
    workload, kinds, planned = (crag() if args.graph == "crag" else ircot()), costs(args.profiles), plan()
    closed = closed_loop(workload, planned, kinds, in_flight=250, span_s=60.0)
    capacity = closed.offered / closed.end
    slo = SloClass("slo", args.slo_times * unloaded_s(workload, planned, kinds))
    print(
        f"{args.graph}, {args.arrivals}: capacity {capacity:.1f}/s (closed loop), SLO {slo.deadline_s:.2f} s, {args.requests} requests"
    )
    print("load | policy | attained % | missed of accepted % | refused % | goodput/s | p50 p95 p99 | ttft p50")
    for load_times in args.loads:
        rate = capacity * load_times
        for name in args.policies or SETUPS:
            found = simulate(
                workload, planned, kinds, arrivals(args.arrivals, rate), slo, setup=SETUPS[name], requests=args.requests, seed=3
            )  # fmt: skip
            span = last_arrival(args.arrivals, rate, args.requests)
            print(f"{load_times} | {name} | {row(found, span)}", flush=True)


def arrivals(kind: str, rate: float) -> Iterator[float]:
    if kind == "poisson":
        return poisson(rate, seed=11)
    with File(kind).open() as lines:
        return at_rate(trace_times(lines), rate)


def last_arrival(kind: str, rate: float, requests: int) -> float:
    return next(itertools.islice(arrivals(kind, rate), requests - 1, None))


def row(found: Results, span_s: float) -> str:
    ttft = float(np.median(found.ttft)) if found.ttft else math.nan
    return (
        f"{100 * found.attained_share:.1f} | {100 * found.missed_share:.1f} | {100 * found.refused / found.offered:.1f}"
        f" | {found.goodput(span_s):.1f} | {found.percentile(50):.2f} {found.percentile(95):.2f} {found.percentile(99):.2f} | {ttft:.2f}"
    )


# -- the load measured on one engine -----------------------------------------------------------------------------------


class CrudeAdmission(Admission):
    """What the measurement did: refuse while in flight / capacity is above 0.9 of the SLO."""

    capacity = 1.0

    def decide(self, slo: SloClass, ahead: Ahead, now: float, deadline: float, **_: Any) -> Decision:
        waiting = len(self) / self.capacity
        return Refuse(waiting, waiting) if waiting > 0.9 * slo.deadline_s else Admit(waiting)


GRADE = Site("grade", "llm", fan=4, prompt_tokens=600, output_tokens=4, ways=(Way("rewrite", 0.3), Way("answer", 0.7)))
REWRITE = Site("rewrite", "llm", prompt_tokens=120, output_tokens=32, ways=(Way("again", 1.0),))
AGAIN = replace(GRADE, id="again", ways=(Way("answer", 1.0),))
ANSWER = Site("answer", "llm", prompt_tokens=1500, output_tokens=128, ways=(Way(END, 1.0),))
MEASURED = Workload("grade", [GRADE, REWRITE, AGAIN, ANSWER])
SPAN_S = 22.0


def measured_path(loop: bool) -> Path:
    sites = [GRADE, REWRITE, AGAIN, ANSWER] if loop else [GRADE, ANSWER]
    return tuple(Step(site, 0, site.output_tokens) for site in sites)


def measured_arrivals(rate: float, span_s: float = SPAN_S) -> list[tuple[float, bool]]:
    """The arrivals of the measurement: same seed, same draws in the same order."""
    rng, at, out = random.Random(7), 0.0, []
    while at < span_s:
        out.append((at, rng.random() < 0.3))
        at += rng.expovariate(rate)
    return out


def one_engine(
    cost: TokenCost, planned: ComponentPlan, offered: list[tuple[float, bool]], slo_s: float, setup: Setup, door: Admission | None = None
) -> Results:  # fmt: skip
    loops = iter(offered)
    return simulate(
        MEASURED, {"llm": planned}, {"llm": cost}, [at for at, _ in offered], SloClass("slo", slo_s), setup=setup,
        paths=lambda _: measured_path(next(loops)[1]), door=door,
    )  # fmt: skip


def calibrated(cost: TokenCost, planned: ComponentPlan, unloaded: float, capacity: float) -> TokenCost:
    """The engine of the profile behind the host process of the measurement.

    Its two overheads per step are found from two numbers that are not compared afterwards: unloaded latency, closed-loop capacity.
    """
    every, prefill = 0.0, 0.0
    for _ in range(10):
        closed = closed_loop(
            MEASURED, {"llm": planned}, {"llm": cost.with_overhead(every, prefill)}, in_flight=64, span_s=15.0
        )
        prefill = max(0.0, prefill + 0.02 * (closed.offered / closed.end / capacity - 1.0))
        alone = [(100.0 * i, i % 10 < 3) for i in range(8)]
        found = one_engine(cost.with_overhead(every, prefill), planned, alone, 1e6, FIFO).mean_s
        every = max(0.0, every + (unloaded - found) / 150)
    return cost.with_overhead(every, prefill)


def overload(args: argparse.Namespace) -> None:
    measured = load(args.profiles / "overload_crag.json")
    profile = TokenCost.fit(load(args.profiles / "llama-3.2-3b.json")["rows"])
    shares = {(one["load"], one["policy"]): one for one in measured["rows"]}
    slo_s = 4 * measured["unloaded"]
    for budget in args.token_budgets:
        planned = ComponentPlan(1, max_sequences=256, token_budget=budget)
        cost = calibrated(profile, planned, measured["unloaded"], measured["capacity"] * args.capacity_scale)
        print(
            f"token budget {budget}: overhead per step {cost.overhead_s * 1e3:.2f} ms, {cost.prefill_overhead_s * 1e3:.2f} more to prefill"
        )
        print(
            "load | policy | offered | attained % simulated / measured | difference | missed of accepted % | goodput/s "
        )
        for times in (0.8, 1.1, 1.6):
            offered = measured_arrivals(measured["capacity"] * times)
            for name, setup in (
                ("fcfs", FIFO),
                ("edf", SETUPS["edf"]),
                ("edf+admit", SETUPS["edf"]),
                ("ours", Setup()),
            ):
                door = None
                if name == "edf+admit":
                    door = CrudeAdmission([SloClass("slo", slo_s)], {"llm": 1.0})
                    door.capacity = measured["capacity"]
                found = one_engine(cost, planned, offered, slo_s, setup, door)
                print(f"{times} | {name} | {compared(found, shares.get((times, name)))}", flush=True)
        for times in (0.8, 1.1, 1.6):
            offered = measured_arrivals(measured["capacity"] * times, span_s=300.0)
            found = one_engine(cost, planned, offered, slo_s, Setup())
            print(f"{times} | ours, 300 s instead of 22 | {row(found, 300.0)}", flush=True)


def compared(found: Results, real: dict[str, Any] | None) -> str:
    share, goodput = 100 * found.attained_share, found.attained / SPAN_S
    p50, p99 = found.percentile(50), found.percentile(99)
    if real is None:
        return f"{found.offered} | {share:.0f} / - | | {100 * found.missed_share:.1f} | {goodput:.1f} | {p50:.2f} | {p99:.2f}"
    there = 100 * real["attained_share"]
    return (
        f"{found.offered} | {share:.0f} / {there:.0f} | {share - there:+.0f} | {100 * found.missed_share:.1f} | {goodput:.1f}"
        f" | {p50:.2f} / {real['p50']:.2f} | {p99:.2f} / {real['p99']:.2f}"
    )


# -- what a decision costs ---------------------------------------------------------------------------------------------


def decisions(args: argparse.Namespace) -> None:
    """Push, pop, route and admit with 1,000 calls queued, eight replicas and 1,000 requests accepted."""
    slo = SloClass("slo", 5.0)
    ahead = Ahead(0.5, 0.6, 0.7, {"embedder": 0.001, "retriever": 0.002, "small": 0.1, "large": 0.2})
    door = Admission([slo], dict.fromkeys(ahead.demand, 4.0))
    router, bound = Router(), WorkBound(TokenCost(0.004, 1e-5, 2e-5))
    router.set_replicas([f"r{i}" for i in range(8)], 0.0)
    queue, rng = CallQueue(policy_by_name(), max_batch=1), random.Random(0)
    for i in range(1000):
        queue.push(made(f"q{i}", 0.0, rng))
        door.accepted(f"a{i}", slo, ahead, 5.0, 0.0, 0.5)
    for i in range(100):
        bound.started(made(f"b{i}", 0.0, rng), 0.0)
    spent: list[float] = []
    room: list[float] = []
    for i in range(20_000):
        now = i * 1e-4
        call = made(f"n{i}", now, rng)
        began = time.thread_time()  # not the time that others had the processor
        door.decide(slo, ahead, now, now + 5.0)
        name = router.choose(0.1, now)
        assert name is not None
        router.sent(name, call.id, 0.1, now)
        queue.push(call)
        head = queue.peek(now)
        queue.next_batch(now)
        router.replied(name, call.id, now, backlog_s=rng.random())
        spent.append(time.thread_time() - began)
        assert head is not None
        began = time.thread_time()
        bound.has_room(head, now)
        room.append(time.thread_time() - began)
    print("admit + route + push + pop + reply, microseconds:", percentiles(spent))
    print("room in an engine of 100 sequences, microseconds:", percentiles(room))


def made(name: str, now: float, rng: random.Random) -> Call:
    return Call(name, now, now + 5 * rng.random(), 1, "s", rng.random(), 0.0, 500, 100)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(1e6 * float(np.percentile(seconds, q)), 1) for q in (50, 90, 99, 99.9)}


def speed(args: argparse.Namespace) -> None:
    """100,000 requests through the CRAG graph (five components and the web)."""
    kinds = costs(args.profiles)
    slo = SloClass("slo", 2 * unloaded_s(crag(), plan(), kinds))
    for name, rate in (("least_slack", 30.0), ("least_slack", 60.0), ("fifo", 30.0)):
        began, wall = time.process_time(), time.perf_counter()
        found = simulate(crag(), plan(), kinds, poisson(rate, 1), slo, setup=SETUPS[name], requests=args.requests)
        print(
            f"{name} at {rate}/s: {found.offered} requests, {time.process_time() - began:.1f} s of processor,"
            f" {time.perf_counter() - wall:.1f} s of wall, {100 * found.attained_share:.1f} % attained"
        )


def load(path: File) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decisions", "speed", "policies", "overload"])
    parser.add_argument("--profiles", type=File)
    parser.add_argument("--graph", choices=["crag", "ircot"], default="crag")
    parser.add_argument("--arrivals", default="poisson", help="poisson, or the file of a trace")
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--policies", nargs="+", choices=list(SETUPS))
    parser.add_argument("--slo-times", type=float, default=2.0)
    parser.add_argument(
        "--capacity-scale", type=float, default=1.0, help="overload: of the capacity measured, as a sensitivity"
    )
    parser.add_argument("--token-budgets", type=int, nargs="+", default=[2048, 8192])
    args = parser.parse_args()
    if args.what != "decisions" and args.profiles is None:
        parser.error("--profiles is needed")
    {"decisions": decisions, "speed": speed, "policies": policies, "overload": overload}[args.what](args)


if __name__ == "__main__":
    main()
