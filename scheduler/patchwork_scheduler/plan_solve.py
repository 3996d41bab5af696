"""Solving a plan's problem: what cannot matter is left out, the integer program decides, then batches become as small as they may.

Where neither memory nor the SLO can bind, only the batch of highest throughput stays of each choice, and hundreds of nodes are decided
in well under a second. See ``plan_program`` for the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from patchwork_scheduler.plan_budget import share_out
from patchwork_scheduler.plan_problem import KEEP, SMALL, Option, Problem, Solution, rate_of
from patchwork_scheduler.plan_program import solve_program
from patchwork_scheduler.resources import Need, NodeType


def solve(problem: Problem, *, only_rate: bool = False) -> Solution | None:
    """The best replicas per option; None when there are none that meet all limits.

    ``only_rate``: stop at the highest rate, however dear.
    """
    solution = _shared_out(problem, only_rate) or _restricted(problem, _needed(problem), only_rate)
    if solution is None or only_rate:
        return solution
    return replace(solution, replicas=tuple(_smaller_batches(problem, solution.replicas)))


def _restricted(problem: Problem, options: list[int], only_rate: bool) -> Solution | None:
    """Solved with some of the options only; replicas are per option of the whole problem."""
    solution = solve_program(replace(problem, options=tuple(problem.options[j] for j in options)), only_rate)
    if solution is None:
        return None
    replicas = [0] * len(problem.options)
    for j, count in zip(options, solution.replicas, strict=True):
        replicas[j] = count
    return replace(solution, replicas=tuple(replicas))


def _shared_out(problem: Problem, only_rate: bool) -> Solution | None:
    """For large problems whose SLO can bind: the budget shared out beforehand; None when that does not lead to a plan.

    To find a share of the budget and the replicas of every component at once takes HiGHS half a minute for 512 nodes. With the shares
    given it takes a fraction of a second; the problem without SLO bounds what may be lost.
    """
    if sum(o.most for o in problem.options) <= SMALL or not _slo_can_bind(problem):
        return None
    longest = share_out(problem)
    if longest is None:
        return None
    free = replace(problem, path_budget_s=None)
    within = [j for j, o in enumerate(problem.options) if o.seconds <= longest[o.component]]
    some = replace(free, options=tuple(problem.options[j] for j in within))
    solution = _restricted(free, [within[j] for j in _needed(some)], only_rate)
    if solution is None or problem.rate_per_s is not None:
        return solution
    bound = _restricted(free, _needed(free), only_rate=True)
    return replace(solution, bound_per_s=bound.bound_per_s if bound else None)


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
