"""From counters to observations."""

from __future__ import annotations

from typing import Any

from patchwork_scheduler.autoscale_model import Observation, Seen, Served
from patchwork_scheduler.autoscale_watch import Watch


def ingress(name: str, at: float, requests: int, late: int = 0, **calls: int) -> dict[str, Any]:
    return {"component": "ingress", "replica": name, "at": at, "requests": requests, "late": late, "calls": calls}


def replica(name: str, batches: dict[str, list[float]], queued: int = 0, running: int = 0) -> dict[str, Any]:
    return {
        "component": name.split("#")[0], "replica": name, "queued": queued, "running": running, "served_by_batch": batches,
    }  # fmt: skip


def test_what_two_looks_at_counters_tell_is_their_difference() -> None:
    watch = Watch()
    assert watch.observe([ingress("i#1", 100.0, 10, llm=20), replica("llm#1", {"4": [5, 1.0]})], now=0.0) is None
    seen = watch.observe(
        [ingress("i#1", 102.5, 16, 1, llm=30), replica("llm#1", {"4": [7, 1.5], "1": [1, 0.1]}, queued=3)], now=2.0
    )
    # the interval is the one between the reports, not between the looks
    assert seen == Observation(2.5, 6, 1, {"llm": Seen(10, {4: Served(2, 0.5), 1: Served(1, 0.1)}, 3, 0, 1)})


def test_nothing_is_observed_until_the_ingress_has_reported_again() -> None:
    watch = Watch()
    watch.observe([ingress("i#1", 100.0, 10)], now=0.0)
    assert watch.observe([ingress("i#1", 100.0, 10)], now=2.0) is None
    seen = watch.observe([ingress("i#1", 104.0, 18)], now=4.0)
    assert seen is not None
    assert (seen.seconds, seen.requests) == (4.0, 8)


def test_replicas_add_up_and_a_new_one_counts_from_its_start() -> None:
    watch = Watch()
    watch.observe([ingress("i#1", 100.0, 10), replica("llm#1", {"1": [5, 1.0]})], now=0.0)
    seen = watch.observe(
        [
            ingress("i#1", 102.0, 12), ingress("i#2", 102.0, 3),
            replica("llm#1", {"1": [6, 1.2]}, queued=1, running=1), replica("llm#2", {"1": [2, 0.4]}, queued=2),
        ],
        now=2.0,
    )  # fmt: skip
    assert seen is not None
    assert seen.requests == 5
    assert seen.of("llm").served[1].batches == 3
    assert (seen.of("llm").queued, seen.of("llm").running, seen.of("llm").ready) == (3, 1, 2)


def test_a_replica_that_was_silent_goes_on_where_it_was() -> None:
    watch = Watch()
    watch.observe([ingress("i#1", 100.0, 10), replica("llm#1", {"1": [50, 10.0]})], now=0.0)
    watch.observe([ingress("i#1", 102.0, 12)], now=2.0)
    seen = watch.observe([ingress("i#1", 104.0, 14), replica("llm#1", {"1": [51, 10.2]})], now=4.0)
    assert seen is not None
    assert seen.of("llm").served[1].batches == 1
