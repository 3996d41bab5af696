"""``patchwork simulate``: how a plan would keep its deadlines under given arrivals, without deploying it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.errors import InvalidWorkload
from patchwork_scheduler.from_profile import Simulated, simulated
from patchwork_scheduler.model import TARGET_SHARE, SloClass
from patchwork_scheduler.plan_model import Plan
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.results import Results
from patchwork_scheduler.simulate import SETUPS, setup_by_name, simulate, unloaded
from patchwork_scheduler.workload import at_rate, gamma, poisson, trace_times
from patchwork_serving.cli_output import console, fact_json, note, table
from patchwork_serving.cli_predictions import predictions_table
from patchwork_serving.config import parse_seconds
from patchwork_serving.errors import UsageError

ALL = "all"
#: Drawn arrivals have no end, traces may have millions.
DEFAULT_REQUESTS, MOST_REQUESTS = 5000, 1_000_000
#: As in the paper, where neither the command nor the plan has a promise.
SLO_TIMES_UNLOADED = 2.0
#: From so many requests on, a person is told what is being waited for.
SLOW_REQUESTS = 20_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for; None: not said."""

    plan: Path
    profile: Path
    arrivals: str
    policy: str
    rate: float | None = None
    slo: str | None = None
    requests: int | None = None
    seed: int = 0
    target_share: float | None = None  #: of the requests let in
    step_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Arrivals:
    times: tuple[float, ...]

    @property
    def rate(self) -> float:
        return (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)


def run(wish: Wish, *, as_json: bool) -> None:
    """Simulate and print. Raises UsageError, UnknownPolicy, InvalidInput, IncompleteProfile, InvalidWorkload."""
    names = list(SETUPS) if wish.policy == ALL else [wish.policy]
    setups = {name: setup_by_name(name) for name in names}
    plan, profile = Plan.load(wish.plan), Profile.load(wish.profile)
    system = _stepping(simulated(plan, profile), wish.step_tokens)
    arrivals = Arrivals(tuple(read_arrivals(wish)))
    share = TARGET_SHARE if wish.target_share is None else wish.target_share
    slo = replace(_slo(wish, plan, system), target_share=share)
    alone = unloaded(system.workload, system.plan, system.costs, slo, seed=wish.seed)
    found: dict[str, Results] = {}
    for name, setup in setups.items():
        if len(arrivals.times) >= SLOW_REQUESTS:
            note(f"simulating {len(arrivals.times)} requests, {name} ...")
        found[name] = simulate(
            system.workload, system.plan, system.costs, arrivals.times, slo, setup=setup, seed=wish.seed
        )
    if as_json:
        fact_json(document(wish, plan, arrivals, alone, found))
    else:
        _show(wish, plan, arrivals, alone, found)


def document(wish: Wish, plan: Plan, arrivals: Arrivals, alone: Results, found: dict[str, Results]) -> dict[str, Any]:
    """What ``--json`` prints. Simulated figures say so."""
    return {
        "simulated": True,
        "chain": plan.chain,
        "arrivals": wish.arrivals,
        "requests": len(arrivals.times),
        "offered_per_s": arrivals.rate,
        "slo_s": alone.slo.deadline_s,
        "target_share": alone.slo.target_share,
        "step_tokens": wish.step_tokens,
        "seed": wish.seed,
        "unloaded": {"mean_s": alone.mean_s, "missed_share": alone.missed_share},
        "results": [{"policy": name, **results.to_json()} for name, results in found.items()],
    }


# -- what was asked for ------------------------------------------------------------------------------------------------


def read_arrivals(wish: Wish) -> Iterator[float]:
    """Increasing seconds: ``poisson:RATE``, ``gamma:RATE:CV``, or a trace at its own rate or at ``--rate``. Raises UsageError."""
    if wish.requests is not None and not 2 <= wish.requests <= MOST_REQUESTS:
        raise UsageError(f"--requests: {wish.requests} must be from 2 to {MOST_REQUESTS}")
    if wish.rate is not None and not (wish.rate > 0 and math.isfinite(wish.rate)):
        raise UsageError(f"--rate: {wish.rate:g} must be more than 0 requests/s")
    kind, _, rest = wish.arrivals.partition(":")
    if kind in ("poisson", "gamma"):
        rate, cv = _numbers(wish.arrivals, kind, rest)
        drawn = poisson(wish.rate or rate, wish.seed) if kind == "poisson" else gamma(wish.rate or rate, cv, wish.seed)
        return itertools.islice(drawn, wish.requests or DEFAULT_REQUESTS)
    return _trace(wish)


