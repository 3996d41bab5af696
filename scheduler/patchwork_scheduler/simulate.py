"""A discrete-event simulator around the real queue, policy, work bound, router, estimates and admission.

What is simulated: requests that walk through sites, replicas with engines (see ``simulated_engines``), and one hop per call. What decides
is the same code that runs in orchestrators and replicas. ``central``: the ideal bound, where every replica of a component takes
from one queue at the moment it has room, so that no call waits behind another while some replica could serve it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from patchwork_scheduler.admission import Admission, Admit, Hold, Mode, Refuse
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_scheduler.estimate import Estimates, Visit
from patchwork_scheduler.model import Call, SloClass, State
from patchwork_scheduler.policies import DEFAULT_POLICY, policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.results import Results
from patchwork_scheduler.router import Router
from patchwork_scheduler.simulated_engines import SimulatedContinuous
from patchwork_scheduler.workbound import WorkBound
from patchwork_scheduler.workload import Path, Site, Step, Workload

#: While calls wait outside an engine that only decodes, how many steps pass before it is asked again for room.
ASK_AGAIN_STEPS = 4


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    replicas: int = 1
    max_batch: int = 32  #: batch engines
    max_sequences: int = 256  #: continuous engines
    token_budget: int = 8192  #: prefill and decode tokens of one engine step


@dataclass(frozen=True, slots=True)
class Setup:
    """How requests are scheduled."""

    policy: str = DEFAULT_POLICY
    admission: Mode = "refuse"
    bounded: bool = True  #: bound the work inside continuous engines; else everything goes straight in
    engine_priority: bool = (
        True  #: hand the rank to the engine's own queue (vLLM's priority); else it serves in order of arrival
    )
    central: bool = False
    hop_s: float = 0.0  #: a call's way there and back
    cancel_late: bool = False  #: end a request at its deadline instead of finishing it late


@dataclass(slots=True, eq=False)
class _Request:
    id: str
    arrived: float
    deadline: float
    slo: SloClass
    path: Path
    at: int = 0
    outstanding: int = 0
    visits: list[Visit] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Flight:
    """A call under way."""

    call: Call
    request: _Request
    step: Step
    alone_s: float
    occupied_s: float
    host: Any = None


class _Pool:
    """One component: its queue(s), replicas and router."""

    def __init__(self, name: str, plan: ComponentPlan, cost: BatchCost | TokenCost, setup: Setup) -> None:
        self.name = name
        self.cost = cost
        self.plan = plan
        self.central = setup.central
        policy = policy_by_name(setup.policy)
        self.policy = policy

        def queue() -> CallQueue:
            if isinstance(cost, TokenCost):
                return CallQueue(policy, max_batch=1)
            return CallQueue(policy, max_batch=plan.max_batch, cost=cost if setup.policy != "fifo" else None)

        shared = queue() if setup.central else None
        kind = _ContinuousHost if isinstance(cost, TokenCost) else _BatchHost
        names = [f"{name}/{i}" for i in range(plan.replicas)]
        self.hosts = {one: kind(one, self, queue() if shared is None else shared, setup) for one in names}
        self.router = Router()
        self.router.set_replicas(list(self.hosts), 0.0)
        self._site_costs: dict[str, tuple[float, float]] = {}

    def share_out(self, sim: _Simulation, now: float) -> None:
        """From one queue to whoever has least inside, one call at a time, while anybody has room."""
        hosts = list(self.hosts.values())
        while len(hosts[0].queue):
            before = len(hosts[0].queue)
            for host in sorted(hosts, key=lambda one: one.inside):
                host.advance(sim, now, 1)
                if len(host.queue) < before:
                    break
            else:
                return

    def site_cost(self, site: Site) -> tuple[float, float]:
        """Seconds of a call of ``site`` alone, and by which it delays others, as far as anybody can know beforehand."""
        costs = self._site_costs.get(site.id)
        if costs is None:
            costs = self._site_costs[site.id] = self.call_cost(site, site.output_tokens)
        return costs

    def call_cost(self, site: Site, output_tokens: int) -> tuple[float, float]:
        cost = self.cost
        if isinstance(cost, TokenCost):
            return (
                cost.alone_s(site.prompt_tokens, output_tokens),
                cost.occupied_s(site.prompt_tokens, output_tokens),
            )
        return cost(site.size), cost.per_item_s(self.plan.max_batch) * site.size


class _BatchHost:
    def __init__(self, name: str, pool: _Pool, queue: CallQueue, setup: Setup) -> None:
        self.name = name
        self.pool = pool
        self.queue = queue
        self.flights: dict[str, _Flight] = {}
        self.queued_s = 0.0
        self.busy_until = 0.0
        self.batch: tuple[Call, ...] = ()
        self.version = 0

    def push(self, flight: _Flight, now: float) -> None:
        self.queue.push(flight.call)
        self.queued_s += flight.occupied_s

    @property
    def inside(self) -> int:
        return len(self.batch)

    def backlog_s(self, now: float) -> float:
        return self.queued_s + max(0.0, self.busy_until - now)

    def advance(self, sim: _Simulation, now: float, most: float = math.inf) -> None:
        """Start a batch if the engine is free."""
        if self.batch:
            return
        self.batch = self.queue.next_batch(now)
        if not self.batch:
            return
        size = 0
        for call in self.batch:
            flight = sim.flights[call.id]
            self.queued_s -= flight.occupied_s
            flight.host = self
            size += call.size
        cost = self.pool.cost
        assert isinstance(cost, BatchCost)
        self.busy_until = now + cost(size)
        sim.at(self.busy_until, self, 0)

    def fire(self, sim: _Simulation, now: float, version: int) -> None:
        batch, self.batch = self.batch, ()
        self.advance(sim, now)
        for call in batch:
            sim.replied(sim.flights[call.id], now)


class _ContinuousHost:
    def __init__(self, name: str, pool: _Pool, queue: CallQueue, setup: Setup) -> None:
        cost, plan = pool.cost, pool.plan
        assert isinstance(cost, TokenCost)
        self.name = name
        self.pool = pool
        self.queue = queue
        self.engine = SimulatedContinuous(cost, max_sequences=plan.max_sequences, token_budget=plan.token_budget)
        self.bound = (
            WorkBound(
                cost,
                max_sequences=plan.max_sequences,
                max_prefill_tokens=plan.token_budget,
                progress=self.engine.generated,
            )
            if setup.bounded
            else None
        )
        self.by_rank = setup.engine_priority
        self.backlog = 0.0  # work waiting and running here
        self.version = 0

    def push(self, flight: _Flight, now: float) -> None:
        self.queue.push(flight.call)
        self.backlog += flight.occupied_s

    @property
    def inside(self) -> int:
        return len(self.engine)

    def backlog_s(self, now: float) -> float:
        return self.backlog

    def advance(self, sim: _Simulation, now: float, most: float = math.inf) -> None:
        """Let calls in as far as the bound goes, and keep the engine stepping."""
        queue, bound, policy = self.queue, self.bound, self.pool.policy
        shortened: float | None = None
        while len(queue) and most > 0:
            most -= 1
            if bound is not None:
                head = queue.peek(now)
                if head is None or not bound.has_room(head, now):
                    break
            call = queue.next_batch(now)[0]
            flight = sim.flights[call.id]
            flight.host = self
            if bound is not None:
                bound.started(call, now)
            key = policy.rank(call) if self.by_rank else 0.0
            end = self.engine.add(call.id, call.prompt_tokens, flight.step.output_tokens, key, now)
            shortened = end if end is not None else shortened
        end = self.engine.start(now, most_steps=ASK_AGAIN_STEPS if len(queue) else 1_000_000)
        if end is None:
            end = shortened
        if end is not None:
            self.version += 1
            sim.at(end, self, self.version)

    def fire(self, sim: _Simulation, now: float, version: int) -> None:
        if version != self.version:
            return  # the stretch was cut short; this was its old end
        first, done = self.engine.finish()
        if self.bound is not None:
            for call_id in first:
                self.bound.first_token(call_id)
            for call_id in done:
                self.bound.finished(call_id)
        for call_id in first:
            sim.first_token(sim.flights[call_id], now)
        for call_id in done:
            self.backlog -= sim.flights[call_id].occupied_s
        if self.pool.central:
            self.pool.share_out(sim, now)
        self.advance(sim, now, 0 if self.pool.central else math.inf)
        for call_id in done:
            sim.replied(sim.flights[call_id], now)


class _Simulation:
    def __init__(
        self, workload: Workload, plan: Mapping[str, ComponentPlan], costs: Mapping[str, BatchCost | TokenCost],
        slos: Mapping[str, SloClass], setup: Setup, results: Results,
    ) -> None:  # fmt: skip
        if missing := sorted(workload.components - costs.keys()):
            raise IncompleteProfile(f"the profile has no component {', '.join(missing)}, which the workload needs")
        if missing := sorted(workload.components - plan.keys()):
            raise IncompleteProfile(f"the plan has no component {', '.join(missing)}, which the workload needs")
        self.setup = setup
        self.results = results
        self.pools = {name: _Pool(name, plan[name], costs[name], setup) for name in sorted(workload.components)}
        self.estimates = Estimates()
        replicas = {name: float(plan[name].replicas) for name in self.pools}
        self.admission = Admission(
            list(slos.values()),
            replicas,
            mode=setup.admission,
        )
        self.flights: dict[str, _Flight] = {}
        self.risks: list[tuple[float, str]] = []  # latest start of waiting calls, where the door may be held
        self.held: deque[_Request] = deque()
        self.ended: Callable[[float], None] | None = None  # a closed loop sends its next request here
        self._events: list[tuple[float, int, Any, int]] = []
        self._order = itertools.count()
        self._calls = itertools.count()
        self._seed(workload)

    def _seed(self, workload: Workload) -> None:
        """What a profile gives: walk the likeliest mean way through the sites."""
        rng = random.Random(0)
        for _ in range(20):
            visits = []
            for step in workload.path(rng):
                alone, occupied = self.pools[step.site.component].site_cost(step.site)
                visits.append(
                    Visit(State(step.site.id, step.loop), step.site.component, 0.0, alone, occupied * step.site.fan)
                )
            self.estimates.observe(visits, sum(visit.work_s for visit in visits))
        for calibration in self.estimates.calibration().values():
            calibration.count, calibration.predicted, calibration.actual, calibration.error = 0, 0.0, 0.0, 0.0

    def at(self, time: float, target: Any, tag: int) -> None:
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
                request = _Request(f"r{next(numbers)}", now, now + slo.deadline_s, slo, path)
                self.results.offered += 1
                self.arrive(request, now)
            else:
                now, _, target, tag = heapq.heappop(events)
                target.fire(self, now, tag)
        self.results.end = now

    # -- a request -------------------------------------------------------------------------------------------------

    def arrive(self, request: _Request, now: float) -> None:
        first = request.path[0]
        ahead = self.estimates.ahead(State(first.site.id, 0))
        decision = self.admission.decide(
            request.slo, ahead, now, request.deadline, at_risk=self.setup.admission == "hold" and self._at_risk(now)
        )
        match decision:
            case Admit(predicted):
                self.admission.accepted(
                    request.id, request.slo, ahead, request.deadline, now, predicted, at=first.site.component
                )
                self.visit(request, now)
            case Refuse():
                self.results.refuse(decision.retry_after_s)
            case Hold(_, check_after):
                if not self.held:
                    self.at(now + check_after, _Retry(), 0)
                self.held.append(request)

    def visit(self, request: _Request, now: float) -> None:
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
        request.visits.append(Visit(state, site.component, now, real_alone, real_occupied * site.fan))
        request.outstanding = site.fan
        touched = {}
        for _ in range(site.fan):
            call = Call(
                f"c{next(self._calls)}", now, request.deadline, site.size, site.id, ahead.work_s,
                max(ahead.work_s - alone, 0.0), site.prompt_tokens, site.output_tokens,
            )  # fmt: skip
            flight = _Flight(call, request, step, alone, occupied)
            self.flights[call.id] = flight
            if setup.admission == "hold":
                heapq.heappush(self.risks, (call.latest_start, call.id))
            if setup.central:
                next(iter(pool.hosts.values())).push(flight, now)
            else:
                name = pool.router.choose(occupied, now)
                assert name is not None
                pool.router.sent(name, call.id, occupied, now, alone_s=alone)
                flight.host = touched[name] = pool.hosts[name]
                flight.host.push(flight, now)
        if setup.central:
            pool.share_out(self, now)
            return
        for host in touched.values():
            host.advance(self, now)

    def first_token(self, flight: _Flight, now: float) -> None:
        request = flight.request
        if request.at == len(request.path) - 1:
            self.results.ttft.append(now - request.arrived)

    def replied(self, flight: _Flight, now: float) -> None:
        if self.setup.hop_s:
            self.at(now + self.setup.hop_s, _Reply(flight), 0)
        else:
            self.receive(flight, now)

    def receive(self, flight: _Flight, now: float) -> None:
        request, call = flight.request, flight.call
        del self.flights[call.id]
        if not self.setup.central:
            host = flight.host
            host.pool.router.replied(host.name, call.id, now, backlog_s=host.backlog_s(now))
        request.outstanding -= 1
        if request.outstanding:
            return
        request.at += 1
        if request.at < len(request.path) and not (self.setup.cancel_late and now > request.deadline):
            self.visit(request, now)
            return
        self.admission.finished(request.id, now)
        if request.at == len(request.path):
            self.estimates.observe(request.visits, now)
        self.results.finish(now - request.arrived, now <= request.deadline)
        if self.ended is not None:
            self.ended(now)

    def _at_risk(self, now: float) -> bool:
        """The paper's question: does any call under way belong to a request that is expected to miss?"""
        risks = self.risks
        while risks and risks[0][1] not in self.flights:
            heapq.heappop(risks)
        return bool(risks) and risks[0][0] < now


