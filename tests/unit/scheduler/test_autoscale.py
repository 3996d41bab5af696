"""The autoscaler: stories with plain numbers, and properties over traces."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.planning import component, profile
from kit.scaling import World, turns
from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Bounds, Change, Observation, Scaling, Seen, Served
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.resources import Resources

SLOW = component("llm", cpu={1: 0.1})  # 10 calls/s per replica and core
FAST = component("search", cpu={1: 0.01})


def cold(chain: Profile, seconds: float) -> Profile:
    """Every component takes so long to start."""
    return replace(
        chain,
        components=tuple(
            replace(c, measured=tuple(replace(m, cold_start_s=seconds) for m in c.measured)) for c in chain.components
        ),
    )


CHAIN = cold(profile(FAST, SLOW), 10.0)
CORES = Resources.machine(cpus=16)


def seen(requests: int, *, late: int = 0, **components: Seen) -> Observation:
    """Two seconds."""
    return Observation(2.0, requests, late, components)


def steady(autoscaler: Autoscaler, targets: dict[str, int], rate: float, seconds: float, start: float = 0.0) -> float:
    """Exactly ``rate``, without noise; the time after it."""
    for step in range(int(seconds / 2)):
        calls = Seen(int(rate * 2), ready=1)
        decision = autoscaler.step(seen(int(rate * 2), search=calls, llm=calls), targets, start + 2 * (step + 1))
        assert not decision.changes, decision.changes
    return start + seconds


def test_a_load_that_two_replicas_do_not_carry_gets_three_and_the_reason_has_the_numbers() -> None:
    autoscaler = Autoscaler(CHAIN, CORES)
    calls = Seen(44, ready=2)
    decision = autoscaler.step(seen(44, search=calls, llm=calls), {"search": 1, "llm": 2}, 2.0)
    assert decision.targets == {"search": 1, "llm": 3}  # 22/s at 75 %: 2.93
    assert decision.changes[0].what == "llm: 2 to 3 replicas"
    assert decision.changes[0].why == "22 requests/s; that is 22 calls/s, 110% of what 2 replicas carry"


def test_what_grows_is_provisioned_for_the_time_when_a_new_replica_serves() -> None:
    autoscaler, targets, grown_at = Autoscaler(CHAIN, CORES), {"search": 1, "llm": 2}, 0.0
    for step in range(1, 60):
        rate = 8 + 0.2 * 2 * step  # 0.2 requests/s more each second
        calls = Seen(int(rate * 2), ready=2)
        decision = autoscaler.step(seen(int(rate * 2), search=calls, llm=calls), targets, 2.0 * step)
        if decision.changes:
            grown_at = rate
            break
    # 17/s is 85 % of two replicas; growing by 2.4 in the 12 s that a replica takes, they are asked for before
    assert 13.5 <= grown_at <= 16.0, grown_at
    assert "expected when a new replica serves in 10 s" in decision.changes[0].why


def test_noise_between_the_bounds_changes_nothing() -> None:
    world = World(CHAIN, {"search": 1, "llm": 3}, seed=4)
    assert world.run(Autoscaler(CHAIN, CORES), lambda _: 20.0, 900.0) == []


def test_a_branch_that_one_request_in_ten_takes_gets_a_tenth() -> None:
    chain = profile(SLOW, component("web", cpu={1: 0.5}, visits=0.1))
    autoscaler = Autoscaler(chain, CORES)
    decision = autoscaler.step(seen(40, llm=Seen(40, ready=1), web=Seen(4, ready=1)), {"llm": 1, "web": 1}, 2.0)
    assert decision.targets == {"llm": 3, "web": 2}  # 20 calls/s at 10/s, 2 calls/s at 2/s


def test_visits_that_change_move_the_replicas() -> None:
    """A loop that ran once now runs three times; the requests are as many as before."""
    autoscaler, targets = Autoscaler(CHAIN, CORES), {"search": 1, "llm": 2}
    now = steady(autoscaler, targets, 10.0, 60.0)
    for step in range(1, 31):
        decision = autoscaler.step(seen(20, search=Seen(20, ready=1), llm=Seen(60, ready=2)), targets, now + 2 * step)
        targets = dict(decision.targets)
    assert targets == {"search": 1, "llm": 4}  # 30 calls/s at 75 %


def test_calls_that_wait_ask_for_replicas_even_when_the_rate_alone_would_not() -> None:
    autoscaler = Autoscaler(CHAIN, CORES)
    waiting = Seen(20, queued=101, ready=1)
    decision = autoscaler.step(seen(20, search=Seen(20, ready=1), llm=waiting), {"search": 1, "llm": 2}, 2.0)
    assert decision.targets["llm"] == 3  # 10/s, and 100 calls to be gone in 10 s
    assert "with 100 calls that wait" in decision.changes[0].why


def test_late_requests_ask_for_more_room() -> None:
    relaxed, pressed = Autoscaler(CHAIN, CORES), Autoscaler(CHAIN, CORES)
    calls = {"search": Seen(32, ready=1), "llm": Seen(32, ready=2)}
    assert not relaxed.step(Observation(2.0, 32, 0, calls), {"search": 1, "llm": 2}, 2.0).changes
    decision = pressed.step(Observation(2.0, 32, 4, calls), {"search": 1, "llm": 2}, 2.0)
    assert decision.targets["llm"] == 3
    assert "12% of requests were late" in decision.changes[0].why


def test_what_was_added_has_time_to_work_before_requests_that_are_still_late_ask_for_more_room() -> None:
    autoscaler = Autoscaler(CHAIN, CORES)
    calls = {"search": Seen(44, ready=1), "llm": Seen(44, ready=2)}
    targets = dict(autoscaler.step(seen(44, **calls), {"search": 1, "llm": 2}, 2.0).targets)
    assert targets["llm"] == 3  # 22/s, 73 % of it: more than 80 % of 85 %
    grown_at = 0.0
    for step in range(2, 30):
        decision = autoscaler.step(Observation(2.0, 44, 10, calls), targets, 2.0 * step)
        if decision.changes:
            grown_at = decision.at
            break
    assert grown_at == 22.0  # ten seconds to start, ten to work off what waited
    assert decision.targets["llm"] == 4


def test_waiting_that_eats_the_slack_asks_for_more_room_before_anything_is_late() -> None:
    calls = {"search": Seen(30, ready=1), "llm": Seen(30, queued=14, ready=2)}
    loose, tight = Autoscaler(CHAIN, CORES, slo_s=5.0), Autoscaler(CHAIN, CORES, slo_s=1.0)
    assert not loose.step(Observation(2.0, 30, 0, calls), {"search": 1, "llm": 2}, 2.0).changes
    decision = tight.step(Observation(2.0, 30, 0, calls), {"search": 1, "llm": 2}, 2.0)
    assert "waiting takes half of the time that requests have to spare" in decision.changes[0].why


def test_one_busy_interval_is_believed_while_calls_wait_and_not_otherwise() -> None:
    after = {}
    for waiting in (0, 14):
        autoscaler, targets = Autoscaler(CHAIN, CORES, slo_s=1.0), {"search": 1, "llm": 2}
        now = steady(autoscaler, targets, 10.0, 40.0)
        calls = Seen(44, queued=waiting, ready=2)  # 22/s: 3.6 standard errors of two seconds
        decision = autoscaler.step(
            Observation(2.0, 44, 0, {"search": Seen(44, ready=1), "llm": calls}), targets, now + 2
        )
        after[waiting] = decision.targets["llm"]
    assert after == {0: 2, 14: 4}  # 22/s at 75 % of 80 %, because requests are pressed


def test_replicas_go_only_when_the_rest_would_have_carried_the_recent_peak() -> None:
    autoscaler, targets = Autoscaler(CHAIN, CORES), {"search": 1, "llm": 4}
    peak = Seen(60, ready=4)
    for step in range(1, 4):  # 6 s of 30/s
        assert not autoscaler.step(seen(60, search=peak, llm=peak), targets, 2.0 * step).changes
    low = Seen(10, ready=4)
    made: list[tuple[float, Change]] = []
    for step in range(4, 60):
        decision = autoscaler.step(seen(10, search=low, llm=low), targets, 2.0 * step)
        made += [(decision.at, change) for change in decision.changes]
        targets = dict(decision.targets)
    assert targets == {"search": 1, "llm": 1}
    assert 20.0 <= made[0][0] <= 24.0  # not before the peak is two cold starts old
    assert made[-1][0] <= 36.0
    assert made[-1][1].why == "at most 5 calls/s in the last 20 s, of which 1 replica would be used at 50%"


def test_a_replica_goes_when_the_rest_bears_what_would_not_have_added_one() -> None:
    left = {}
    for rate in (
        7.5,
        8.0,
    ):  # of one replica, 75 and 80 %; 75 % is what a plan would give it, at 85 % it would get another
        autoscaler, targets = Autoscaler(CHAIN, CORES), {"search": 1, "llm": 2}
        for step in range(1, 60):
            calls = Seen(int(2 * rate), ready=2)
            targets = dict(autoscaler.step(seen(int(2 * rate), search=calls, llm=calls), targets, 2.0 * step).targets)
        left[rate] = targets["llm"]
    assert left == {7.5: 1, 8.0: 2}


def test_a_component_that_starts_slowly_is_kept_longer() -> None:
    slow = cold(CHAIN, 60.0)
    autoscaler, targets, gone = Autoscaler(slow, CORES), {"search": 1, "llm": 4}, 0.0
    for step in range(1, 200):
        calls = Seen(10, ready=4)
        decision = autoscaler.step(seen(10, search=calls, llm=calls), targets, 2.0 * step)
        if decision.changes:
            gone = 2.0 * step
            break
    assert 105.0 <= gone <= 125.0  # two cold starts


def test_a_load_that_comes_back_is_waited_for_longer_each_time_and_another_is_not() -> None:
    """Bursts of ten seconds; how long the second replica is kept after each."""
    kept: dict[float, list[float]] = {}
    for every_s in (40.0, 200.0):
        autoscaler, targets, gone = Autoscaler(CHAIN, CORES), {"search": 1, "llm": 1}, []
        for step in range(1, 400):
            now, busy = 2.0 * step, (2.0 * step) % every_s < 10
            calls = Seen(40 if busy else 4, ready=targets["llm"])
            decision = autoscaler.step(seen(calls.calls, search=calls, llm=calls), targets, now)
            gone += [now % every_s for change in decision.changes if change.after == 1]
            targets = dict(decision.targets)
        kept[every_s] = gone
    assert len(kept[40.0]) <= 3  # then it stays
    assert len(kept[200.0]) == 4
    assert max(kept[200.0]) - min(kept[200.0]) <= 2.0


def test_the_start_of_a_replica_is_learnt_from_how_long_it_took() -> None:
    autoscaler, targets = Autoscaler(cold(CHAIN, 2.0), CORES), {"search": 1, "llm": 2}
    calls = Seen(44, ready=2)
    targets = dict(autoscaler.step(seen(44, search=calls, llm=calls), targets, 2.0).targets)
    for step in range(2, 22):
        slow = Seen(44, ready=3 if step == 21 else 2)
        decision = autoscaler.step(seen(44, search=calls, llm=slow), targets, 2.0 * step)
        targets = dict(decision.targets)
    assert autoscaler._kept["llm"].cold_start_s == pytest.approx(21.0)  # halfway from 2 to the 40 s it took


def test_a_start_that_turned_out_longer_than_is_remembered_of_the_load_keeps_no_replica_for_good() -> None:
    autoscaler, targets = Autoscaler(cold(CHAIN, 2.0), CORES), {"search": 1, "llm": 2}
    for step in range(1, 500):
        busy = step < 110  # the third replica takes 200 s to start
        calls = Seen(44 if busy else 4, ready=3 if step > 100 else 2)
        targets = dict(autoscaler.step(seen(calls.calls, search=calls, llm=calls), targets, 2.0 * step).targets)
        assert not busy or targets["llm"] == 3
    assert targets["llm"] == 1


def test_an_idle_component_sleeps_where_that_is_allowed_and_wakes_when_it_is_called() -> None:
    autoscaler = Autoscaler(CHAIN, CORES, bounds={"llm": Bounds(0, None)})
    targets, now, slept = {"search": 1, "llm": 1}, 0.0, 0.0
    while now < 300.0:
        now += 2.0
        decision = autoscaler.step(seen(2, search=Seen(2, ready=1), llm=Seen(0, ready=targets["llm"])), targets, now)
        if decision.changes:
            slept = now
            assert decision.changes[0].what == "llm: 1 to 0 replicas"
            assert decision.changes[0].why == "no call in the last 120 s"
        targets = dict(decision.targets)
    assert targets == {"search": 1, "llm": 0}
    assert slept <= 130.0
    decision = autoscaler.step(seen(2, search=Seen(2, ready=1), llm=Seen(1)), targets, now + 2.0)
    assert decision.changes[0].why == "called while it had no replica"
    assert decision.targets == {"search": 1, "llm": 1}


def test_the_resources_end_where_they_end_and_the_limit_is_told_once() -> None:
    autoscaler, targets = Autoscaler(CHAIN, Resources.machine(cpus=4)), {"search": 1, "llm": 1}
    warnings: list[str] = []
    for step in range(1, 20):
        calls = Seen(200, ready=targets["llm"])
        decision = autoscaler.step(seen(200, search=calls, llm=calls), targets, 2.0 * step)
        warnings += decision.warnings
        targets = dict(decision.targets)
    assert targets == {"search": 1, "llm": 3}
    assert len(warnings) == 1
    assert "limited by llm" in warnings[0]


def test_replicas_move_to_where_the_bottleneck_is() -> None:
    """Eight cores are taken; the load has moved from one branch to the other."""
    chain = cold(profile(component("a", cpu={1: 0.1}), component("b", cpu={1: 0.1})), 2.0)
    autoscaler, targets = Autoscaler(chain, Resources.machine(cpus=8)), {"a": 6, "b": 2}
    changes: list[Change] = []
    for step in range(1, 60):
        decision = autoscaler.step(seen(40, a=Seen(8, ready=6), b=Seen(80, ready=2)), targets, 2.0 * step)
        changes += decision.changes
        targets = dict(decision.targets)
        assert sum(targets.values()) <= 8
    assert targets["b"] >= 5
    assert any(change.why == "its place is needed for b" for change in changes)


def test_drift_is_told_once_by_name_and_planned_for() -> None:
    world = World(CHAIN, {"search": 1, "llm": 3}, slower={"llm": 2.0})
    autoscaler = Autoscaler(CHAIN, CORES)
    world.run(autoscaler, lambda _: 20.0, 300.0)
    warnings = [w for d in world.decisions for w in d.warnings]
    assert warnings == [
        "llm takes 2 times as long as profiled: planned with what is observed; profile it again where it runs"
    ]
    assert world.targets["llm"] >= 5  # 20 calls/s at 5/s each
    assert world.decisions[-1].drift["llm"] == pytest.approx(2.0)


def test_a_profile_that_is_true_again_is_believed_again() -> None:
    world = World(CHAIN, {"search": 1, "llm": 6}, slower={"llm": 2.0})
    autoscaler = Autoscaler(CHAIN, CORES)
    world.run(autoscaler, lambda _: 20.0, 120.0)
    world.slower = {}
    world.run(autoscaler, lambda _: 20.0, 600.0)
    assert world.decisions[-1].drift["llm"] == pytest.approx(1.0, abs=0.1)
    assert [w for d in world.decisions for w in d.warnings][-1] == "llm takes as long as profiled again"


def test_a_component_that_nobody_measured_is_left_alone_until_its_calls_are_known() -> None:
    chain = profile(component("own", cpu={1: 1.0}))  # one second is an assumption: it takes 0.1
    autoscaler = Autoscaler(chain, CORES, assumed={"own"})
    early = autoscaler.step(seen(30, own=Seen(30, {1: Served(10, 1.0)}, ready=1)), {"own": 1}, 2.0)
    assert not early.changes
    decision = autoscaler.step(seen(30, own=Seen(30, {1: Served(20, 2.0)}, ready=1)), {"own": 1}, 4.0)
    assert decision.targets == {"own": 2}  # 15/s at 10/s and 75 %
    assert decision.warnings == ()


def test_bounds_hold_in_both_directions() -> None:
    autoscaler = Autoscaler(CHAIN, CORES, bounds={"llm": Bounds(2, 3), "search": Bounds(1, 2)})
    calls = Seen(200, ready=2)
    decision = autoscaler.step(seen(200, search=calls, llm=calls), {"search": 4, "llm": 1}, 2.0)
    assert decision.targets == {"search": 2, "llm": 3}


# -- properties over traces -----------------------------------------------------------------------------------------


def constant(rate: float, now: float) -> float:
    return rate


def diurnal(rate: float, now: float) -> float:
    return rate * (0.55 + 0.45 * math.sin(2 * math.pi * now / 1200))


def steps(rate: float, now: float) -> float:
    return rate if (now // 300) % 2 else rate / 3


def bursts(rate: float, now: float) -> float:
    """Like the coding trace of a public LLM service: silence, and now and then thirteen times the mean."""
    return 5 * rate * (random.Random(now // 20).random() < 0.15)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.sampled_from([constant, diurnal, steps, bursts]),
    rate=st.floats(0.5, 200.0),
    cores=st.integers(3, 24),
    cold_start_s=st.floats(0.0, 40.0),
    least=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_over_any_trace_nothing_flaps_overruns_the_resources_or_falls_below_its_least(
    shape: object, rate: float, cores: int, cold_start_s: float, least: int, seed: int
) -> None:
    assert callable(shape)
    chain = cold(CHAIN, cold_start_s)
    scaling = Scaling(settle_s=30.0, idle_s=60.0)
    autoscaler = Autoscaler(
        chain, Resources.machine(cpus=cores), scaling, bounds={"llm": Bounds(least, None)}, slo_s=2.0
    )
    world = World(chain, {"search": 1, "llm": max(1, least)}, seed=seed)
    world.run(autoscaler, lambda now: shape(rate, now), 600.0)
    for decision in world.decisions:
        assert decision.targets["search"] + decision.targets["llm"] <= cores
        assert decision.targets["llm"] >= least
        assert decision.targets["search"] >= 1
        assert all(change.why for change in decision.changes)
    for name in world.targets:
        # every turn downwards comes settle_s after the change before it
        assert turns(world.changes(name)) <= 2 * 600 / max(30.0, 3 * cold_start_s) + 1


@pytest.mark.parametrize("seed", range(3))
def test_poisson_noise_around_a_constant_rate_settles(seed: int) -> None:
    world = World(CHAIN, {"search": 1, "llm": 1}, seed=seed)
    autoscaler = Autoscaler(CHAIN, CORES, slo_s=2.0)
    world.run(autoscaler, lambda _: 23.0, 300.0)
    later = world.run(autoscaler, lambda _: 23.0, 1200.0)
    assert len(later) <= 4, [change.what for change in later]
