"""Components of the simulator: the real queue, work bound and router around simulated engines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from patchwork_scheduler.admission import Mode
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.estimate import Visit
from patchwork_scheduler.model import Call, SloClass
from patchwork_scheduler.policies import DEFAULT_POLICY, policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.router import Router
from patchwork_scheduler.simulated_engines import SimulatedContinuous
from patchwork_scheduler.workbound import WorkBound
from patchwork_scheduler.workload import Path, Site, Step

Cost = BatchCost | TokenCost

#: While calls wait outside an engine that only decodes, how many steps pass before it is asked again for room.
ASK_AGAIN_STEPS = 4
UNLIMITED_STEPS = 1_000_000
#: As in the real host, where handing a call over takes time: the next one follows so many steps before the last prefill is done.
LEAD_STEPS = 1.5


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    replicas: int = 1
    max_batch: int = 32  #: batch engines
    max_sequences: int = 256  #: continuous engines
    token_budget: int = 8192  #: prefill and decode tokens of one engine step
    slower: tuple[float, ...] = ()  #: how many times as slow as its cost each replica is; missing: 1
    unlimited: bool = False  #: a hosted API, or the chain's own time: no call waits for another
    hop_s: float = 0.0  #: a call's way there and back, on top of ``Setup.hop_s``
    #: continuous engines: from when a call is let in until the engine has it; it holds one of ``max_sequences`` meanwhile
    enter_s: float = 0.0


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
class Request:
    id: str
    arrived: float
    deadline: float
    slo: SloClass
    path: Path
    at: int = 0
    outstanding: int = 0
    visits: list[Visit] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Flight:
    """A call under way."""

    call: Call
    request: Request
    step: Step
    alone_s: float
    occupied_s: float
    host: Host | None = None


class Target(Protocol):
    def fire(self, clock: Clock, now: float, tag: int) -> None:
        """Something is due."""
        ...


class Clock(Protocol):
    """What a host sees of the simulation."""

    flights: dict[str, Flight]

    def at(self, time: float, target: Target, tag: int) -> None: ...
    def first_token(self, flight: Flight, now: float) -> None: ...
    def replied(self, flight: Flight, now: float) -> None: ...


class Host(Protocol):
    """A replica."""

    name: str
    pool: Pool
    queue: CallQueue

    @property
    def busy_s(self) -> float: ...  # seconds in which it worked
    @property
    def inside(self) -> int: ...
    def push(self, flight: Flight, now: float) -> None: ...
    def backlog_s(self, now: float) -> float: ...
    def advance(self, clock: Clock, now: float, most: float = math.inf) -> None: ...


class Pool:
    """One component: its queue(s), replicas and router."""

    def __init__(self, name: str, plan: ComponentPlan, cost: Cost, setup: Setup) -> None:
        self.name = name
        self.cost = cost
        self.plan = plan
        self.central = setup.central
        self.work_s = 0.0  #: that calls brought
        self.policy = policy_by_name(setup.policy)
        shared = self._queue(cost, setup) if setup.central else None
        self.hosts: dict[str, Host] = {}
        for i in range(0 if plan.unlimited else plan.replicas):
            own = cost.scaled(plan.slower[i]) if i < len(plan.slower) else cost
            queue = self._queue(own, setup) if shared is None else shared
            host = f"{name}/{i}"
            if isinstance(own, TokenCost):
                self.hosts[host] = ContinuousHost(host, self, queue, own, setup)
            else:
                self.hosts[host] = BatchHost(host, self, queue, own)
        self.router = Router()
        self.router.set_replicas(list(self.hosts), 0.0)
        self._costs: dict[tuple[str, int], tuple[float, float]] = {}

    @property
    def replicas(self) -> float:
        return math.inf if self.plan.unlimited else float(self.plan.replicas)

    def share_out(self, clock: Clock, now: float) -> None:
        """From one queue to whoever has least inside, one call at a time, while anybody has room."""
        hosts = list(self.hosts.values())
        queue = hosts[0].queue
        while before := len(queue):
            for host in sorted(hosts, key=lambda one: one.inside):
                host.advance(clock, now, 1)
                if len(queue) < before:
                    break
            else:
                return

    def site_cost(self, site: Site) -> tuple[float, float]:
        """Seconds of a call of ``site`` alone, and by which it delays others, as far as anybody can know beforehand."""
        return self.call_cost(site, site.output_tokens)

    def call_cost(self, site: Site, output_tokens: int) -> tuple[float, float]:
        found = self._costs.get((site.id, output_tokens))
        if found is None:
            found = self._costs[site.id, output_tokens] = self._call_cost(site, output_tokens)
        return found

    def _call_cost(self, site: Site, output_tokens: int) -> tuple[float, float]:
        cost = self.cost
        if isinstance(cost, TokenCost):
            return (
                cost.alone_s(site.prompt_tokens, output_tokens),
                cost.occupied_s(site.prompt_tokens, output_tokens),
            )
        return cost(site.size), cost.per_item_s(self.plan.max_batch) * site.size

    def _queue(self, cost: Cost, setup: Setup) -> CallQueue:
        if isinstance(cost, TokenCost):
            return CallQueue(self.policy, max_batch=1)
        return CallQueue(self.policy, max_batch=self.plan.max_batch, cost=cost if self.policy.heeds_deadlines else None)


class BatchHost:
    """Runs a batch to its end, then the next."""

    def __init__(self, name: str, pool: Pool, queue: CallQueue, cost: BatchCost) -> None:
        self.name = name
        self.pool = pool
        self.queue = queue
        self.busy_s = 0.0
        self._cost = cost
        self._queued_s = 0.0
        self._busy_until = 0.0
        self._batch: tuple[Call, ...] = ()

    def push(self, flight: Flight, now: float) -> None:
        self.queue.push(flight.call)
        self._queued_s += flight.occupied_s

    @property
    def inside(self) -> int:
        return len(self._batch)

    def backlog_s(self, now: float) -> float:
        running = self._busy_until - now
        return self._queued_s + running if running > 0.0 else self._queued_s

    def advance(self, clock: Clock, now: float, most: float = math.inf) -> None:
        """Start a batch if the engine is free."""
        if self._batch or not len(self.queue):
            return
        self._batch = self.queue.next_batch(now)
        size = 0
        for call in self._batch:
            flight = clock.flights[call.id]
            self._queued_s -= flight.occupied_s
            flight.host = self
            size += call.size
        seconds = self._cost(size)
        self.busy_s += seconds
        self._busy_until = now + seconds
        clock.at(self._busy_until, self, 0)

    def fire(self, clock: Clock, now: float, tag: int) -> None:
        batch, self._batch = self._batch, ()
        self.advance(clock, now)
        for call in batch:
            clock.replied(clock.flights[call.id], now)


class ContinuousHost:
    """Lets calls into its engine as far as the work bound goes."""

    def __init__(self, name: str, pool: Pool, queue: CallQueue, cost: TokenCost, setup: Setup) -> None:
        plan = pool.plan
        self.name = name
        self.pool = pool
        self.queue = queue
        self.engine = SimulatedContinuous(cost, max_sequences=plan.max_sequences, token_budget=plan.token_budget)
        self._enter_s = plan.enter_s
        self._bound: WorkBound | None = None
        if setup.bounded:
            self._bound = WorkBound(
                cost,
                max_sequences=plan.max_sequences,
                max_prefill_tokens=plan.token_budget,
                lead_s=LEAD_STEPS * cost.shortest_step_s + plan.enter_s if plan.enter_s else 0.0,
                progress=self._generated if plan.enter_s else self.engine.generated,
            )
        self._by_rank = setup.engine_priority
        self._backlog_s = 0.0  # work waiting and running here
        self._entering: set[str] = set()  # let in, and not in the engine yet
        self._version = 0
        self._asked = 0

    @property
    def busy_s(self) -> float:
        return self.engine.work_s

    def push(self, flight: Flight, now: float) -> None:
        self.queue.push(flight.call)
        self._backlog_s += flight.occupied_s

    @property
    def inside(self) -> int:
        return len(self.engine) + len(self._entering)

    def backlog_s(self, now: float) -> float:
        return self._backlog_s

    def _generated(self, call_id: str) -> int:
        return 0 if call_id in self._entering else self.engine.generated(call_id)

    def advance(self, clock: Clock, now: float, most: float = math.inf) -> None:
        """Let calls in, and keep the engine stepping."""
        queue, bound = self.queue, self._bound
        shortened: float | None = None
        while most > 0 and (head := queue.peek(now)) is not None:
            most -= 1
            if self._enter_s and self.inside >= self.engine.max_sequences:
                break
            if bound is not None and not bound.has_room(head, now):
                if self._enter_s:  # an engine that hears of a call later is not to wait for it until its step ends
                    self._asked += 1
                    step_s = bound.cost.shortest_step_s * bound.slowdown
                    clock.at(bound.ask_again_at(now, ASK_AGAIN_STEPS * step_s), _Asking(self), self._asked)
                break
            call = queue.next_batch(now)[0]
            end = self._let_in(clock, call, now)
            shortened = end if end is not None else shortened
        self._step(clock, now, shortened)

    def asked_again(self, clock: Clock, now: float, tag: int) -> None:
        if tag == self._asked:
            self.advance(clock, now)

    def _step(self, clock: Clock, now: float, shortened: float | None) -> None:
        end = self.engine.start(now, most_steps=ASK_AGAIN_STEPS if len(self.queue) else UNLIMITED_STEPS)
        if end is None:
            end = shortened
        if end is not None:
            self._version += 1
            clock.at(end, self, self._version)

    def _let_in(self, clock: Clock, call: Call, now: float) -> float | None:
        clock.flights[call.id].host = self
        if self._bound is not None:
            self._bound.started(call, now)
        if not self._enter_s:
            return self._enter(clock, call, now)
        self._entering.add(call.id)
        clock.at(now + self._enter_s, _Entering(self, call), 0)
        return None

    def _enter(self, clock: Clock, call: Call, now: float) -> float | None:
        key = self.pool.policy.rank(call) if self._by_rank else 0.0
        return self.engine.add(call.id, call.prompt_tokens, clock.flights[call.id].step.output_tokens, key, now)

    def entered(self, clock: Clock, call: Call, now: float) -> None:
        """The engine has the call."""
        self._entering.discard(call.id)
        self._step(clock, now, self._enter(clock, call, now))

    def fire(self, clock: Clock, now: float, tag: int) -> None:
        if tag != self._version:
            return  # the stretch was cut short; this was its old end
        first, done = self.engine.finish()
        if self._bound is not None:
            for call_id in first:
                self._bound.first_token(call_id)
            for call_id in done:
                self._bound.finished(call_id)
        flights = clock.flights
        for call_id in first:
            clock.first_token(flights[call_id], now)
        for call_id in done:
            self._backlog_s -= flights[call_id].occupied_s
        if self.pool.central:
            self.pool.share_out(clock, now)
            self.advance(clock, now, 0)
        else:
            self.advance(clock, now)
        for call_id in done:
            clock.replied(flights[call_id], now)


@dataclass(frozen=True, slots=True)
class _Entering:
    host: ContinuousHost
    call: Call

    def fire(self, clock: Clock, now: float, tag: int) -> None:
        self.host.entered(clock, self.call, now)


@dataclass(frozen=True, slots=True)
class _Asking:
    host: ContinuousHost

    def fire(self, clock: Clock, now: float, tag: int) -> None:
        self.host.asked_again(clock, now, tag)
