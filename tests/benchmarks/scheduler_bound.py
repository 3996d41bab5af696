"""How many requests could be in time if all were known beforehand: an upper bound for any order, batches, steps and door.

A linear program over windows of time. Each call of an LLM needs at least the seconds that its tokens take to compute, on engines that
never read their weights for anybody alone. They must be had after the least time of all that comes before it in its request, and early
enough for the least time of all that follows. A request counts in part if it is served in part; a call's work may be divided among
engines. What is left out (weights, steps, order within a window, other components) only makes the bound higher.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.simulate import ComponentPlan
from patchwork_scheduler.workload import Path, Step, Workload

#: Engines' time is balanced in windows of so many seconds.
WINDOW_S = 0.2

Costs = Mapping[str, BatchCost | TokenCost]


@dataclass(frozen=True, slots=True)
class _Work:
    """Of one call-site of one request."""

    request: int
    component: str
    seconds: float  #: of one engine
    first: float  #: earliest that it can begin
    last: float  #: latest that it must be done


def bound(
    workload: Workload, plan: Mapping[str, ComponentPlan], costs: Costs, times: Sequence[float], slo_s: float, *, seed: int
) -> float:  # fmt: skip
    """Share of the requests at ``times`` that anybody could have answered within ``slo_s``; they are those that ``simulate`` draws."""
    rng = random.Random(seed)
    paths = [workload.path(rng) for _ in times]
    works = [
        work
        for i, (at, path) in enumerate(zip(times, paths, strict=True))
        for work in _works(i, at, path, costs, slo_s)
    ]
    return _most(len(times), works, {name: plan[name].replicas for name in {one.component for one in works}}) / len(
        times
    )


def _works(request: int, at: float, path: Path, costs: Costs, slo_s: float) -> Iterator[_Work]:
    alone = [_alone_s(step, costs[step.site.component]) for step in path]
    for i, step in enumerate(path):
        cost = costs[step.site.component]
        if not isinstance(cost, TokenCost):
            continue
        prompt, output = step.site.prompt_tokens, step.output_tokens
        first, last = at + sum(alone[:i]) + cost.call_s, at + slo_s - sum(alone[i + 1 :])
        # each token after the first needs a step of its own
        yield _Work(
            request,
            step.site.component,
            step.site.fan * cost.prefill_s * prompt,
            first,
            last - (output - 1) * cost.base_s,
        )
        decode_s = output * (cost.sequence_s + cost.context_s * (prompt + output / 2))
        yield _Work(request, step.site.component, step.site.fan * decode_s, first, last)


def _alone_s(step: Step, cost: BatchCost | TokenCost) -> float:
    if isinstance(cost, TokenCost):
        return cost.alone_s(step.site.prompt_tokens, step.output_tokens)
    return cost(step.site.size)


def _most(requests: int, works: Sequence[_Work], replicas: Mapping[str, int]) -> float:
    """Maximise the sum of x, each request's part in [0, 1], so that each work has x times its seconds within its time."""
    cells: dict[tuple[str, int], int] = {}
    columns: list[float] = []
    rows_equal: list[int] = []
    rows_most: list[int] = []
    lost = {one.request for one in works if one.last <= one.first}
    for number, one in enumerate(works):
        if one.request in lost:
            continue
        for window in range(int(one.first / WINDOW_S), int(one.last / WINDOW_S) + 1):
            overlap = min(one.last, (window + 1) * WINDOW_S) - max(one.first, window * WINDOW_S)
            if overlap > 0.0:
                columns.append(overlap * replicas[one.component])
                rows_equal.append(number)
                rows_most.append(cells.setdefault((one.component, window), len(cells)))
    amounts = len(columns)
    values = np.ones(amounts)
    index = requests + np.arange(amounts)
    whole = csr_matrix(
        (
            np.concatenate([values, [-one.seconds for one in works]]),
            (
                np.concatenate([rows_equal, np.arange(len(works))]),
                np.concatenate([index, [one.request for one in works]]),
            ),
        ),
        shape=(len(works), requests + amounts),
    )
    shared = csr_matrix((values, (rows_most, index)), shape=(len(cells), requests + amounts))
    room = np.array([WINDOW_S * replicas[component] for component, _ in cells])
    upper = np.concatenate([[0.0 if i in lost else 1.0 for i in range(requests)], columns])
    gain = np.concatenate([-np.ones(requests), np.zeros(amounts)])
    found = linprog(
        gain, A_ub=shared, b_ub=room, A_eq=whole, b_eq=np.zeros(len(works)), bounds=np.stack([np.zeros_like(upper), upper], axis=1),
        method="highs-ipm",
    )  # fmt: skip
    if not found.success:
        raise RuntimeError(f"the linear program was not solved: {found.message}")
    return float(-found.fun)
