"""A load that was measured on one GPU, in the simulator: how far the two agree, and what our scheduler makes of it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from scheduler_graphs import load

from patchwork_scheduler.admission import Admission, Admit, Decision, Refuse
from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.estimate import Ahead
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.results import Results
from patchwork_scheduler.simulate import SETUPS, ComponentPlan, Setup, closed_loop, simulate
from patchwork_scheduler.workload import END, Path, Site, Step, Way, Workload


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
SPAN_S, LONG_S = 22.0, 300.0
TIMES = (0.8, 1.1, 1.6)
MEASURED_SETUPS = {
    "fcfs": SETUPS["fifo"],
    "edf": SETUPS["edf"],
    "edf+admit": SETUPS["edf"],
    "ours": SETUPS["least_slack"],
}


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
        MEASURED, {"llm": planned}, {"llm": cost}, [at for at, _ in offered], SloClass("slo", slo_s, target_share=0.98), setup=setup,
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
        found = one_engine(cost.with_overhead(every, prefill), planned, alone, 1e6, SETUPS["fifo"]).mean_s
        every = max(0.0, every + (unloaded - found) / 150)
    return cost.with_overhead(every, prefill)


def overload(profiles: File, token_budgets: list[int]) -> dict[str, Any]:
    """The three measured policies simulated, then ours."""
    measured = load(profiles / "overload_crag.json")
    profile = TokenCost.fit(load(profiles / "llama-3.2-3b.json")["rows"])
    real = {(one["load"], one["policy"]): one for one in measured["rows"]}
    found: dict[str, Any] = {
        "slo_s": 4 * measured["unloaded"],
        "capacity_per_s": measured["capacity"],
        "token_budgets": {},
    }
    for budget in token_budgets:
        planned = ComponentPlan(1, max_sequences=256, token_budget=budget)
        cost = calibrated(profile, planned, measured["unloaded"], measured["capacity"])
        rows = [
            one_row(cost, planned, measured, times, name, real.get((times, name)))
            for times in TIMES
            for name in ("fcfs", "edf", "edf+admit", "ours")
        ]
        rows += [one_row(cost, planned, measured, times, "ours", None, span_s=LONG_S) for times in TIMES]
        differences = [abs(row["difference_points"]) for row in rows if "difference_points" in row]
        found["token_budgets"][budget] = {
            "overhead_per_step_s": cost.overhead_s, "more_to_prefill_s": cost.prefill_overhead_s, "rows": rows,
            "worst_difference_points": max(differences), "cells_beyond_10_points": sum(one > 10 for one in differences),
        }  # fmt: skip
    return found


def one_row(
    cost: TokenCost, planned: ComponentPlan, measured: dict[str, Any], times: float, name: str, real: dict[str, Any] | None,
    span_s: float = SPAN_S,
) -> dict[str, Any]:  # fmt: skip
    slo_s, capacity = 4 * measured["unloaded"], measured["capacity"]
    offered = measured_arrivals(capacity * times, span_s)
    door = None
    if name == "edf+admit":
        door = CrudeAdmission([SloClass("slo", slo_s)], {"llm": 1.0})
        door.capacity = capacity
    found = one_engine(cost, planned, offered, slo_s, MEASURED_SETUPS[name], door)
    row: dict[str, Any] = {
        "load": times, "policy": name, "span_s": span_s, "offered": found.offered, "attained_share": found.attained_share,
        "missed_share_of_accepted": found.missed_share, "goodput_per_s": found.attained / span_s,
        "p50_s": found.percentile(50), "p99_s": found.percentile(99),
    }  # fmt: skip
    if real is not None:
        row["measured"] = {key: real[key] for key in ("attained_share", "goodput", "p50", "p99")}
        row["difference_points"] = 100 * (found.attained_share - real["attained_share"])
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row
