"""The integer program behind a plan, for HiGHS.

Each *option* is one component on one node type with one profiled batch point. Variables:

    n  replicas of an option, integer          z  whether an option is chosen, binary
    L  seconds of a full batch of a component  theta  requests per second

    sum(n * calls_per_s) * max_utilisation >= visits * theta      per component that is visited
    n <= most * z                                                 an option not chosen has no replicas
    sum(z) <= 1                                                   one batch point per component, node type and hardware
    sum(n * need) <= what there is                                per node type: cores, GPUs, memory
    least <= sum(n) <= most                                       per component
    L >= seconds * z,  sum(serial visits * L) <= SLO              latency budget

Solved for the highest theta, then for the lowest cost at that theta. Node limits are sums over a type; that the replicas also fit on
its nodes one by one is checked afterwards, and a type on which they do not is made a little smaller until they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from patchwork_scheduler.plan_problem import KEEP, LARGE_GAP, SMALL, Demand, Problem, Solution, rate_of
from patchwork_scheduler.resources import Need, NodeType, unplaced

Vector = npt.NDArray[np.float64]

SCALE = 1000.0  #: theta runs to about this: HiGHS' absolute tolerances (1e-6) are then 1e-9 of it
LARGE_NODES = 500  #: and the branches it looks at; then the best plan so far is taken, and its bound is reported
PACKING_ROUNDS = 50


def solve_program(problem: Problem, only_rate: bool) -> Solution | None:
    """The best replicas that also fit on the nodes one by one; None when there are none."""
    limits = [_limits(node) for node in problem.nodes]
    bound: float | None = None
    for _ in range(PACKING_ROUNDS):
        solution = _Program(problem, limits).solve(only_rate)
        if solution is None:
            return None
        bound = solution.bound_per_s if bound is None else bound
        fits = True
        for index, node in enumerate(problem.nodes):
            wanted = [
                (o.need, n) for o, n in zip(problem.options, solution.replicas, strict=True) if n and o.node == index
            ]
            if (homeless := unplaced(node, wanted)) is not None:
                limits[index] = _tightened(limits[index], wanted, homeless)
                fits = False
        if fits:
            return replace(solution, bound_per_s=bound)
    return None


def _limits(node: NodeType) -> Vector:
    memory = math.inf if node.memory_bytes is None else float(node.memory_bytes)
    return np.array([node.cpus, node.gpus, memory]) * node.count


def _amounts(need: Need) -> Vector:
    return np.array([need.cpus, need.gpus, need.memory_bytes], dtype=float)


def _tightened(limits: Vector, wanted: list[tuple[Need, int]], homeless: Need) -> Vector:
    """Limits under which ``wanted`` is no longer allowed: less of what is used most, by a part of the replica that found no place."""
    used = np.sum([_amounts(need) * count for need, count in wanted], axis=0)
    need = _amounts(homeless)
    shares = np.where((need > 0) & np.isfinite(limits) & (limits > 0), used / np.where(limits > 0, limits, 1), 0)
    tightest = int(np.argmax(shares))
    smaller = limits.copy()
    smaller[tightest] = used[tightest] - need[tightest] / 4
    return smaller


class _Program:
    """Rows and columns for HiGHS: first n per option, then z per option, then L per component, then theta."""

    def __init__(self, problem: Problem, limits: Sequence[Vector]) -> None:
        self._problem = problem
        self._num_options = len(problem.options)
        self._width = 2 * self._num_options + len(problem.demands) + 1
        self._entries: list[tuple[int, int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []
        self._unit = self._theta_unit()
        self._small = sum(o.most for o in problem.options) <= SMALL
        for index, demand in enumerate(problem.demands):
            self._component_rows(index, demand)
        for index, limit in enumerate(limits):
            self._node_rows(index, limit)
        self._choice_rows()
        if problem.path_budget_s is not None:
            self._row({self._path(i): d.serial for i, d in enumerate(problem.demands)}, high=problem.path_budget_s)

    def solve(self, only_rate: bool) -> Solution | None:
        problem, theta = self._problem, self._width - 1
        low, high = self._variable_bounds()
        best: Solution | None = None
        rate = problem.rate_per_s
        if rate is None:
            found = self._milp(self._objective({theta: -1.0}), low, high)
            if found is None:
                return None
            replicas, dual = found
            rate = rate_of(problem, replicas)
            best = Solution(replicas, max(-dual * self._unit, rate))
        if only_rate and best is not None:
            return best
        low[theta] = rate / self._unit * (1 - KEEP)
        cheapest = self._milp(self._objective(dict(enumerate(self._prices()))), low, high)
        if cheapest is None:
            return best
        return Solution(cheapest[0], best.bound_per_s if best else None)

    def _theta_unit(self) -> float:
        """Requests per second of one unit of the theta column."""
        alone = []
        for index, demand in enumerate(self._problem.demands):
            rates = [o.calls_per_s * o.most for o in self._problem.options if o.component == index]
            if demand.visits > 0 and rates:
                alone.append(sum(rates) * self._problem.max_utilisation / demand.visits)
        return (self._problem.rate_per_s or min(alone, default=1.0) or 1.0) / SCALE

    def _path(self, component: int) -> int:
        return 2 * self._num_options + component

    def _prices(self) -> list[float]:
        return [self._problem.price(o) for o in self._problem.options]

    def _component_rows(self, index: int, demand: Demand) -> None:
        mine = [(j, o) for j, o in enumerate(self._problem.options) if o.component == index]
        if demand.visits > 0:
            factor = self._problem.max_utilisation / demand.visits / self._unit
            self._row({j: o.calls_per_s * factor for j, o in mine} | {self._width - 1: -1.0}, low=0.0)
        most = np.inf if demand.most is None else demand.most
        self._row({j: 1.0 for j, _ in mine}, low=demand.least, high=most)
        for j, option in mine:
            self._row({self._path(index): 1.0, self._num_options + j: -option.seconds}, low=0.0)

    def _node_rows(self, index: int, limit: Vector) -> None:
        mine = [(j, _amounts(o.need)) for j, o in enumerate(self._problem.options) if o.node == index]
        for resource, available in enumerate(limit):
            if not math.isfinite(available):
                continue
            unit = max(
                (amounts[resource] for _, amounts in mine), default=0.0
            )  # bytes and cores in numbers of like size
            if unit > 0:
                self._row({j: amounts[resource] / unit for j, amounts in mine}, high=available / unit + 1e-9)

    def _choice_rows(self) -> None:
        choices: dict[tuple[int, int, int], list[int]] = {}
        for j, option in enumerate(self._problem.options):
            self._row({j: 1.0, self._num_options + j: -float(option.most)}, high=0.0)
            choices.setdefault(option.choice, []).append(j)
        for alternatives in choices.values():
            self._row({self._num_options + j: 1.0 for j in alternatives}, high=1.0)

    def _row(self, coefficients: dict[int, float], *, low: float = -np.inf, high: float = np.inf) -> None:
        row = len(self._low)
        self._entries += [(row, column, value) for column, value in coefficients.items() if value]
        self._low.append(low)
        self._high.append(high)

    def _objective(self, coefficients: dict[int, float]) -> Vector:
        objective = np.zeros(self._width)
        for column, value in coefficients.items():
            objective[column] = value
        return objective

    def _variable_bounds(self) -> tuple[Vector, Vector]:
        low, high = np.zeros(self._width), np.full(self._width, np.inf)
        high[: self._num_options] = [o.most for o in self._problem.options]
        high[self._num_options : 2 * self._num_options] = 1.0
        if all(d.visits == 0 for d in self._problem.demands):
            high[-1] = 0.0
        return low, high

    def _milp(self, objective: Vector, low: Vector, high: Vector) -> tuple[tuple[int, ...], float] | None:
        """Replicas per option and the dual bound of the objective; None when infeasible."""
        integral = np.zeros(self._width)
        integral[: 2 * self._num_options] = 1
        rows, columns, values = zip(*self._entries, strict=True)
        matrix = csr_array((values, (rows, columns)), shape=(len(self._low), self._width))
        result = milp(
            objective,
            integrality=integral,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix, np.array(self._low), np.array(self._high)),
            # a limit of time would make the plan depend on how busy the machine is
            options={"mip_rel_gap": 0.0} if self._small else {"mip_rel_gap": LARGE_GAP, "node_limit": LARGE_NODES},
        )
        if result.x is None:
            return None
        replicas = tuple(round(value) for value in result.x[: self._num_options])
        return replicas, float(result.fun if result.mip_dual_bound is None else result.mip_dual_bound)
