"""What can be chosen: what a promise is worth, and the size of an engine's steps. Parts of bench_scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_scheduler import Case

#: Shares of accepted requests that are promised to be in time.
PROMISES = (0.98, 0.95, 0.9, 0.8, 0.7)
PROMISE_LOADS = (0.5, 0.75, 1.0, 2.0)
#: Steps that read the weights about as long as they compute: shorter ones waste prefills, longer ones keep decodes waiting.
STEP_TOKENS = 320
#: What a step that prefills took more than computing, as fitted to a load measured on a GPU (part ``overload``); not in the profiles.
OVERHEAD_S = (0.00028, 0.0034)
OVERHEAD_STEPS = (320, 768, 2048)

#: case, arrivals, policy, load -> a row
Run = Callable[["Case", str, str, float], dict[str, Any]]


def brief(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("graph", "arrivals", "load", "policy", "attained_share", "missed_share_of_accepted", "goodput_per_s")
    return {key: row[key] for key in kept}


def promises(cases: Iterable[Case], run: Run) -> list[dict[str, Any]]:
    """Attained and missed by the share that is promised, Poisson arrivals; first come first served beside it."""
    found = []
    for one in cases:
        for load in PROMISE_LOADS:
            rows = [brief(run(one, "poisson", "fifo", load))]
            for share in PROMISES:
                asked = replace(one, slo=replace(one.slo, target_share=share))
                rows.append({**brief(run(asked, "poisson", "least_slack", load)), "target_share": share})
            told = (
                f"{row.get('target_share', 'fifo')}: {row['attained_share']:.3f} ({row['missed_share_of_accepted']:.3f})"
                for row in rows
            )
            print(one.graph, load, *told, flush=True)
            found += rows
    return found


def steps(cells: Iterable[tuple[Case, str, float]], run: Run) -> list[dict[str, Any]]:
    """The same arrivals with short steps: a schedule that shows what is reachable. ``cells``: each with the load where first come first
    served attains 70 % in the long steps of the case; Poisson arrivals also at capacity."""
    found = []
    for one, kind, load in cells:
        short = replace(one, token_budget=STEP_TOKENS)
        for at in (load, 1.0) if kind == "poisson" else (load,):
            rows = [
                {**brief(run(short, kind, policy, at)), "step_tokens": STEP_TOKENS}
                for policy in ("fifo", "least_slack", "ideal")
            ]
            told = (
                f"{row['policy']}: {row['attained_share']:.3f} ({row['missed_share_of_accepted']:.3f})" for row in rows
            )
            print(one.graph, kind, at, *told, flush=True)
            found += rows
    return found


def steps_with_overhead(one: Case, run: Run, where: Callable[[Case, str], float]) -> list[dict[str, Any]]:
    """Steps of several sizes, where one that prefills takes longer than it computes. Loads are of the case's own capacity."""
    found = []
    load = round(where(one, "poisson"), 4)
    for size in OVERHEAD_STEPS:
        for policy in ("fifo", "least_slack"):
            row = {**brief(run(replace(one, token_budget=size), "poisson", policy, load)), "step_tokens": size}
            print(
                "with overhead",
                size,
                policy,
                load,
                f"{row['attained_share']:.3f} ({row['missed_share_of_accepted']:.3f})",
                flush=True,
            )
            found.append(row)
    return found
