"""The nouns of the integer program behind a plan: options, demands, the problem, its solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from patchwork_scheduler.resources import Need, NodeType

KEEP = 1e-7  #: relative slack on what an earlier step reached, so that rounding does not make it infeasible
SMALL = 256  #: replicas up to which the optimum is proved exactly
LARGE_GAP = 5e-3  #: above: relative gap at which a step stops; profiles are not that precise


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

    def price(self, option: Option) -> float:
        """Of one replica."""
        node = self.nodes[option.node]
        return option.need.cpus * node.cpu_price + option.need.gpus * node.gpu_price


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
