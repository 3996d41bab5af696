"""A discrete-event simulator around the real queue, policy, work bound, router, estimates and admission.

What is simulated: requests that walk through sites, replicas with engines (see ``simulated_engines``), and one hop per call. What decides
is the same code that runs in orchestrators and replicas. ``central``: the ideal bound, where every replica of a component takes
from one queue at the moment it has room, so that no call waits behind another while some replica could serve it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patchwork_scheduler.admission import Admission, Admit, Hold, Refuse
from patchwork_scheduler.errors import IncompleteProfile, UnknownPolicy
from patchwork_scheduler.estimate import Estimates, Visit
from patchwork_scheduler.model import Call, SloClass, State
from patchwork_scheduler.policies import DEFAULT_POLICY
from patchwork_scheduler.results import ComponentUse, Results
from patchwork_scheduler.simulated_hosts import ComponentPlan, Cost, Flight, Pool, Request, Setup, Target
from patchwork_scheduler.workload import Path, Workload

#: A request, and when it ended; None: it was refused.
Seen = Callable[[Request, float | None], None]

#: Walks through the sites that stand for the sample runs of a profile.
SAMPLE_RUNS = 50

#: How each policy is run when policies are compared. What is not ours is run as others run it: an open door (the paper's: a door that is
#: held), and everything straight into the engines. ``ideal`` is ours with one queue in front of all replicas of a component.
SETUPS: Mapping[str, Setup] = {
    "fifo": Setup("fifo", "open", bounded=False, engine_priority=False),
    "edf": Setup("edf", "open", bounded=False),
    "paper": Setup("paper", "hold", bounded=False, engine_priority=False),
    "least_slack": Setup(),
    "ideal": Setup(central=True),
}


def setup_by_name(name: str) -> Setup:
    """The setup called ``name``; UnknownPolicy lists those that exist."""
    try:
        return SETUPS[name]
    except KeyError:
        raise UnknownPolicy(f"no policy is called {name!r}; there are {', '.join(SETUPS)}") from None


class _Simulation:
    def __init__(
        self, workload: Workload, plan: Mapping[str, ComponentPlan], costs: Mapping[str, Cost],
        slos: Mapping[str, SloClass], setup: Setup, results: Results, samples: int = SAMPLE_RUNS,
    ) -> None:  # fmt: skip
        if missing := sorted(workload.components - costs.keys()):
            raise IncompleteProfile(f"the profile has no component {', '.join(missing)}, which the workload needs")
        if missing := sorted(workload.components - plan.keys()):
            raise IncompleteProfile(f"the plan has no component {', '.join(missing)}, which the workload needs")
        self.setup = setup
        self.results = results
        self.pools = {name: Pool(name, plan[name], costs[name], setup) for name in sorted(workload.components)}
        self.estimates = Estimates()
        replicas = {name: pool.replicas for name, pool in self.pools.items()}
        self.admission = Admission(list(slos.values()), replicas, mode=setup.admission)
        self.flights: dict[str, Flight] = {}
        self.risks: list[tuple[float, str]] = []  # latest start of waiting calls, where the door may be held
        self.held: deque[Request] = deque()
        self.ended: Callable[[float], None] | None = None  # a closed loop sends its next request here
        self.seen: Seen | None = None
        self._events: list[tuple[float, int, Target, int]] = []
        self._order = itertools.count()
        self._calls = itertools.count()
        self._seed(workload, samples)

    def _seed(self, workload: Workload, samples: int) -> None:
        """What a profile gives: walk the likeliest mean way through the sites."""
        rng = random.Random(0)
        for _ in range(samples):
            visits = []
            for step in workload.path(rng):
                alone, occupied = self.pools[step.site.component].site_cost(step.site)
                visits.append(
                    Visit(State(step.site.id, step.loop), step.site.component, 0.0, alone, occupied * step.site.fan)
                )
            self.estimates.observe(visits, sum(visit.work_s for visit in visits))
        for calibration in self.estimates.calibration().values():
            calibration.count, calibration.predicted, calibration.actual, calibration.error = 0, 0.0, 0.0, 0.0

    def at(self, time: float, target: Target, tag: int) -> None:
        heapq.heappush(self._events, (time, next(self._order), target, tag))

    def run(self, arrivals: Iterable[tuple[float, SloClass, Path]]) -> None:
        events = self._events
        coming = iter(arrivals)
        upcoming = next(coming, None)
        numbers = itertools.count()
        now = 0.0
        while events or upcoming is not None:
            if upcoming is not None and (not events or upcoming[0] <= events[0][0]):
                now, slo, path = upcoming
                upcoming = next(coming, None)
                request = Request(f"r{next(numbers)}", now, now + slo.deadline_s, slo, path)
                self.results.offered += 1
                self.results.last_arrival = now
                self.arrive(request, now)
            else:
                now, _, target, tag = heapq.heappop(events)
                target.fire(self, now, tag)
        self.results.end = now

    # -- a request -------------------------------------------------------------------------------------------------

    def arrive(self, request: Request, now: float) -> None:
        first = request.path[0]
        ahead = self.estimates.ahead(State(first.site.id, 0))
        decision = self.admission.decide(
            request.slo, ahead, now, request.deadline, at_risk=self.setup.admission == "hold" and self._at_risk(now)
        )
        match decision:
            case Admit(predicted, is_probe):
                self.admission.accepted(
                    request.id, request.slo, ahead, request.deadline, now, predicted, at=first.site.component, is_probe=is_probe
                )  # fmt: skip
                self.visit(request, now)
            case Refuse():
                self.results.refuse(decision.retry_after_s)
                if self.seen is not None:
                    self.seen(request, None)
            case Hold(_, check_after):
                if not self.held:
                    self.at(now + check_after, _Retry(), 0)
                self.held.append(request)

    def visit(self, request: Request, now: float) -> None:
        step = request.path[request.at]
        site, setup = step.site, self.setup
        pool = self.pools[site.component]
        state = State(site.id, step.loop)
        ahead = self.estimates.ahead(state)
        if request.at:
            self.admission.proceeded(request.id, ahead.demand, site.component)
        alone, occupied = pool.site_cost(site)
        real_alone, real_occupied = (
            (alone, occupied) if step.output_tokens == site.output_tokens else pool.call_cost(site, step.output_tokens)
        )
        fan, work_s = site.fan, ahead.work_s
        brought_s = real_occupied * fan
        request.visits.append(Visit(state, site.component, now, real_alone, brought_s))
        request.outstanding = fan
        pool.work_s += brought_s
        after = work_s - alone if work_s > alone else 0.0
        flights, under_way = [], self.flights
        for _ in range(fan):
            call_id = f"c{next(self._calls)}"
            call = Call(
                call_id,
                now,
                request.deadline,
                site.size,
                site.id,
                work_s,
                after,
                site.prompt_tokens,
                site.output_tokens,
            )
            flight = under_way[call_id] = Flight(call, request, step, alone, occupied)
            flights.append(flight)
            if setup.admission == "hold":
                heapq.heappush(self.risks, (call.latest_start, call_id))
        self._send(flights, pool, now)

    def _send(self, flights: list[Flight], pool: Pool, now: float) -> None:
        if pool.plan.unlimited:
            for flight in flights:
                self.at(now + flight.alone_s + self.setup.hop_s, _Reply(flight), 0)
            return
        if self.setup.central:
            first = next(iter(pool.hosts.values()))
            for flight in flights:
                first.push(flight, now)
            pool.share_out(self, now)
            return
        router, touched = pool.router, {}
        for flight in flights:
            name = router.choose(flight.occupied_s, now)
            assert name is not None
            router.sent(name, flight.call.id, flight.occupied_s, now, alone_s=flight.alone_s)
            flight.host = touched[name] = pool.hosts[name]
            flight.host.push(flight, now)
        for host in touched.values():
            host.advance(self, now)

    def first_token(self, flight: Flight, now: float) -> None:
        request = flight.request
        if request.at == len(request.path) - 1:
            self.results.ttft.append(now - request.arrived)

    def replied(self, flight: Flight, now: float) -> None:
        hop_s = self.setup.hop_s if flight.host is None else self.setup.hop_s + flight.host.pool.plan.hop_s
        if hop_s:
            self.at(now + hop_s, _Reply(flight), 0)
        else:
            self.receive(flight, now)

    def receive(self, flight: Flight, now: float) -> None:
        request, call = flight.request, flight.call
        del self.flights[call.id]
        host = flight.host
        if host is not None and not self.setup.central:
            host.pool.router.replied(host.name, call.id, now, backlog_s=host.backlog_s(now))
        request.outstanding -= 1
        if request.outstanding:
            return
        request.at += 1
        if request.at < len(request.path) and not (self.setup.cancel_late and now > request.deadline):
            self.visit(request, now)
            return
        self.admission.finished(request.id, now, work_s=sum(visit.work_s for visit in request.visits))
        if request.at == len(request.path):
            self.estimates.observe(request.visits, now)
        self.results.finish(now - request.arrived, now <= request.deadline)
        if self.seen is not None:
            self.seen(request, now)
        if self.ended is not None:
            self.ended(now)

    def _at_risk(self, now: float) -> bool:
        """The paper's question: does any call under way belong to a request that is expected to miss? Not of one that has missed."""
        risks = self.risks
        while risks and ((flight := self.flights.get(risks[0][1])) is None or flight.request.deadline < now):
            heapq.heappop(risks)
        return bool(risks) and risks[0][0] < now


