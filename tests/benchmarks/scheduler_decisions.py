"""What decisions cost: those of the pure objects, and of ``Scheduling``, which an ingress asks at the door and for each leaf call."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from patchwork_adapters.context import RequestContext
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.admission import Admission, Admit
from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.estimate import Ahead
from patchwork_scheduler.model import Call, SloClass
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.router import Router
from patchwork_scheduler.workbound import WorkBound
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.wire import Report

T = TypeVar("T")
REPLICAS, REQUESTS, ROUNDS = 8, 1000, 20_000
#: Requests call these in turn.
COMPONENTS = ("search", "grade", "rewrite", "answer")


def decisions() -> dict[str, Any]:
    found = {**pure(), "ingress_us": ingress()}
    print(json.dumps(found))
    return {
        **found, "queued_calls": REQUESTS, "replicas": REPLICAS, "accepted_requests": REQUESTS, "clock": "processor time of the thread",
    }  # fmt: skip


def pure() -> dict[str, Any]:
    """Push, pop, route and admit with 1,000 calls queued, eight replicas and 1,000 requests accepted."""
    slo = SloClass("slo", 5.0)
    ahead = Ahead(0.5, 0.6, 0.7, {"embedder": 0.001, "retriever": 0.002, "small": 0.1, "large": 0.2})
    door = Admission([slo], dict.fromkeys(ahead.demand, 4.0))
    router, bound = Router(), WorkBound(TokenCost(0.004, 1e-5, 2e-5))
    router.set_replicas([f"r{i}" for i in range(8)], 0.0)
    queue, rng = CallQueue(policy_by_name(), max_batch=1), random.Random(0)
    for i in range(1000):
        queue.push(made(f"q{i}", 0.0, rng))
        door.accepted(f"a{i}", slo, ahead, 5.0, 0.0, 0.5)
    for i in range(100):
        bound.started(made(f"b{i}", 0.0, rng), 0.0)
    spent: list[float] = []
    room: list[float] = []
    for i in range(20_000):
        now = i * 1e-4
        call = made(f"n{i}", now, rng)
        began = time.thread_time()  # not the time that others had the processor
        door.decide(slo, ahead, now, now + 5.0)
        name = router.choose(0.1, now)
        assert name is not None
        router.sent(name, call.id, 0.1, now)
        queue.push(call)
        head = queue.peek(now)
        queue.next_batch(now)
        router.replied(name, call.id, now, backlog_s=rng.random())
        spent.append(time.thread_time() - began)
        assert head is not None
        began = time.thread_time()
        bound.has_room(head, now)
        room.append(time.thread_time() - began)
    return {"admit_route_push_pop_reply_us": percentiles(spent), "room_in_engine_of_100_us": percentiles(room)}


def made(name: str, now: float, rng: random.Random) -> Call:
    return Call(name, now, now + 5 * rng.random(), 1, "s", rng.random(), 0.0, 500, 100)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(1e6 * float(np.percentile(seconds, q)), 1) for q in (50, 90, 99, 99.9)}


def ingress() -> dict[str, dict[str, float]]:
    """With 1,000 requests in flight: ``door`` lets one in, ``call`` is all decisions about one leaf call, ``end`` learns from a request."""
    rng = random.Random(0)
    names = {one: tuple(f"{one}{i}" for i in range(REPLICAS)) for one in COMPONENTS}
    it = Scheduling(
        {"slo": SloClass("slo", 50.0)},
        dict.fromkeys(COMPONENTS, REPLICAS),
        admission="refuse",
        replicas_of=names.__getitem__,
    )
    spent: dict[str, list[float]] = {"door": [], "call": [], "end": []}
    taken = 0.0

    def timed(decide: Callable[[], T]) -> T:
        nonlocal taken
        began = time.thread_time()
        found = decide()
        taken += time.thread_time() - began
        return found

    def done(what: str) -> None:
        nonlocal taken
        spent[what].append(taken)
        taken = 0.0

    def enter(number: int, now: float) -> tuple[RequestContext, int]:
        run = f"r{number}"
        assert isinstance(timed(lambda: it.decide(run, "slo", now + 50.0, now)), Admit)
        done("door")
        return RequestContext(run, run, slo="slo", slo_deadline=now + 50.0), 0

    inside = [enter(number, 0.0) for number in range(REQUESTS)]
    for number in range(REQUESTS, REQUESTS + ROUNDS):
        now = 1e-3 * number
        i = rng.randrange(len(inside))
        request, at = inside[i]
        call = LeafCall(COMPONENTS[at], "leaf", "chat", b"x" * 2000, site=COMPONENTS[at], request=request)
        step = timed(lambda call=call, now=now: it.begin(call, now))
        sending = timed(lambda step=step, run=f"c{number}", now=now: it.send(step, run, now))
        told = Report(
            sending.replica, queue_s=rng.random() / 10, service_s=rng.random(), batch=rng.choice((1, 2, 4, 8)), queued_s=rng.random(),
            running_s=0.1, prompt_tokens=500, output_tokens=30,
        )  # fmt: skip
        timed(lambda step=step, sending=sending, told=told, now=now: it.replied(step, sending, told, now))
        timed(lambda step=step, now=now: it.end(step, now))
        done("call")
        inside[i] = request, at + 1
        if at + 1 == len(COMPONENTS):
            timed(lambda request=request, now=now: it.finished(request.run_id, now, whole=True))
            done("end")
            inside[i] = enter(number, now)
    return {what: percentiles(seconds[len(seconds) // 10 :]) for what, seconds in spent.items()}
