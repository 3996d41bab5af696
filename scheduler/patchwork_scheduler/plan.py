"""Planning: from profile, resources and goal to replicas, batches and placement. Pure; errors say what stands in the way.

Read ``plan_program`` for the integer program; here a profile becomes its options, and its solution a :class:`Plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from patchwork_scheduler import document
from patchwork_scheduler.errors import InvalidInput, NoFeasiblePlan, SloUnreachable
from patchwork_scheduler.plan_model import GOAL_REMEDY, Fixed, Goal, Marginal, Placement, Plan, PlannedComponent
from patchwork_scheduler.plan_problem import Demand, Option, Problem, Solution, rate_of
from patchwork_scheduler.plan_solve import solve
from patchwork_scheduler.profile_model import REMEDY as PROFILE_REMEDY
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Profile
from patchwork_scheduler.resources import REMEDY as RESOURCES_REMEDY
from patchwork_scheduler.resources import Need, NodeType, Resources


def make_plan(profile: Profile, resources: Resources, goal: Goal | None = None, *, marginals: bool = True) -> Plan:
    """The plan with the highest sustainable rate (or the rate asked for), then the fewest resources, then the shortest path.

    ``marginals``: also solve for one more core and one more GPU of each node type (as many solves again).

    Raises:
        InvalidInput: a field of the arguments makes no sense, or a fixed choice names what does not exist.
        SloUnreachable: one request alone takes longer than the SLO.
        NoFeasiblePlan: the resources do not carry one replica of everything, or not the rate asked for.
    """
    asked = _Asked.checked(profile, resources, goal or Goal())
    problem = asked.problem()
    asked.refuse_slow_path(problem)
    solution = solve(problem)
    if solution is None:
        raise asked.why_infeasible(problem)
    asked.refuse_overworked_cores(problem, solution)
    return asked.plan(problem, solution, _marginals(asked, problem, solution) if marginals else ())


def _marginals(asked: _Asked, problem: Problem, solution: Solution) -> tuple[Marginal, ...]:
    """By solving again: the duals of an integer program do not say what a whole GPU more would bring."""
    free = replace(problem, rate_per_s=None)
    best = solution if problem.rate_per_s is None else solve(free, only_rate=True)
    now = asked.sustained(problem, best or solution)
    found = []
    for node in problem.nodes:
        for resource in ("cpu", "gpu") if node.gpus else ("cpu",):
            more = replace(asked, resources=asked.resources.with_one_more(node.name, resource))
            larger = replace(more.problem(), rate_per_s=None)
            better = solve(larger, only_rate=True)
            gain = 0.0 if better is None else max(0.0, more.sustained(larger, better) - now)
            found.append(Marginal(node.name, "gpu" if resource == "gpu" else "cpu", gain if gain > 1e-9 * now else 0.0))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The arguments, checked; components are those that take resources."""

    profile: Profile
    resources: Resources
    goal: Goal

    @classmethod
    def checked(cls, profile: Profile, resources: Resources, goal: Goal) -> _Asked:
        asked = cls(
            document.check(profile, what="the profile", remedy=PROFILE_REMEDY),
            document.check(resources, what="resources", remedy=RESOURCES_REMEDY),
            document.check(goal, what="the goal", remedy=GOAL_REMEDY),
        )
        if not asked.components:
            raise InvalidInput("the profile: every component is external, so there is nothing to plan")
        if all(c.visits == 0 for c in asked.components):
            raise InvalidInput(
                f"the profile: every component's visits is 0, so no rate can be planned for; {PROFILE_REMEDY}"
            )
        for component_id, fixed in asked.goal.fixed.items():
            _check_fixed(asked.profile.component(component_id), fixed)
        return asked

    @property
    def components(self) -> tuple[ComponentProfile, ...]:
        return tuple(c for c in self.profile.components if not c.external)

    @property
    def elsewhere_s(self) -> float:
        """Seconds per request outside the components that are planned."""
        external = sum(c.path_visits * c.external_s for c in self.profile.components if c.external)
        return self.profile.glue_s + external

    def fixed(self, component: ComponentProfile) -> Fixed:
        return self.goal.fixed.get(component.id, Fixed())

    def problem(self) -> Problem:
        nodes = self.resources.types()
        options = tuple(
            option
            for index, component in enumerate(self.components)
            for at, node in enumerate(nodes)
            for option in _options(index, component, self.fixed(component), at, node)
        )
        budget = None if self.goal.slo_s is None else self.goal.slo_s - self.elsewhere_s
        demands = tuple(
            Demand(c.visits, c.path_visits, self.fixed(c).least, self.fixed(c).max_replicas) for c in self.components
        )
        problem = Problem(nodes, demands, options, self.goal.max_utilisation, self.goal.rate_per_s, budget)
        for index, component in enumerate(self.components):
            if self.fixed(component).least and not any(o.component == index for o in options):
                raise NoFeasiblePlan(self._nowhere(component, nodes))
        return problem

    def _nowhere(self, component: ComponentProfile, nodes: tuple[NodeType, ...]) -> str:
        offered = sorted({h for node in nodes for h in node.offers})
        wanted = [m for m in component.measured if self.fixed(component).hardware in (None, m.hardware)]
        if not any(m.hardware in offered for m in wanted):
            return (
                f"component {component.id!r} was measured on {', '.join(m.hardware for m in wanted)}, but the nodes offer"
                f" {', '.join(offered)}; profile it there, or correct the nodes' hardware"
            )
        need = min(wanted, key=lambda m: (m.gpus, m.cpus))
        memory = min(p.memory_bytes for p in need.points)
        return (
            f"component {component.id!r}: one replica needs {need.cpus:g} cpus, {need.gpus:g} gpus and {memory / 2**30:.1f} GiB"
            f" of memory, and no node has that free; give larger nodes"
        )

    def refuse_slow_path(self, problem: Problem) -> None:
        """SloUnreachable when a request alone, on the fastest hardware there is, takes longer than the SLO."""
        if problem.path_budget_s is None:
            return
        fastest = [
            d.serial * min((o.first_s for o in problem.options if o.component == index), default=0.0)
            for index, d in enumerate(problem.demands)
        ]
        if sum(fastest) > problem.path_budget_s:
            raise self._too_slow(fastest, "with nobody before it")

    def _too_slow(self, seconds: list[float], when: str) -> SloUnreachable:
        parts = dict(zip((c.id for c in self.components), seconds, strict=True))
        parts |= {c.id: c.path_visits * c.external_s for c in self.profile.components if c.external}
        if self.profile.glue_s:
            parts["the chain's own code"] = self.profile.glue_s
        worst = max(parts, key=lambda name: parts[name])
        total = sum(parts.values())
        return SloUnreachable(
            f"slo is {self.goal.slo_s:g} s, but one request {when} takes {total:.3g} s; {worst!r} breaks it with"
            f" {parts[worst]:.3g} s; promise more than {total:.3g} s, or make {worst!r} faster"
        )

    def why_infeasible(self, problem: Problem) -> NoFeasiblePlan:
        """What stands in the way, found by leaving out one wish after the other."""
        if problem.rate_per_s is not None:
            best = solve(replace(problem, rate_per_s=None), only_rate=True)
            if best is not None:
                reached = self.sustained(problem, best)
                limiting = self.plan(problem, best, ()).bottleneck
                return NoFeasiblePlan(
                    f"rate is {problem.rate_per_s:g} requests/s, but these resources sustain {reached:.4g} at most, limited by"
                    f" {limiting!r}; ask for less, or give more of what {limiting!r} runs on"
                )
        if problem.path_budget_s is not None:
            free = replace(problem, path_budget_s=None, rate_per_s=None)
            if (solution := solve(free)) is not None:
                seconds = [
                    d.serial * max((o.seconds for o, n in _chosen(free, solution) if o.component == index), default=0.0)
                    for index, d in enumerate(free.demands)
                ]
                return self._too_slow(seconds, "on the hardware and batches that fit")
        cpus, gpus = self._least(problem)
        have = problem.nodes
        return NoFeasiblePlan(
            f"one replica of every component (or the fixed number) needs about {cpus:g} cpus and {gpus:g} gpus, in pieces that fit on"
            f" single nodes; there are {sum(n.cpus * n.count for n in have):g} cpus and {sum(n.gpus * n.count for n in have)} gpus;"
            f" give more, fix fewer replicas, or let replicas share cores (num_cpus in patchwork.yaml)"
        )

    def _least(self, problem: Problem) -> tuple[float, float]:
        cpus = gpus = 0.0
        for index, demand in enumerate(problem.demands):
            needs = [o.need for o in problem.options if o.component == index]
            if needs:
                smallest = min(needs, key=lambda need: (need.gpus, need.cpus))
                cpus += smallest.cpus * demand.least
                gpus += smallest.gpus * demand.least
        return cpus, gpus

    def plan(self, problem: Problem, solution: Solution, marginals: tuple[Marginal, ...]) -> Plan:
        rate = self.sustained(problem, solution)
        chosen = _chosen(problem, solution)
        shown_at = self.goal.rate_per_s or rate
        components = tuple(
            self._component(component, problem, [(o, n) for o, n in chosen if o.component == index], shown_at)
            for index, component in enumerate(self.components)
        )
        full = [
            d.serial * max((o.seconds for o, _ in chosen if o.component == index), default=0.0)
            for index, d in enumerate(problem.demands)
        ]
        work = self._core_s(problem, solution)
        is_core_bound = rate < rate_of(problem, solution.replicas)
        worked = {c.id: work[index] for index, c in enumerate(self.components)}
        return Plan(
            chain=self.profile.chain,
            rate_per_s=rate,
            bottleneck=max(components, key=lambda c: worked[c.id] if is_core_bound else c.utilisation).id,
            cost=sum(problem.price(o) * n for o, n in chosen),
            path_s=self.elsewhere_s + sum(c.path_s for c in components),
            full_batch_path_s=self.elsewhere_s + sum(full),
            components=components,
            marginals=marginals,
            target_rate_per_s=self.goal.rate_per_s,
            slo_s=self.goal.slo_s,
            max_utilisation=self.goal.max_utilisation,
            bound_per_s=solution.bound_per_s,
            core_s=sum(work) if is_core_bound else None,
        )

    def sustained(self, problem: Problem, solution: Solution) -> float:
        """Requests per second: what the replicas carry, and where they share cores, no more than the cores can work off."""
        work = sum(self._core_s(problem, solution))
        cores = sum(node.cpus * node.count for node in problem.nodes) * self.goal.max_utilisation
        rate = rate_of(problem, solution.replicas)
        # always within, but for rounding, where each replica has the cores that it keeps busy
        return rate if work * rate <= cores * (1 + 1e-9) else cores / work

    def _core_s(self, problem: Problem, solution: Solution) -> list[float]:
        """Core-seconds that each component works for a request: calls go to its replicas as these can carry them."""
        found = []
        for index, component in enumerate(self.components):
            mine = [(o, n) for o, n in _chosen(problem, solution) if o.component == index]
            busy = sum(component.measured[o.variant].busy * n for o, n in mine)
            carried = sum(o.calls_per_s * n for o, n in mine)
            found.append(component.visits * busy / carried if carried else 0.0)
        return found

    def refuse_overworked_cores(self, problem: Problem, solution: Solution) -> None:
        """NoFeasiblePlan when replicas that share cores carry the rate asked for one by one, but not all at once."""
        if problem.rate_per_s is not None and (most := self.sustained(problem, solution)) < problem.rate_per_s:
            raise NoFeasiblePlan(
                f"rate is {problem.rate_per_s:g} requests/s, but the replicas share cores, which carry {most:.4g} at most; ask for"
                f" less, or give more cores"
            )

    def _component(
        self, component: ComponentProfile, problem: Problem, chosen: list[tuple[Option, int]], rate: float
    ) -> PlannedComponent:
        placements = tuple(
            Placement(
                node_type=problem.nodes[o.node].name, hardware=o.hardware, replicas=n, batch=o.batch, seconds=o.seconds,
                cpus=o.need.cpus, gpus=o.need.gpus, memory_bytes=o.need.memory_bytes,
            )
            for o, n in chosen
        )  # fmt: skip
        capacity = sum(p.calls_per_s for p in placements)
        return PlannedComponent(
            id=component.id,
            visits=component.visits,
            capacity_per_s=capacity,
            utilisation=component.visits * rate / capacity if capacity else 0.0,
            path_s=component.path_visits * max((o.first_s for o, _ in chosen), default=0.0),
            placements=placements,
        )


