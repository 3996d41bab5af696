"""The integer program behind a plan.

Each *option* is one component on one node type with one profiled batch point. Variables:

    n  replicas of an option, integer          z  whether an option is chosen, binary
    L  seconds of a full batch of a component  theta  requests per second

    sum(n * calls_per_s) * max_utilisation >= visits * theta      per component that is visited
    n <= most * z                                                 an option not chosen has no replicas
    sum(z) <= 1                                                   one batch point per component, node type and hardware
    sum(n * need) <= what there is                                per node type: cores, GPUs, memory
    least <= sum(n) <= most                                       per component
    L >= seconds * z,  sum(serial visits * L) <= SLO              latency budget

Solved in three steps, each keeping what the one before reached: highest theta, then lowest cost, then shortest path. Node limits are
sums over a type; that the replicas also fit on its nodes one by one is checked afterwards, and a type on which they do not is made
a little smaller until they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from patchwork_scheduler.resources import Need, NodeType, unplaced

Vector = npt.NDArray[np.float64]

SCALE = 1000.0  #: theta runs to about this: HiGHS' absolute tolerances (1e-6) are then 1e-9 of it
KEEP = 1e-7  #: relative slack on what an earlier step reached, so that rounding does not make it infeasible
SMALL = 256  #: replicas up to which the optimum is proved exactly
LARGE_GAP = 1e-3  #: above: relative gap at which a step stops; profiles are not that precise
TIME_LIMIT_S = 60.0  #: per step; the best plan found by then is taken, its bound is reported
PACKING_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a component."""

    component: int
    node: int
    variant: int  #: which measurement: of its batch points one is chosen per node type
    hardware: str
    batch: int
    seconds: float
    first_s: float  #: seconds of the smallest batch: a call with nobody before it
    need: Need
    most: int  #: replicas that the node type can hold

    @property
    def calls_per_s(self) -> float:
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a component."""

    visits: float
    serial: float  #: visits that follow one another
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    nodes: tuple[NodeType, ...]
    demands: tuple[Demand, ...]
    options: tuple[Option, ...]
    max_utilisation: float
    rate_per_s: float | None  #: None: maximise
    path_budget_s: float | None  #: for the full batches of all components together


@dataclass(frozen=True, slots=True)
class Solution:
    replicas: tuple[int, ...]  #: per option
    bound_per_s: float | None  #: upper bound of theta, before replicas had to fit on nodes one by one


class Until(Enum):
    """How many of the three steps are taken."""

    RATE = 1
    COST = 2
    PATH = 3


def rate_of(problem: Problem, replicas: Sequence[int]) -> float:
    """Requests per second that these replicas sustain; infinite when no component is visited."""
    capacity = [0.0] * len(problem.demands)
    for option, count in zip(problem.options, replicas, strict=True):
        capacity[option.component] += option.calls_per_s * count
    return min(
        (
            c * problem.max_utilisation / d.visits
            for c, d in zip(capacity, problem.demands, strict=True)
            if d.visits > 0
        ),
        default=math.inf,
    )


def solve(problem: Problem, until: Until = Until.PATH) -> Solution | None:
    """The best replicas per option; None when there are none that meet all limits."""
    limits = [_limits(node) for node in problem.nodes]
    bound: float | None = None
    for _ in range(PACKING_ROUNDS):
        solution = _Program(problem, limits).solve(until)
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

    def solve(self, until: Until) -> Solution | None:
        problem, theta = self._problem, self._width - 1
        low, high = self._variable_bounds()
        bound: float | None = None
        if problem.rate_per_s is None:
            best = self._milp(self._objective({theta: -1.0}), low, high)
            if best is None:
                return None
            replicas, dual = best
            bound = max(-dual * self._unit, rate_of(problem, replicas))
            rate = rate_of(problem, replicas)
        else:
            rate, replicas = problem.rate_per_s, None
        low[theta] = rate / self._unit * (1 - KEEP)
        if replicas is not None and until is Until.RATE:
            return Solution(replicas, bound)
        cheapest = self._milp(self._objective(dict(enumerate(self._prices()))), low, high)
        if cheapest is None:
            return None if replicas is None else Solution(replicas, bound)
        replicas = cheapest[0]
        if until is Until.PATH:
            cost = float(np.dot(self._prices(), replicas))
            self._row(dict(enumerate(self._prices())), high=cost * (1 + KEEP) + KEEP)
            # components that no request passes on its path get the smaller batch too, last
            path = {self._path(i): d.serial + 1e-3 for i, d in enumerate(problem.demands)}
            shortest = self._milp(self._objective(path), low, high)
            replicas = replicas if shortest is None else shortest[0]
        return Solution(replicas, bound)

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
        nodes = self._problem.nodes
        return [
            o.need.cpus * nodes[o.node].cpu_price + o.need.gpus * nodes[o.node].gpu_price for o in self._problem.options
        ]

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
            choices.setdefault((option.component, option.node, option.variant), []).append(j)
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
            options={"mip_rel_gap": 0.0 if self._small else LARGE_GAP, "time_limit": TIME_LIMIT_S},
        )
        if result.x is None:
            return None
        replicas = tuple(round(value) for value in result.x[: self._num_options])
        return replicas, float(result.fun if result.mip_dual_bound is None else result.mip_dual_bound)
