"""Two autoscalers on the same arrivals: a simulation of requests that walk through components whose replicas come and go.

Each component has one queue, earliest deadline first; a free replica takes up to a batch from it and is busy for as long as its profile
says for that many. A replica asked for serves after the cold start and is paid for from the moment it is asked for; one taken away ends
its batch first. A call that would end after its deadline is not run, and its request has missed; or it is run all the same, as in a
deployment whose door is open (``drops_late``). What autoscalers are told is what they are told in a deployment: ours counters every two
seconds, Ray Serve's the ongoing requests of each component twice a second, in reports every ten.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Observation, Seen, Served
from patchwork_scheduler.profile_model import ComponentProfile, Profile


class Scaler(Protocol):
    """Told every second; answers with the replicas it wants."""

    def look(self, world: Race, now: float) -> Mapping[str, int]: ...


@dataclass
class Result:
    requests: int = 0
    attained: int = 0
    replica_seconds: float = 0.0
    changes: int = 0

    @property
    def missed(self) -> int:
        return self.requests - self.attained


@dataclass
class _Pool:
    component: ComponentProfile
    wanted: int
    starting: list[float] = field(default_factory=list)
    ready: int = 0
    busy: int = 0
    waiting: list[tuple[float, int, _Request]] = field(default_factory=list)
    running: int = 0
    calls: int = 0  # since ours looked
    served: dict[int, Served] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ready = self.wanted
        points = self.component.measured[0].batch_points(self.component.tokens)
        self.point = max(points, key=lambda p: p.calls_per_s)
        self.seconds = {p.batch: p.seconds for p in points}

    def seconds_of(self, calls: int) -> float:
        """Of the smallest measured batch that holds them."""
        return next(self.seconds[b] for b in sorted(self.seconds) if b >= calls)


@dataclass(eq=False)
class _Request:
    deadline: float
    path: list[str]


class Race:
    """Runs ``arrivals`` (seconds, ascending) against one autoscaler."""

    def __init__(
        self, profile: Profile, replicas: Mapping[str, int], slo_s: float, seed: int = 0, *, drops_late: bool = True
    ) -> None:
        self.profile = profile
        self.drops_late = drops_late
        self.slo_s = slo_s
        self.pools = {c.id: _Pool(c, replicas[c.id]) for c in profile.components}
        self.requests = self.late = 0  # since ours looked
        self.result = Result()
        self._draw = random.Random(seed)
        self._events: list[tuple[float, int, Any]] = []
        self._order = itertools.count()

    def run(self, arrivals: Sequence[float], scaler: Scaler, until: float) -> Result:
        for at in arrivals:
            self._at(at, ("arrive",))
        for second in range(1, int(until) + 1):
            self._at(float(second), ("look",))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            match event:
                case ("arrive",):
                    self._arrive(now)
                case ("look",):
                    self._look(scaler, now)
                case ("ready", name):
                    self._ready(name, now)
                case ("done", name, batch):
                    self._done(name, batch, now)
        return self.result

    def _at(self, time: float, event: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _arrive(self, now: float) -> None:
        path = []
        for component in self.profile.components:
            whole, part = int(component.visits), component.visits % 1
            path += [component.id] * (whole + (self._draw.random() < part))
        self.requests += 1
        self.result.requests += 1
        self._go_on(_Request(now + self.slo_s, path), now)

    def _go_on(self, request: _Request, now: float) -> None:
        if not request.path:
            self.result.attained += now <= request.deadline
            self.late += now > request.deadline
            return
        name = request.path.pop(0)
        pool = self.pools[name]
        pool.calls += 1
        heapq.heappush(pool.waiting, (request.deadline, next(self._order), request))
        self._serve(name, now)

    def _serve(self, name: str, now: float) -> None:
        pool = self.pools[name]
        while pool.waiting and pool.busy < min(pool.ready, pool.wanted):
            batch = []
            while pool.waiting and len(batch) < pool.point.batch:
                _, _, request = heapq.heappop(pool.waiting)
                if not self.drops_late or request.deadline > now + pool.seconds_of(len(batch) + 1):
                    batch.append(request)
                else:
                    self.late += 1
            if not batch:
                return
            seconds = pool.seconds_of(len(batch))
            pool.busy += 1
            pool.running += len(batch)
            old = pool.served.get(len(batch), Served(0, 0.0))
            pool.served[len(batch)] = Served(old.batches + 1, old.seconds + seconds)
            self._at(now + seconds, ("done", name, batch))

    def _done(self, name: str, batch: list[_Request], now: float) -> None:
        pool = self.pools[name]
        pool.busy -= 1
        pool.running -= len(batch)
        self._serve(name, now)
        for request in batch:
            self._go_on(request, now)

    def _look(self, scaler: Scaler, now: float) -> None:
        self.result.replica_seconds += sum(max(pool.wanted, pool.busy) for pool in self.pools.values())
        for name, count in scaler.look(self, now).items():
            pool = self.pools[name]
            if count == pool.wanted:
                continue
            self.result.changes += 1
            pool.wanted = count
            have = pool.ready + len(pool.starting)
            for _ in range(count - have):
                pool.starting.append(now)
                self._at(now + pool.component.measured[0].cold_start_s, ("ready", name))
            while pool.starting and pool.ready + len(pool.starting) > count:
                pool.starting.pop()
            pool.ready = min(pool.ready, count)

    def _ready(self, name: str, now: float) -> None:
        pool = self.pools[name]
        if pool.starting and pool.starting[0] <= now - pool.component.measured[0].cold_start_s + 1e-6:
            pool.starting.pop(0)
            pool.ready += 1
            self._serve(name, now)


class Ours:
    """The autoscaler of this package, asked every two seconds."""

    def __init__(self, autoscaler: Autoscaler, every_s: int = 2) -> None:
        self._autoscaler = autoscaler
        self._every_s = every_s

    def look(self, world: Race, now: float) -> Mapping[str, int]:
        if now % self._every_s:
            return {}
        seen = {name: Seen(p.calls, p.served, len(p.waiting), p.running, p.ready) for name, p in world.pools.items()}
        observation = Observation(self._every_s, world.requests, world.late, seen)
        world.requests = world.late = 0
        for pool in world.pools.values():
            pool.calls, pool.served = 0, {}
        return self._autoscaler.step(observation, {n: p.wanted for n, p in world.pools.items()}, now).targets


class RayServes:
    """Ray Serve's own autoscaler: its policy and its delays are Ray's code, given the ongoing requests as its handles report them."""

    SAMPLE_S = 0.5

    def __init__(self, limits: Mapping[str, int], **config: Any) -> None:
        from ray.serve.config import AutoscalingConfig

        self._configs = {
            name: AutoscalingConfig(min_replicas=1, max_replicas=most, **config) for name, most in limits.items()
        }
        self._samples: dict[str, deque[tuple[float, int]]] = {name: deque() for name in limits}
        self._reported: dict[str, float] = {}
        self._states: dict[str, dict[str, Any]] = {name: {} for name in limits}

    def look(self, world: Race, now: float) -> Mapping[str, int]:
        return {name: self._decide(name, pool, now) for name, pool in world.pools.items()}

    def _decide(self, name: str, pool: _Pool, now: float) -> int:
        from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors

        config, samples = self._configs[name], self._samples[name]
        samples.append((now, len(pool.waiting) + pool.running))
        while samples[0][0] <= now - config.look_back_period_s:
            samples.popleft()
        if now % config.metrics_interval_s == 0:
            self._reported[name] = sum(count for _, count in samples) / len(samples)
        ongoing = self._reported.get(name)
        running = pool.ready
        if ongoing is None or not running:
            return pool.wanted
        desired = running * (ongoing / (config.get_target_ongoing_requests() * running))
        scaled = _apply_scaling_factors(desired, running, config)
        count, self._states[name] = _apply_delay_logic(
            max(0, scaled), pool.wanted, config, self._states[name], _now=now
        )
        return max(config.min_replicas, min(config.max_replicas, count))


def poisson(rate: Any, until: float, seed: int) -> list[float]:
    """Arrivals of a rate that changes with time (a function of seconds), by thinning."""
    draw, most, now, found = random.Random(seed), max(rate(t) for t in range(int(until))), 0.0, []
    while (now := now + draw.expovariate(most)) < until:
        if draw.random() < rate(now) / most:
            found.append(now)
    return found
