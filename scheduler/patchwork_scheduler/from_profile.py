"""What the simulator needs, from the documents of ``patchwork profile`` and ``patchwork plan``.

A profile knows of requests what sample runs showed. Where its branches name call-sites of components, requests walk along them.
Else they visit the components in the order of the profile, as often as they did on average: a call that one request in three makes
is made by one in three, and calls that were made at once are made at once. How long a call takes is measured; that calls of
one component are alike is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patchwork_scheduler.cost import BatchCost, TokenCost, fit_cost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_scheduler.plan_model import Placement, Plan, PlannedComponent
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Profile
from patchwork_scheduler.simulated_hosts import ComponentPlan, Cost
from patchwork_scheduler.workload import END, Site, Way, Workload

START = "__start__"
#: The chain's own time: a component that no call waits for.
GLUE = "(chain)"
#: A loop is left after so many visits: with the probabilities of branches, hardly a request comes so far.
MAX_VISITS = 20


@dataclass(frozen=True, slots=True)
class Simulated:
    """The arguments of :func:`patchwork_scheduler.simulate.simulate`."""

    workload: Workload
    plan: Mapping[str, ComponentPlan]
    costs: Mapping[str, Cost]


def simulated(plan: Plan, profile: Profile) -> Simulated:
    """IncompleteProfile names a component of ``plan`` that ``profile`` lacks, or one of ``profile`` that ``plan`` has no replica of."""
    known = {one.id: one for one in profile.components}
    if missing := [one.id for one in plan.components if one.id not in known]:
        raise IncompleteProfile(
            f"the profile of {profile.chain} has no component {', '.join(missing)}, which the plan of {plan.chain} needs;"
            f" it has {', '.join(known)}. Profile the chain that was planned"
        )
    planned = {one.id: one for one in plan.components}
    plans: dict[str, ComponentPlan] = {}
    costs: dict[str, Cost] = {}
    for component in profile.components:
        if component.visits > 0:
            plans[component.id], costs[component.id] = _component(component, planned.get(component.id))
    sites = _walk_of(profile) or _line_of(profile)
    if profile.glue_s > 0:
        plans[GLUE], costs[GLUE] = ComponentPlan(unlimited=True), BatchCost.constant(profile.glue_s)
    return Simulated(_workload(sites, profile.glue_s > 0), plans, costs)


# -- components --------------------------------------------------------------------------------------------------------


def _component(profile: ComponentProfile, planned: PlannedComponent | None) -> tuple[ComponentPlan, Cost]:
    if profile.external:
        return ComponentPlan(unlimited=True), BatchCost.constant(profile.external_s)
    if planned is None or not planned.replicas:
        raise IncompleteProfile(
            f"the plan has no replica of {profile.id}, which requests call {profile.visits:g} times; plan with this profile"
        )
    fastest = min(planned.placements, key=lambda one: one.seconds / one.batch)
    costs = [_cost(profile, placement) for placement in planned.placements]
    cost = costs[planned.placements.index(fastest)]
    slower: list[float] = []
    for placement, own in zip(planned.placements, costs, strict=True):
        slower += [_ratio(own, cost, placement.batch)] * placement.replicas
    return ComponentPlan(
        planned.replicas, max_batch=fastest.batch, max_sequences=fastest.batch, slower=tuple(slower)
    ), cost


def _cost(profile: ComponentProfile, placement: Placement) -> Cost:
    """Continuous batching where it was measured and the tokens of a call are known; else whole batches at the tokens of the sample runs."""
    measured = _measured(profile, placement)
    if measured.rows and profile.prompt_tokens is not None and profile.output_tokens is not None:
        return fit_cost(measured.rows)
    points = measured.batch_points(profile.tokens)
    seconds = [point.seconds for point in points]
    for i in range(len(seconds) - 1, 0, -1):  # a larger batch that was measured faster is noise
        seconds[i - 1] = min(seconds[i - 1], seconds[i])
    return BatchCost(tuple(float(point.batch) for point in points), tuple(seconds))


def _measured(profile: ComponentProfile, placement: Placement) -> Measured:
    fitting = [one for one in profile.measured if one.hardware == placement.hardware]
    if not fitting:
        raise IncompleteProfile(
            f"the profile measured {profile.id} on {', '.join(one.hardware for one in profile.measured)}, the plan places it on"
            f" {placement.hardware}; profile it there"
        )
    return min(fitting, key=lambda one: abs(one.cpus - placement.cpus) + abs(one.gpus - placement.gpus))


def _ratio(own: Cost, fastest: Cost, batch: int) -> float:
    if isinstance(own, TokenCost) and isinstance(fastest, TokenCost):
        return own.base_s / fastest.base_s
    if isinstance(own, BatchCost) and isinstance(fastest, BatchCost):
        return own(batch) / fastest(batch)
    raise IncompleteProfile(
        "a component is measured with rows of tokens on one sort of hardware and without on another"
    )


# -- requests ----------------------------------------------------------------------------------------------------------


def _workload(sites: tuple[Sequence[Way], list[Site]], glue: bool) -> Workload:
    entry, rest = sites
    if not glue:
        return Workload(entry, rest)
    return Workload(GLUE, [Site(GLUE, GLUE, ways=tuple(entry)), *rest])


def _walk_of(profile: Profile) -> tuple[Sequence[Way], list[Site]] | None:
    """The sites of the branches; None when there are none, or they name what belongs to no component."""
    owners = {site: one for one in profile.components for site in (one.call_sites or (one.id,))}
    sources = {one.source for one in profile.branches}
    ends = sources | {one.target for one in profile.branches}
    if START not in sources or not ends - {START, END} <= owners.keys():
        return None
    called = [name for name in owners if name in ends and owners[name].visits > 0]
    return _ways(profile, START), [_site(owners[one], one, _ways(profile, one), MAX_VISITS) for one in called]


def _ways(profile: Profile, source: str) -> tuple[Way, ...]:
    ways = [(one.target, one.probability) for one in profile.branches if one.source == source and one.probability > 0]
    total = sum(probability for _, probability in ways)
    if total < 1.0 - 1e-9:
        return (*(Way(*way) for way in ways), Way(END, 1.0 - total))
    return tuple(Way(target, probability / total) for target, probability in ways)  # fan-out: one of them is followed


def _line_of(profile: Profile) -> tuple[Sequence[Way], list[Site]]:
    """One after another, each as often as on average."""
    stops: list[tuple[ComponentProfile, str, float]] = []
    for component in profile.components:
        left, number = component.path_visits, 0
        while left > 1e-9:
            number += 1
            stops.append((component, component.id if number == 1 else f"{component.id} ({number})", min(left, 1.0)))
            left -= 1.0
    entry = _skipping(stops, 0)
    return entry, [_site(one, name, _skipping(stops, i + 1), 1) for i, (one, name, _) in enumerate(stops)]


def _skipping(stops: Sequence[tuple[ComponentProfile, str, float]], start: int) -> tuple[Way, ...]:
    """From before ``start``: each stop with its own probability, given that those before it were passed by."""
    ways, passed = [], 1.0
    for _, name, probability in stops[start:]:
        ways.append(Way(name, passed * probability))
        passed *= 1.0 - probability
        if passed < 1e-12:
            return tuple(ways)
    return (*ways, Way(END, passed))


def _site(component: ComponentProfile, name: str, ways: Sequence[Way], max_visits: int) -> Site:
    serial = component.path_visits
    fan = max(1, round(component.visits / serial)) if serial > 0 else max(1, math.ceil(component.visits))
    tokens = round(component.prompt_tokens or 0), round(component.output_tokens or 0)
    return Site(name, component.id, fan, 1, *tokens, ways=tuple(ways), max_visits=max_visits)
