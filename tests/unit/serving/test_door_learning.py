"""The door from its first request on, in front of an engine that slows down with company: what it has learnt after a while."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from patchwork_adapters.context import RequestContext
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.admission import Admit
from patchwork_scheduler.model import SloClass
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.wire import Report

BAD, BAD_HOUR = 1.8, range(100, 160)
ALONE_S, SLOWER, SLO = 1.1, 0.08, SloClass("s", 2.2, target_share=0.98)
BEGINNING, REQUESTS = 60, 400


class Engine:
    """Runs ``slots`` calls at once, each slower by a part for every other there was when it began; the rest waits in order."""

    def __init__(self, slots: int, seed: int, slo: SloClass = SLO, bad_hour: range = range(0)) -> None:
        self.slots = slots
        self.bad_hour = bad_hour  #: requests that take BAD times as long
        self.it = Scheduling({"s": slo}, {"llm": 1}, admission="refuse", replicas_of=lambda _: ("a",))
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, Any]] = []
        self.order = itertools.count()
        self.inside = 0
        self.queue: list[Any] = []
        self.beginning, self.later = Counter[str](), Counter[str]()

    def capacity(self) -> float:
        return self.slots / (ALONE_S * (1 + SLOWER * (self.slots - 1)))

    def run(self, rate: float) -> None:
        now = 0.0
        for n in range(REQUESTS):
            now += self.rng.expovariate(rate)
            heapq.heappush(self.events, (now, next(self.order), n))
        while self.events:
            now, _, event = heapq.heappop(self.events)
            self.arrive(event, now) if isinstance(event, int) else self.end(*event, now)

    def arrive(self, n: int, now: float) -> None:
        run_id = f"r{n}"
        if not isinstance(self.it.decide(run_id, "s", now + SLO.deadline_s, now), Admit):
            self.count(n, "refused")
            return
        request = RequestContext(run_id, run_id, slo="s", slo_deadline=now + SLO.deadline_s)
        step = self.it.begin(LeafCall("llm", "leaf", "chat", b"prompt", site="answer", request=request), now)
        call = (n, now, step, self.it.send(step, run_id, now))
        self.start(call, now) if self.inside < self.slots else self.queue.append(call)

    def start(self, call: Any, now: float) -> None:
        self.inside += 1
        took = (
            ALONE_S
            * self.rng.uniform(0.8, 1.2)
            * (1 + SLOWER * (self.inside - 1))
            * (BAD if call[0] in self.bad_hour else 1.0)
        )
        heapq.heappush(self.events, (now + took, next(self.order), (call, now, took, self.inside)))

    def end(self, call: Any, began: float, took: float, company: int, now: float) -> None:
        n, arrived, step, sending = call
        self.inside -= 1
        waiting_s = len(self.queue) / self.capacity()
        report = Report("llm#a", queue_s=began - arrived, service_s=took, batch=company, queued_s=waiting_s)
        self.it.replied(step, sending, report, now)
        self.it.end(step, now)
        self.it.finished(f"r{n}", now, whole=True)
        self.count(n, "in time" if now - arrived <= SLO.deadline_s else "late")
        if self.queue:
            self.start(self.queue.pop(0), now)

    def count(self, n: int, outcome: str) -> None:
        (self.beginning if n < max(BEGINNING, self.bad_hour.stop) else self.later)[outcome] += 1


@pytest.mark.parametrize("slots", [4, 16])
def test_at_low_load_nobody_is_refused_once_the_company_that_an_engine_bears_is_known(slots: int) -> None:
    engine = Engine(slots, seed=1)
    engine.run(0.3 * engine.capacity())
    assert engine.later["refused"] == 0
    assert engine.later["late"] == 0
    assert engine.beginning["in time"] >= 0.75 * BEGINNING


@pytest.mark.parametrize(("slots", "share"), [(1, 0.6), (4, 0.6), (16, 0.4)])
def test_a_rush_at_the_very_beginning_does_not_shut_the_door_for_good(slots: int, share: float) -> None:
    in_time = late = 0
    for seed in range(10):
        engine = Engine(slots, seed=seed)
        engine.run(3 * engine.capacity())
        in_time, late = in_time + engine.later["in time"], late + engine.later["late"]
    could_be = 10 * (REQUESTS - BEGINNING) / 3
    assert in_time >= share * could_be
    assert late <= 0.15 * (in_time + late)


@pytest.mark.parametrize(
    ("slots", "promised", "share"), [(2, 0.8, 0.9), (4, 0.8, 0.85), (2, 0.98, 0.85), (4, 0.98, 0.8)]
)
def test_after_a_bad_hour_the_door_comes_back(slots: int, promised: float, share: float) -> None:
    """Everybody is late in it. Where 0.8 is promised probes tell that it is over, and its requests are not what others may need."""
    in_time = late = 0
    for seed in range(8):
        engine = Engine(slots, seed, replace(SLO, target_share=promised), bad_hour=BAD_HOUR)
        engine.run(0.3 * engine.capacity())
        in_time, late = in_time + engine.later["in time"], late + engine.later["late"]
    offered = 8 * (REQUESTS - BAD_HOUR.stop)
    assert in_time >= share * offered
    assert late <= 0.05 * offered
