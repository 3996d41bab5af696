"""What holds of the queue, the work bound and the simulator whatever comes: hypothesis looks for a story in which it does not."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import Call, SloClass
from patchwork_scheduler.policies import policy_by_name, policy_names
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.simulate import SETUPS, ComponentPlan, simulate
from patchwork_scheduler.workbound import WorkBound
from patchwork_scheduler.workload import Site, Workload

ENGINE = TokenCost(base_s=0.004, prefill_s=1e-5, sequence_s=2e-5)
DEADLINES = st.one_of(st.none(), st.floats(0.0, 8.0))


def batch_seconds(size: float) -> float:
    return 0.4 + 0.05 * size


def queue(policy: str, *, max_batch: int = 4, priced: bool = True) -> CallQueue:
    return CallQueue(policy_by_name(policy), max_batch=max_batch, cost=batch_seconds if priced else None)


@given(
    st.sampled_from(policy_names()),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from("prnne"), DEADLINES, st.integers(1, 6), st.floats(0, 2)), max_size=60),
)
@settings(max_examples=50)
def test_every_call_leaves_the_queue_exactly_once(
    policy: str, priced: bool, events: list[tuple[str, float | None, int, float]]
) -> None:
    waiting, pushed, left = queue(policy, priced=priced), [], []
    for number, (what, deadline, size, ahead) in enumerate(events):
        now = 0.1 * number
        if what == "p":
            pushed.append(f"c{number}")
            waiting.push(Call(f"c{number}", now, deadline, size, ahead_s=ahead, after_s=ahead / 2))
        elif what == "r" and pushed and waiting.remove(pushed[number % len(pushed)]):
            left.append(pushed[number % len(pushed)])
        elif what == "n":
            left += [call.id for call in waiting.next_batch(now)]
        elif what == "e":
            left += [call.id for call in waiting.expire(now)]
        waiting.check_invariants()
    while batch := waiting.next_batch(100.0):
        left += [call.id for call in batch]
    assert sorted(left) == sorted(pushed)


@given(
    st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 3), st.floats(0, 2)), min_size=1, max_size=30), st.floats(0, 4)
)
@settings(max_examples=50)
def test_a_batch_is_the_calls_of_least_slack_in_their_order(specs: list[tuple[float, int, float]], now: float) -> None:
    waiting = queue("least_slack", max_batch=6)
    for i, (deadline, size, ahead) in enumerate(specs):
        waiting.push(Call(f"c{i}", 0.0, deadline, size, ahead_s=ahead, after_s=ahead / 2))
    before: list[float] = []
    while batch := waiting.next_batch(now):
        slack = [call.latest_start for call in batch if call.latest_start >= now]
        assert slack == sorted(slack)
        assert not slack or not before or slack[0] >= before[-1]
        assert not slack or batch[0].latest_start >= now  # what is lost comes after all that is not
        before = slack or before


@given(st.sampled_from(policy_names()), st.lists(DEADLINES, min_size=1, max_size=20), st.floats(0, 10))
@settings(max_examples=30)
def test_an_idle_replica_is_never_kept_waiting(policy: str, deadlines: list[float | None], now: float) -> None:
    waiting = CallQueue(policy_by_name(policy), max_batch=4, max_wait_s=0.5, cost=batch_seconds)
    for i, deadline in enumerate(deadlines):
        waiting.push(Call(f"c{i}", 0.0, deadline))
    while len(waiting):
        assert waiting.ready_at(now, idle=True) == now
        assert waiting.next_batch(now)


@given(st.integers(1, 100_000), DEADLINES, st.floats(0, 10), st.integers(1, 2000))
@settings(max_examples=30)
def test_an_empty_engine_takes_whatever_comes(prompt: int, deadline: float | None, now: float, output: int) -> None:
    call = Call("c", 0.0, deadline, prompt_tokens=prompt, output_tokens=output)
    assert WorkBound(ENGINE, max_prefill_tokens=512).has_room(call, now)


@given(
    st.sampled_from(list(SETUPS)),
    st.integers(1, 3),
    st.lists(st.integers(0, 12), min_size=1, max_size=30),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_replicas_work_while_there_is_work(policy: str, replicas: int, tenths: list[int], continuous: bool) -> None:
    """The work of ``n`` calls that came at ``t`` or later cannot take longer than one replica takes for them one after another."""
    cost = ENGINE if continuous else BatchCost((1, 4), (0.1, 0.2))
    site = Site("work", "machine", prompt_tokens=500, output_tokens=20)
    alone = ENGINE.alone_s(500, 20) if continuous else 0.1
    times = sorted(tenth / 10 for tenth in tenths)
    found = simulate(
        Workload("work", [site]), {"machine": ComponentPlan(replicas, max_batch=4)}, {"machine": cost}, times,
        SloClass("s", 5.0), setup=SETUPS[policy],
    )  # fmt: skip
    held = 0.05 * len(times) if SETUPS[policy].admission == "hold" else 0.0
    ends = -math.inf
    for at in times:
        ends = max(ends, at) + alone
    assert found.end <= ends + held + 1e-6
    assert found.offered == len(times) == found.attained + found.missed + found.refused


def test_one_deadline_is_given_up_where_waiting_behind_it_would_lose_more() -> None:
    def waiting(others_due: float) -> list[str]:
        calls = CallQueue(policy_by_name("least_slack"), max_batch=4, cost=lambda size: 1.0 + 0.1 * size)
        calls.push(Call("tight", 0.0, 1.15, ahead_s=1.1))
        for i in range(3):
            calls.push(Call(f"other{i}", 0.0, others_due, ahead_s=1.1))
        return [call.id for call in calls.next_batch(0.0)]

    assert waiting(others_due=3.0) == ["tight"]
    assert waiting(others_due=2.0) == ["tight", "other0", "other1", "other2"]