def _options(index: int, component: ComponentProfile, fixed: Fixed, at: int, node: NodeType) -> list[Option]:
    options = []
    for variant, measured in enumerate(component.measured):
        if measured.hardware not in node.offers or fixed.hardware not in (None, measured.hardware):
            continue
        points = measured.batch_points(component.tokens)
        # not simply that of the smallest: where batching is free, noise makes some larger batch the faster one
        first_s = min(p.seconds for p in points)
        for point in (p for p in points if fixed.batch in (None, p.batch)):
            need = Need(measured.cpus, measured.gpus, point.memory_bytes)
            most = node.fits(need) * node.count
            if fixed.max_replicas is not None:
                most = min(most, fixed.max_replicas)
            if most:
                options.append(
                    Option(index, at, variant, measured.hardware, point.batch, point.seconds, first_s, need, most)
                )
    return options


def _chosen(problem: Problem, solution: Solution) -> list[tuple[Option, int]]:
    return [(o, n) for o, n in zip(problem.options, solution.replicas, strict=True) if n]


def _check_fixed(component: ComponentProfile, fixed: Fixed) -> None:
    measured: list[Measured] = [m for m in component.measured if fixed.hardware in (None, m.hardware)]
    if not measured:
        known = ", ".join(m.hardware for m in component.measured) or "nothing: it is external"
        raise InvalidInput(
            f"the goal: fixed.{component.id}.hardware is {fixed.hardware!r}, but it was measured on {known}; {GOAL_REMEDY}"
        )
    batches = sorted({p.batch for m in measured for p in m.points})
    if fixed.batch is not None and fixed.batch not in batches:
        raise InvalidInput(
            f"the goal: fixed.{component.id}.batch is {fixed.batch}, which was not measured; measured were"
            f" {', '.join(map(str, batches))}; fix one of these, or profile it"
        )
    if fixed.least == 0 and component.visits > 0:
        raise InvalidInput(
            f"the goal: fixed.{component.id} allows no replica, but requests call it {component.visits:g} times; {GOAL_REMEDY}"
        )
