"""Sharing out a latency budget among components, for problems too large for the integer program to do it by itself.

Shadow prices of the cores, GPUs and memory of each node type (duals of the linear relaxation) say what a call of each component costs when
its batch may take so and so long. Taking one longest batch per component, at the least sum of costs and within the budget, is a
small knapsack. Prices and choice follow each other for a few rounds; the best choice seen is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from patchwork_scheduler.plan_problem import Problem

Vector = npt.NDArray[np.float64]
Levels = list[float]  #: longest batch per component, seconds

ROUNDS = 6


def share_out(problem: Problem) -> Levels | None:
    """Longest batch per component, within ``path_budget_s`` together; None when not even the shortest are."""
    budget = problem.path_budget_s
    if budget is None:
        return None
    choices = [sorted({o.seconds for o in problem.options if o.component == i}) for i in range(len(problem.demands))]
    if not all(choices):
        return None
    levels: Levels = [seconds[-1] for seconds in choices]
    prices = _relaxed(problem, levels)[1]
    best: tuple[float, Levels] | None = None
    for _ in range(ROUNDS):
        chosen = _knapsack(problem, choices, prices, budget)
        if chosen is None:
            return None
        rate, new_prices = _relaxed(problem, chosen)
        if best is None or rate > best[0]:
            best = rate, chosen
        prices = (prices + new_prices) / 2  # halfway, or two choices would follow each other for ever
    return best[1] if best else None


def _relaxed(problem: Problem, levels: Levels) -> tuple[float, Vector]:
    """Rate with fractions of replicas, and the shadow price of each node type's cores, GPUs and memory."""
    options = [o for o in problem.options if o.seconds <= levels[o.component]]
    theta, num_components = len(options), len(problem.demands)
    rows = np.zeros((num_components + 3 * len(problem.nodes), theta + 1))
    limits = np.zeros(len(rows))
    for i, demand in enumerate(problem.demands):
        rows[i, theta] = demand.visits
    for j, option in enumerate(options):
        rows[option.component, j] = -option.calls_per_s * problem.max_utilisation
        at = num_components + 3 * option.node
        rows[at : at + 3, j] = option.need.cpus, option.need.gpus, option.need.memory_bytes / 2**30
    for k, node in enumerate(problem.nodes):
        at = num_components + 3 * k
        memory = np.inf if node.memory_bytes is None else node.memory_bytes / 2**30
        limits[at : at + 3] = np.array([node.cpus, node.gpus, memory]) * node.count
    finite = np.isfinite(limits)
    objective = np.zeros(theta + 1)
    objective[theta] = -1.0
    bounds = [(0.0, float(o.most)) for o in options] + [(0.0, None)]
    result = linprog(objective, A_ub=rows[finite], b_ub=limits[finite], bounds=bounds, method="highs")
    duals = np.zeros(len(rows))
    duals[finite] = -result.ineqlin.marginals
    return -float(result.fun), duals[num_components:].reshape(-1, 3)


def _knapsack(problem: Problem, choices: list[list[float]], prices: Vector, budget: float) -> Levels | None:
    """One level per component, of least cost in ``prices``, within the budget."""
    items = [(i, seconds) for i, all_of_it in enumerate(choices) for seconds in all_of_it]
    costs = np.array([_cost(problem, i, seconds, prices) for i, seconds in items])
    costs /= costs.max() or 1.0
    one_each = np.array([[float(i == component) for i, _ in items] for component in range(len(choices))])
    path = np.array([problem.demands[i].serial * seconds for i, seconds in items])
    result = milp(
        costs + 1e-9 * path,
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(path[None, :], -np.inf, budget)],
    )
    if result.x is None:
        return None
    return [seconds for taken, (_, seconds) in zip(result.x, items, strict=True) if taken > 0.5]


def _cost(problem: Problem, component: int, longest: float, prices: Vector) -> float:
    """Shadow price of the calls that one request makes to a component, where that is least."""
    each = [
        float(prices[o.node] @ (o.need.cpus, o.need.gpus, o.need.memory_bytes / 2**30)) / o.calls_per_s
        for o in problem.options
        if o.component == component and o.seconds <= longest
    ]
    return problem.demands[component].visits * min(each)