class _Retry:
    """Those held outside ask again, in the order they came, until one is held again."""

    def fire(self, sim: Any, now: float, tag: int) -> None:
        held, sim.held = sim.held, deque()
        while held and not sim.held:
            sim.arrive(held.popleft(), now)
        sim.held.extend(held)


@dataclass(frozen=True, slots=True)
class _Reply:
    flight: Flight

    def fire(self, sim: Any, now: float, tag: int) -> None:
        sim.receive(self.flight, now)


def simulate(
    workload: Workload,
    plan: Mapping[str, ComponentPlan],
    costs: Mapping[str, Cost],
    arrivals: Iterable[float],
    slo: SloClass,
    *,
    setup: Setup = SETUPS[DEFAULT_POLICY],
    requests: int | None = None,
    seed: int = 0,
    paths: Callable[[random.Random], Path] | None = None,
    door: Admission | None = None,
    seen: Seen | None = None,
    samples: int = SAMPLE_RUNS,
) -> Results:
    """Run the first ``requests`` of ``arrivals`` (all when None) to their end.

    ``paths`` draws what a request does (default: the workload); ``door`` decides who comes in (default: as ``setup`` says).
    ``seen`` is told of each request when it ends. ``samples``: runs of the workload that the estimates have seen before the first request.
    Equal arguments give equal results. IncompleteProfile names a component that ``plan`` or ``costs`` lack.
    """
    rng = random.Random(seed)
    draw = paths or workload.path
    offered = ((time, slo, draw(rng)) for time in itertools.islice(arrivals, requests))
    results = Results(slo)
    sim = _Simulation(workload, plan, costs, {slo.name: slo}, setup, results, samples)
    if door is not None:
        sim.admission = door
    sim.seen = seen
    sim.run(offered)
    results.margin = sim.admission.margin
    results.calibration = sim.estimates.calibration()
    results.components = dict(_uses(sim, results.end))
    results.check_invariants()
    return results


