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

Solved in steps, each keeping what the one before reached: highest theta, then lowest cost, then the smallest batches that these replicas
can do with. Before, options go that cannot be needed: where neither memory nor the SLO can bind, only the batch of highest throughput
stays, and hundreds of nodes are decided in well under a second. Node limits are sums over a type; that the replicas also fit on its
nodes one by one is checked afterwards, and a type on which they do not is made a little smaller until they do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from patchwork_scheduler.resources import Need, NodeType, unplaced

Vector = npt.NDArray[np.float64]

SCALE = 1000.0  #: theta runs to about this: HiGHS' absolute tolerances (1e-6) are then 1e-9 of it
KEEP = 1e-7  #: relative slack on what an earlier step reached, so that rounding does not make it infeasible
SMALL = 256  #: replicas up to which the optimum is proved exactly
LARGE_GAP = 5e-3  #: above: relative gap at which a step stops; profiles are not that precise
LARGE_NODES = 500  #: and the branches it looks at; then the best plan so far is taken, and its bound is reported
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
    first_s: float  #: seconds of the fastest batch: a call with nobody before it
    need: Need
    most: int  #: replicas that the node type can hold

    @property
    def calls_per_s(self) -> float:
        return self.batch / self.seconds

    @property
    def choice(self) -> tuple[int, int, int]:
        """Of the options that agree in this, one is chosen."""
        return self.component, self.node, self.variant


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


def solve(problem: Problem, *, only_rate: bool = False) -> Solution | None:
    """The best replicas per option; None when there are none that meet all limits.

    ``only_rate``: stop at the highest rate, however dear.
    """
    needed = _needed(problem)
    reduced = replace(problem, options=tuple(problem.options[j] for j in needed))
    solution = _solve_packed(reduced, only_rate)
    if solution is None:
        return None
    replicas = [0] * len(problem.options)
    for j, count in zip(needed, solution.replicas, strict=True):
        replicas[j] = count
    if not only_rate:
        replicas = _smaller_batches(problem, replicas)
    return Solution(tuple(replicas), solution.bound_per_s)


def _needed(problem: Problem) -> list[int]:
    """Options that no other of their choice equals or beats in all that can matter."""
    crowded = {index for index in range(len(problem.nodes)) if _memory_can_bind(problem, index)}
    hurried = _slo_can_bind(problem)
    kept: dict[tuple[int, int, int], list[int]] = {}
    for j in sorted(range(len(problem.options)), key=lambda j: _merit(problem.options[j])):
        option = problem.options[j]
        rivals = kept.setdefault(option.choice, [])
        if not any(
            (not hurried or problem.options[r].seconds <= option.seconds)
            and (option.node not in crowded or problem.options[r].need.memory_bytes <= option.need.memory_bytes)
            and problem.options[r].most >= option.most
            for r in rivals
        ):
            rivals.append(j)
    return sorted(j for rivals in kept.values() for j in rivals)


def _merit(option: Option) -> tuple[float, float, int]:
    return -option.calls_per_s, option.seconds, option.need.memory_bytes


def _memory_can_bind(problem: Problem, index: int) -> bool:
    """Whether replicas could fill a node's memory before its cores and GPUs."""
    node = problem.nodes[index]
    if node.memory_bytes is None:
        return False
    # cores and GPUs give out at two nodes' worth of shares together, one of each, at the latest
    dearest = max((o.need.memory_bytes / _share(node, o.need) for o in problem.options if o.node == index), default=0.0)
    return 2 * dearest > node.memory_bytes


def _share(node: NodeType, need: Need) -> float:
    return max(need.cpus / node.cpus if need.cpus else 0.0, need.gpus / node.gpus if need.gpus else 0.0)


def _slo_can_bind(problem: Problem) -> bool:
    """Whether the batches of highest throughput, all together, could take longer than the SLO allows."""
    if problem.path_budget_s is None:
        return False
    best: dict[tuple[int, int, int], Option] = {}
    for option in sorted(problem.options, key=_merit):
        best.setdefault(option.choice, option)
    slowest = [
        max((o.seconds for o in best.values() if o.component == i), default=0.0) for i in range(len(problem.demands))
    ]
    return sum(d.serial * s for d, s in zip(problem.demands, slowest, strict=True)) > problem.path_budget_s


def _smaller_batches(problem: Problem, replicas: Sequence[int]) -> list[int]:
    """The same replicas, each component with the shortest batches that still carry its part of the rate."""
    rate = problem.rate_per_s or rate_of(problem, replicas)
    result = list(replicas)
    for index, demand in enumerate(problem.demands):
        chosen = [j for j, n in enumerate(replicas) if n and problem.options[j].component == index]
        needed = rate * demand.visits / problem.max_utilisation * (1 - KEEP)
        for longest in sorted({o.seconds for o in problem.options if o.component == index}):
            instead = {j: _best_within(problem, j, replicas[j], longest) for j in chosen}
            capacity = sum(problem.options[i].calls_per_s * replicas[j] for j, i in instead.items() if i is not None)
            if None not in instead.values() and capacity >= needed:
                for j in chosen:
                    result[j] = 0
                for j, i in instead.items():
                    result[i if i is not None else j] = replicas[j]
                break
    return result


def _best_within(problem: Problem, chosen: int, copies: int, longest: float) -> int | None:
    """Of the batches that could stand in for a chosen one, the one of highest throughput that takes no longer than ``longest``."""
    mine = problem.options[chosen]
    fitting = [
        j
        for j, o in enumerate(problem.options)
        if o.choice == mine.choice and o.seconds <= longest and o.most >= copies
        and o.need.memory_bytes <= mine.need.memory_bytes
    ]  # fmt: skip
    return min(fitting, key=lambda j: _merit(problem.options[j]), default=None)


def _solve_packed(problem: Problem, only_rate: bool) -> Solution | None:
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