class _Retry:
    """Those held outside ask again, in the order they came, until one is held again."""

    def fire(self, sim: _Simulation, now: float, tag: int) -> None:
        held, sim.held = sim.held, deque()
        while held and not sim.held:
            sim.arrive(held.popleft(), now)
        sim.held.extend(held)


@dataclass(frozen=True, slots=True)
class _Reply:
    flight: _Flight

    def fire(self, sim: _Simulation, now: float, tag: int) -> None:
        sim.receive(self.flight, now)


def simulate(
    workload: Workload,
    plan: Mapping[str, ComponentPlan],
    costs: Mapping[str, BatchCost | TokenCost],
    arrivals: Iterable[float],
    slo: SloClass,
    *,
    setup: Setup = Setup(),
    requests: int | None = None,
    seed: int = 0,
    paths: Callable[[random.Random], Path] | None = None,
    door: Admission | None = None,
) -> Results:
    """Run the first ``requests`` of ``arrivals`` (all when None) to their end.

    ``paths`` draws what a request does (default: the workload); ``door`` decides who comes in (default: as ``setup`` says).
    Equal arguments give equal results. IncompleteProfile names a component that ``plan`` or ``costs`` lack.
    """
    rng = random.Random(seed)
    draw = paths or workload.path
    offered = ((time, slo, draw(rng)) for time in itertools.islice(arrivals, requests))
    results = Results(slo)
    sim = _Simulation(workload, plan, costs, {slo.name: slo}, setup, results)
    if door is not None:
        sim.admission = door
    sim.run(offered)
    results.margin = sim.admission.margin
    results.calibration = sim.estimates.calibration()
    results.check_invariants()
    return results


def unloaded_s(
    workload: Workload, plan: Mapping[str, ComponentPlan], costs: Mapping[str, BatchCost | TokenCost], *, seed: int = 0
) -> float:
    """Mean latency of requests that each have the system to themselves: what SLOs are given as multiples of."""
    slo = SloClass("alone", 1e6)
    return simulate(
        workload, plan, costs, (i * 1e4 for i in range(100)), slo, setup=Setup(admission="open"), seed=seed
    ).mean_s


def closed_loop(
    workload: Workload,
    plan: Mapping[str, ComponentPlan],
    costs: Mapping[str, BatchCost | TokenCost],
    *,
    in_flight: int,
    span_s: float,
    setup: Setup = Setup("fifo", "open", bounded=False, engine_priority=False),
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
            sim.arrive(_Request(f"r{next(numbers)}", now, now + slo.deadline_s, slo, workload.path(rng)), now)

    sim.ended = next_request
    sim.run([(0.0, slo, workload.path(rng)) for _ in range(in_flight)])
    results.check_invariants()
    return results