def _uses(sim: _Simulation, span_s: float) -> Iterator[tuple[str, ComponentUse]]:
    for name, pool in sim.pools.items():
        if not pool.hosts:
            continue
        seconds = max(len(pool.hosts) * span_s, 1e-9)
        busy = sum(host.busy_s for host in pool.hosts.values())
        yield name, ComponentUse(len(pool.hosts), busy / seconds, pool.work_s / seconds)


def unloaded(
    workload: Workload,
    plan: Mapping[str, ComponentPlan],
    costs: Mapping[str, Cost],
    slo: SloClass,
    *,
    requests: int = 500,
    seed: int = 0,
) -> Results:
    """Requests that each have the system to themselves: what no scheduling can be better than."""
    times = (i * 1e4 for i in range(requests))
    return simulate(workload, plan, costs, times, slo, setup=Setup(admission="open"), seed=seed)


def unloaded_s(
    workload: Workload, plan: Mapping[str, ComponentPlan], costs: Mapping[str, Cost], *, seed: int = 0
) -> float:
    """Mean latency of requests that each have the system to themselves: what SLOs are given as multiples of."""
    return unloaded(workload, plan, costs, SloClass("alone", 1e6), requests=100, seed=seed).mean_s


def closed_loop(
    workload: Workload,
    plan: Mapping[str, ComponentPlan],
    costs: Mapping[str, Cost],
    *,
    in_flight: int,
    span_s: float,
    setup: Setup = SETUPS["fifo"],
    seed: int = 0,
) -> Results:
    """Keep ``in_flight`` requests under way, starting none after ``span_s``; ``offered / end`` of the results is the capacity."""
    slo = SloClass("closed", 1e6)
    rng = random.Random(seed)
    results = Results(slo)
    sim = _Simulation(workload, plan, costs, {slo.name: slo}, setup, results)
    numbers = itertools.count(in_flight)

    def next_request(now: float) -> None:
        if now < span_s:
            results.offered += 1
            sim.arrive(Request(f"r{next(numbers)}", now, now + slo.deadline_s, slo, workload.path(rng)), now)

    sim.ended = next_request
    sim.run([(0.0, slo, workload.path(rng)) for _ in range(in_flight)])
    results.check_invariants()
    return results


__all__ = [
    "SETUPS",
    "ComponentPlan",
    "Cost",
    "Setup",
    "closed_loop",
    "setup_by_name",
    "simulate",
    "unloaded",
    "unloaded_s",
]
