"""What replicas carry, how many a demand needs, and whether they fit: the profile as observed, asked through the planner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from patchwork_scheduler.autoscale_model import Bounds
from patchwork_scheduler.errors import NoFeasiblePlan
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal
from patchwork_scheduler.profile_model import BatchPoint, ComponentProfile, Profile
from patchwork_scheduler.resources import Need, Resources, unplaced


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas a demand needs."""

    replicas: Mapping[str, int]
    limited_by: str | None = None  #: the component at which the resources end, when they do not carry the demand
    carried: float = 1.0  #: share of the demand that the resources carry


@dataclass(frozen=True, slots=True)
class Capacity:
    """``profile`` holds each component on the hardware where it is deployed; ``batches`` what its replicas run at most, where that is
    fixed."""

    profile: Profile
    resources: Resources
    bounds: Mapping[str, Bounds]
    batches: Mapping[str, int]

    def of(self, component_id: str) -> float:
        """Calls per second that one replica carries."""
        return self._point(self.profile.component(component_id)).calls_per_s

    def batch(self, component_id: str) -> int:
        return self._point(self.profile.component(component_id)).batch

    def alone_s(self) -> float:
        """Seconds of one request with nobody before it."""
        seconds = self.profile.glue_s
        for component in self.profile.components:
            each = (
                component.external_s
                if component.external
                else component.measured[0].batch_points(component.tokens)[0].seconds
            )
            seconds += component.path_visits * each
        return seconds

    def wanted(self, demand: Mapping[str, float], utilisation: float) -> Wanted:
        """The fewest replicas for ``demand`` (calls per second by component), or for as much of it as the resources carry.

        Hardware and batch are those that are deployed, so that each component has one option and the program's answer is the quotient,
        as long as everything fits; when it does not, the planner divides what there is.
        """
        needed = {name: self._needed(name, calls, utilisation) for name, calls in demand.items()}
        if all(count <= self._most(name, count) for name, count in needed.items()) and self.fits(needed):
            return Wanted(needed)
        rate = max(demand.values())
        profile = self.profile.observed(visits={name: calls / rate for name, calls in demand.items()})
        goal = Goal(max_utilisation=utilisation, fixed=self._fixed(demand))
        try:
            plan = make_plan(profile, self.resources, goal, marginals=False)
        except NoFeasiblePlan:  # not even the lower bounds fit: whoever asks keeps what runs
            return Wanted({}, limited_by=max(demand, key=lambda name: demand[name]), carried=0.0)
        replicas = {component.id: min(component.replicas, needed[component.id]) for component in plan.components}
        return Wanted(replicas, limited_by=plan.bottleneck, carried=min(1.0, plan.rate_per_s / rate))

    def fits(self, replicas: Mapping[str, int]) -> bool:
        """Whether all of them find room at once."""
        some = {name: count for name, count in replicas.items() if count}
        nodes = self.resources.types()
        if not some:
            return True
        if len(nodes) == 1:
            return unplaced(nodes[0], [(self._need(name), count) for name, count in some.items()]) is None
        profile = self.profile.observed(visits={name: float(name in some) for name in replicas})
        fixed = {name: replace(Fixed.replicas(count), batch=self.batches.get(name)) for name, count in replicas.items()}
        try:
            make_plan(profile, self.resources, Goal(fixed=fixed), marginals=False)
        except NoFeasiblePlan:
            return False
        return True

    def _needed(self, name: str, calls_per_s: float, utilisation: float) -> int:
        least = self.bounds[name].least
        return max(least, self.least_for(name, calls_per_s, utilisation)) if calls_per_s > 0 else least

    def _most(self, name: str, otherwise: int) -> int:
        most = self.bounds[name].most
        return otherwise if most is None else most

    def _need(self, name: str) -> Need:
        component = self.profile.component(name)
        measured = component.measured[0]
        return Need(measured.cpus, measured.gpus, self._point(component).memory_bytes)

    def _fixed(self, demand: Mapping[str, float]) -> dict[str, Fixed]:
        fixed = {}
        for name, calls in demand.items():
            bounds = self.bounds[name]
            least = max(bounds.least, 1) if calls > 0 else bounds.least
            most = None if bounds.most is None else max(bounds.most, least)
            fixed[name] = Fixed(batch=self.batches.get(name), min_replicas=least, max_replicas=most)
        return fixed

    def _point(self, component: ComponentProfile) -> BatchPoint:
        points = component.measured[0].batch_points(component.tokens)
        fixed = self.batches.get(component.id)
        return max((p for p in points if fixed in (None, p.batch)), key=lambda p: p.calls_per_s)

    def least_for(self, component_id: str, calls_per_s: float, utilisation: float) -> int:
        """The fewest replicas that carry it below ``utilisation``."""
        return max(1, math.ceil(calls_per_s / (utilisation * self.of(component_id)) - 1e-9))