def _numbers(text: str, kind: str, rest: str) -> tuple[float, float]:
    shape = "poisson:RATE" if kind == "poisson" else "gamma:RATE:CV"
    wanted = shape.count(":")
    try:
        numbers = [float(one) for one in rest.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != wanted or not all(number > 0 and math.isfinite(number) for number in numbers):
        raise UsageError(
            f"--arrivals: {text!r} is not {shape} with numbers above 0, for example {kind}:20{':2' * (wanted - 1)}"
        )
    return numbers[0], numbers[-1]


def _trace(wish: Wish) -> Iterator[float]:
    path = Path(wish.arrivals)
    if not path.is_file():
        raise UsageError(
            f"--arrivals: {wish.arrivals!r} is neither poisson:RATE, nor gamma:RATE:CV, nor a trace file that exists"
        )
    try:
        with path.open(encoding="utf-8") as lines:
            times = trace_times(lines)
    except (OSError, ValueError, TypeError, InvalidWorkload) as error:
        raise UsageError(f"--arrivals: {path} is no trace that can be read ({error})") from error
    if len(times) < 2 or times[-1] <= times[0]:
        raise UsageError(f"--arrivals: {path} needs two arrivals at different times")
    rate = wish.rate or (len(times) - 1) / (times[-1] - times[0])
    return itertools.islice(at_rate(times, rate), wish.requests or min(len(times), MOST_REQUESTS))


def _stepping(system: Simulated, step_tokens: int | None) -> Simulated:
    """With steps of that size in all engines that work token by token. UsageError when there is none."""
    if step_tokens is None:
        return system
    llms = [name for name, cost in system.costs.items() if isinstance(cost, TokenCost)]
    if not llms:
        raise UsageError("--step-tokens: no component of the profile was measured token by token")
    return replace(
        system, plan={**system.plan, **{name: replace(system.plan[name], token_budget=step_tokens) for name in llms}}
    )


def _slo(wish: Wish, plan: Plan, system: Simulated) -> SloClass:
    if wish.slo is not None:
        try:
            seconds = parse_seconds(wish.slo)
        except ValueError as error:
            raise UsageError(f"--slo: {error}") from None
        if not isinstance(seconds, float) or seconds <= 0:
            raise UsageError(f"--slo: {wish.slo!r} must be more than 0 seconds")
        return SloClass("slo", seconds)
    if plan.slo_s is not None:
        return SloClass("slo", plan.slo_s)
    alone = unloaded(system.workload, system.plan, system.costs, SloClass("alone", 1e6), seed=wish.seed)
    return SloClass("slo", SLO_TIMES_UNLOADED * alone.mean_s)


# -- for a person ------------------------------------------------------------------------------------------------------


def _show(wish: Wish, plan: Plan, arrivals: Arrivals, alone: Results, found: dict[str, Results]) -> None:
    out = console()
    out.print(
        f"{plan.chain}, simulated: {len(arrivals.times)} requests at {arrivals.rate:.3g}/s ({wish.arrivals}), SLO"
        f" {alone.slo.deadline_s:.3g} s; alone a request takes {alone.mean_s:.3g} s, and {alone.missed_share:.1%} miss even so",
        highlight=False,
    )
    rows = table(
        "policy", "in time", "late", "refused", "late of accepted", "in time/s", "p50", "p95", "p99", "first token p50"
    )
    for name, results in found.items():
        rows.add_row(name, *_row(results))
    out.print(rows)
    uses = table("component", "replicas", "busy", "work")
    name, results = next(reversed(found.items())) if len(found) == 1 else ("least_slack", found["least_slack"])
    for component, use in sorted(results.components.items(), key=lambda one: -one[1].work_share):
        uses.add_row(component, str(use.replicas), f"{use.busy_share:.0%}", f"{use.work_share:.0%}")
    out.print(f"components under {name}: share of time busy; work brought, of what full batches could do", style="dim")
    out.print(uses)
    if predictions := results.to_json()["predictions"]:
        out.print(f"remaining time under {name}: predicted against what it was, mean of each", style="dim")
        out.print(predictions_table(predictions))


def _row(results: Results) -> list[str]:
    offered = max(results.offered, 1)
    first = results.first_token_percentile(50)
    return [
        f"{results.attained / offered:.1%}", f"{results.missed / offered:.1%}", f"{results.refused / offered:.1%}",
        f"{results.missed_share:.1%}", f"{results.goodput():.3g}",
        *(f"{results.percentile(q):.3g} s" for q in (50, 95, 99)),
        "-" if first is None else f"{first:.3g} s",
    ]  # fmt: skip
