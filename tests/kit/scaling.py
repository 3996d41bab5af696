"""A small world for autoscaling tests: requests arrive by a rate, replicas serve at their profiled speed and take time to start.

A fluid: queues and served calls are real numbers drawn in steps of a second, so that hours cost milliseconds. What it must get right is
what the autoscaler sees: arrivals with Poisson noise, queues that grow where capacity is short, replicas that come late.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Change, Decision, Observation, Seen, Served
from patchwork_scheduler.profile_model import Profile

STEP_S = 2.0


@dataclass
class World:
    """Runs an autoscaler; ``targets`` are what it asked for, ``ready`` what serves."""

    profile: Profile
    targets: dict[str, int]
    seed: int = 0
    slower: Mapping[str, float] = field(default_factory=dict)  #: real seconds over profiled ones
    now: float = 0.0
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready = dict(self.targets)
        self.queued = dict.fromkeys(self.targets, 0.0)
        self._starting: list[tuple[float, str, int]] = []
        self._draw = random.Random(self.seed)

    def run(self, autoscaler: Autoscaler, rate: Callable[[float], float], seconds: float) -> list[Change]:
        """The changes it made."""
        end = self.now + seconds
        first = len(self.decisions)
        while self.now < end:
            self.now += STEP_S
            decision = autoscaler.step(self._observe(rate(self.now)), self.targets, self.now)
            self._apply(decision)
        return [change for decision in self.decisions[first:] for change in decision.changes]

    def changes(self, component: str) -> list[Change]:
        return [c for d in self.decisions for c in d.changes if c.component == component]

    def _observe(self, rate: float) -> Observation:
        requests = _poisson(self._draw, rate * STEP_S)
        return Observation(STEP_S, requests, 0, {name: self._serve(name, requests) for name in self.targets})

    def _serve(self, name: str, requests: int) -> Seen:
        component = self.profile.component(name)
        visits = component.visits
        calls = int(requests * visits) + (self._draw.random() < (requests * visits) % 1)
        point = max(component.measured[0].batch_points(component.tokens), key=lambda p: p.calls_per_s)
        seconds = point.seconds * self.slower.get(name, 1.0)
        most = self.ready[name] * point.batch / seconds * STEP_S
        done = min(self.queued[name] + calls, most)
        self.queued[name] += calls - done
        batches = math.ceil(done / point.batch)
        served = {point.batch: Served(batches, batches * seconds)} if batches else {}
        return Seen(calls, served, int(self.queued[name]), 0, self.ready[name])

    def _apply(self, decision: Decision) -> None:
        self.decisions.append(decision)
        for change in decision.changes:
            self.targets[change.component] = change.after
            start_s = self.profile.component(change.component).measured[0].cold_start_s
            at = self.now + start_s if change.after > change.before else self.now
            self._starting.append((at, change.component, change.after))
        for at, name, count in list(self._starting):
            if at <= self.now:
                self.ready[name] = min(count, self.targets[name])
                self._starting.remove((at, name, count))


def turns(changes: Iterable[Change]) -> int:
    """How often a component's replicas changed direction."""
    up = [change.after > change.before for change in changes]
    return sum(a != b for a, b in itertools.pairwise(up))


def _poisson(draw: random.Random, mean: float) -> int:
    if mean > 200:
        return max(0, round(draw.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        count += 1
    return count
