"""Autoscaling: from what is observed to how many replicas each component should have. Pure; ``now`` is an argument.

One step, in order: learn (rates, visits, service times, cold starts), expect (the rate when a replica asked for now would serve), compare
with what the replicas carry, and change something only where that leaves a band. Up at once, through the planner, so that the resources
are never overrun and go where the bottleneck is. Down late: only when the remaining replicas would have carried the recent peak. A
component keeps what it was given for ``settle_s`` at least, which bounds how often it can turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from patchwork_scheduler.autoscale_capacity import Capacity, Wanted
from patchwork_scheduler.autoscale_drift import Drift
from patchwork_scheduler.autoscale_grow import grown
from patchwork_scheduler.autoscale_keep import BETWEEN_S, Kept
from patchwork_scheduler.autoscale_model import Bounds, Change, Decision, Observation, Scaling
from patchwork_scheduler.autoscale_outlook import Outlook, why_fewer
from patchwork_scheduler.autoscale_rates import SHORT_S, SURE_AT_ONCE, Rates
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.resources import Resources

#: Where the profile does not say: a process of Ray has to start and to import its engine.
COLD_START_S = 5.0
VISITS_S = 60.0  #: visit ratios are of about so long
PRIOR_REQUESTS = 20.0  #: the profile's visit ratios count as so many requests
TIGHT = 0.5  #: share of the time that requests have to spare, spent waiting
SURE_WHEN_TIGHT = (
    2.0  #: standard errors by which a single interval must stand out while calls wait: the queue is evidence as well
)
FEW_LATE = 3  #: fewer late requests than this say nothing, whatever their share
COVERED = 0.9  #: share of a period that must have been observed before it counts as known


@dataclass(frozen=True, slots=True)
class _Stuck:
    """The resources were at their end: as long as little changes, the planner need not be asked again."""

    at: float
    targets: Mapping[str, int]
    demand: Mapping[str, float]

    def still_holds(self, targets: Mapping[str, int], demand: Mapping[str, float], now: float) -> bool:
        alike = all(abs(demand[name] - before) <= 0.1 * before for name, before in self.demand.items())
        return alike and targets == self.targets and now - self.at < BETWEEN_S


class Autoscaler:
    """Owns what is remembered between steps.

    ``profile``: each component as measured on the hardware where it is deployed (its first entry counts); ``assumed``: those of its
    components that nobody measured; they are left alone until enough of their calls were seen. ``batches``: the batch that a component's
    replicas run, where it is fixed; it must be one that was measured.
    """

    def __init__(
        self,
        profile: Profile,
        resources: Resources,
        scaling: Scaling | None = None,
        *,
        bounds: Mapping[str, Bounds] | None = None,
        batches: Mapping[str, int] | None = None,
        assumed: Collection[str] = (),
        slo_s: float | None = None,
    ) -> None:
        self._scaling = scaling or Scaling()
        here = tuple(c if c.external else replace(c, measured=c.measured[:1]) for c in profile.components)
        self._profile = replace(profile, components=here)
        self._slo_s = slo_s
        planned = [c for c in here if not c.external]
        self._bounds = {c.id: (bounds or {}).get(c.id, Bounds()) for c in planned}
        self._capacity = Capacity(self._profile, resources, self._bounds, batches or {})
        self._drift = Drift(self._profile, self._scaling, assumed)
        starts = {c.id: c.measured[0].cold_start_s or COLD_START_S for c in planned}
        self._kept = {name: Kept(self._scaling, start) for name, start in starts.items()}
        memory_s = max([VISITS_S, self._scaling.idle_s, *(kept.at_most_s for kept in self._kept.values())])
        self._requests, self._late = Rates(memory_s), Rates(memory_s)
        self._calls = {name: Rates(memory_s) for name in starts}
        self._limit = ""
        self._stuck: _Stuck | None = None

    def step(self, seen: Observation, targets: Mapping[str, int], now: float) -> Decision:
        """What to run from ``now`` on, when ``targets`` are what was asked for before. Components it does not know keep theirs."""
        warnings = [*self._drift.observe(seen)]
        self._learn(seen, now)
        capacity = replace(self._capacity, profile=self._profile.observed(slower=self._drift.slower()))
        mine = {name: targets[name] for name in self._kept if name in targets}
        outlook = self._outlook(seen, mine, capacity, now)
        changes, limit = self._more(seen, mine, outlook, capacity, now)
        touched = {change.component for change in changes}
        changes += self._fewer(seen, {n: c for n, c in mine.items() if n not in touched}, outlook, capacity, now)
        if limit and not self._limit:
            warnings.append(limit)
        self._limit = limit
        for change in changes:
            self._kept[change.component].changed(change, now)
        return Decision(
            at=now,
            targets={**targets, **{change.component: change.after for change in changes}},
            changes=tuple(changes),
            warnings=tuple(warnings),
            rate_per_s=outlook.trend.level,
            forecast_per_s=outlook.trend.after(max(outlook.cold_start_s.values(), default=0.0)),
            utilisation=outlook.utilisation,
            drift=self._drift.ratios(),
        )

    # -- learning --------------------------------------------------------------------------------------------------

    def _learn(self, seen: Observation, now: float) -> None:
        self._requests.add(seen.requests, seen.seconds, now)
        self._late.add(seen.late, seen.seconds, now)
        for name, calls in self._calls.items():
            calls.add(seen.of(name).calls, seen.seconds, now)
            self._kept[name].learn_cold_start(seen.of(name).ready, now)

    # -- expecting -------------------------------------------------------------------------------------------------

    def _outlook(self, seen: Observation, targets: Mapping[str, int], capacity: Capacity, now: float) -> Outlook:
        visits = {name: self._visits(name, now) for name in targets}
        tight = self._is_tight(seen, visits, capacity)
        trend = self._requests.trend(now, SURE_WHEN_TIGHT if tight else SURE_AT_ONCE)
        backlog = {
            name: max(0.0, seen.of(name).queued - capacity.batch(name) * max(1, seen.of(name).ready))
            for name in targets
        }
        starts = {name: self._kept[name].cold_start_s for name in targets}
        demand = {
            name: visits[name] * trend.after(starts[name] + seen.seconds) + backlog[name] / self._scaling.drain_s
            for name in targets
        }
        utilisation = {
            name: demand[name] / (capacity.of(name) * count)
            for name, count in targets.items()
            if count and self._drift.known(name)
        }
        return Outlook(trend, visits, starts, demand, backlog, utilisation, self._late_share(now), tight)

    def _visits(self, name: str, now: float) -> float:
        requests = self._requests.total(VISITS_S, now)
        calls = self._calls[name].total(VISITS_S, now)
        return (calls + PRIOR_REQUESTS * self._profile.component(name).visits) / (requests + PRIOR_REQUESTS)

    def _late_share(self, now: float) -> float:
        requests, late = self._requests.total(2 * SHORT_S, now), self._late.total(2 * SHORT_S, now)
        share = min(1.0, late / requests) if requests else 0.0
        return share if late >= FEW_LATE and share > self._scaling.late_share else 0.0

    def _is_tight(self, seen: Observation, visits: Mapping[str, float], capacity: Capacity) -> bool:
        if self._slo_s is None:
            return False
        waits = sum(
            visits[name] * seen.of(name).queued / (capacity.of(name) * max(1, seen.of(name).ready))
            for name in visits
            if self._drift.known(name)
        )
        return waits > TIGHT * (self._slo_s - capacity.alone_s()) > 0

    # -- more ------------------------------------------------------------------------------------------------------

    def _more(
        self, seen: Observation, targets: Mapping[str, int], outlook: Outlook, capacity: Capacity, now: float
    ) -> tuple[list[Change], str]:
        """Additions, with the removals that make room for them; and what stands in the way of more."""
        short = [name for name, count in targets.items() if self._is_short(name, count, seen, outlook, now)]
        if not short:
            return [], ""
        if self._stuck is not None and self._stuck.still_holds(targets, outlook.demand, now):
            return [], self._limit
        room = min(self._room(name, outlook, now) for name in short)
        wanted = self._wanted(targets, outlook, capacity, self._scaling.plan_for * room)
        up = {name: max(wanted.replicas.get(name, 0), self._bounds[name].least, 1) for name in short}
        up = {name: count for name, count in up.items() if count > targets[name]}
        pressure = {name: outlook.demand[name] / capacity.of(name) for name in targets}
        spare = [name for name in targets if name not in up and self._kept[name].is_settled(now)]
        after, limit = grown(targets, up, wanted, may_give=spare, pressure=pressure, capacity=capacity)
        limit = limit or _limit(wanted, outlook)
        self._stuck = _Stuck(now, after, outlook.demand) if limit else None
        changes = []
        for name, count in after.items():
            if count > targets[name]:
                changes.append(Change(name, targets[name], count, outlook.why_more(name, targets[name])))
            elif count < targets[name]:
                changes.append(Change(name, targets[name], count, f"its place is needed for {', '.join(sorted(up))}"))
        return changes, limit

    def _is_short(self, name: str, count: int, seen: Observation, outlook: Outlook, now: float) -> bool:
        if count < self._bounds[name].least:
            return True
        if count == 0:
            return seen.of(name).calls > 0 or seen.of(name).queued > 0
        return outlook.utilisation.get(name, 0.0) > self._scaling.up_at * self._room(name, outlook, now)

    def _room(self, name: str, outlook: Outlook, now: float) -> float:
        """Pressed requests ask for more room, but not while what was added starts and works off what waited: they are late by then."""
        had_time = not self._kept[name].grew_within(self._kept[name].cold_start_s + self._scaling.drain_s, now)
        return self._scaling.late_room if outlook.pressed and had_time else 1.0

    def _wanted(self, targets: Mapping[str, int], outlook: Outlook, capacity: Capacity, utilisation: float) -> Wanted:
        """The planner's answer; components whose service times are not known keep what they have, sleeping ones sleep."""
        known = {name for name in targets if self._drift.known(name)}
        fixed = {name: Bounds(count, count) for name, count in targets.items() if name not in known}
        demand = {
            name: outlook.demand[name] if name in known and (count or outlook.backlog[name]) else 0.0
            for name, count in targets.items()
        }
        asked = replace(capacity, bounds={**self._bounds, **fixed})
        return asked.wanted(demand, utilisation)

    # -- fewer -----------------------------------------------------------------------------------------------------

    def _fewer(
        self, seen: Observation, targets: Mapping[str, int], outlook: Outlook, capacity: Capacity, now: float
    ) -> list[Change]:
        """Removals that the recent peak would have borne, and the last replicas of idle components that need none."""
        changes = []
        for name, count in targets.items():
            most = self._bounds[name].most
            if most is not None and count > most:
                changes.append(Change(name, count, most, f"no more than {most} are allowed"))
            elif count > self._bounds[name].least and self._kept[name].is_settled(now):
                change = self._asleep(name, count, seen, now) or self._consolidated(name, count, outlook, capacity, now)
                changes += [change] if change else []
        return changes

    def _asleep(self, name: str, count: int, seen: Observation, now: float) -> Change | None:
        calls, idle_s = self._calls[name], self._scaling.idle_s
        if self._bounds[name].least or calls.covered_s() < COVERED * idle_s or calls.total(idle_s, now):
            return None
        if seen.of(name).queued or seen.of(name).running:
            return None
        return Change(name, count, 0, f"no call in the last {idle_s:.0f} s")

    def _consolidated(self, name: str, count: int, outlook: Outlook, capacity: Capacity, now: float) -> Change | None:
        keep_s = self._kept[name].for_s
        if outlook.pressed or outlook.backlog[name] or not self._drift.known(name):
            return None
        if self._requests.covered_s() < COVERED * min(keep_s, self._requests.memory_s):
            return None
        peak = max(self._requests.peak(keep_s, now) * outlook.visits[name], outlook.demand[name])
        left = max(capacity.least_for(name, peak, self._scaling.down_to), self._bounds[name].least)
        if left >= count:
            return None
        return Change(name, count, left, why_fewer(peak, keep_s, left, peak / (capacity.of(name) * left)))


def _limit(wanted: Wanted, outlook: Outlook) -> str:
    if wanted.limited_by is None:
        return ""
    return (
        f"resources and bounds carry {wanted.carried:.0%} of what is expected at {outlook.trend.level:.3g} requests/s, limited by"
        f" {wanted.limited_by}; give more of what it runs on, or allow it more replicas"
    )
