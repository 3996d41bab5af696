"""In what order each policy serves; time is plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.model import PATIENCE_S, Call
from patchwork_scheduler.policies import policy_by_name, policy_names
from patchwork_scheduler.queue import CallQueue


def call(name: str, arrived: float = 0.0, deadline: float | None = None, ahead: float = 0.0) -> Call:
    return Call(id=name, arrived=arrived, deadline=deadline, ahead_s=ahead)


def served(policy: str, calls: list[Call], now: float) -> list[str]:
    queue = CallQueue(policy_by_name(policy), max_batch=1)
    for one in calls:
        queue.push(one)
    order = []
    while batch := queue.next_batch(now):
        order.append(batch[0].id)
        queue.check_invariants()
    return order


def test_a_call_that_would_be_late_first_is_served_first() -> None:
    embed, answer = call("embed", deadline=5.0, ahead=0.01), call("answer", deadline=5.5, ahead=1.0)
    assert served("least_slack", [embed, answer], now=0.0) == ["answer", "embed"]
    assert served("edf", [embed, answer], now=0.0) == ["embed", "answer"]


def test_a_call_that_is_lost_gives_way_to_one_that_is_not() -> None:
    lost, fine = call("lost", deadline=5.0, ahead=2.0), call("fine", deadline=9.0, ahead=1.0)
    assert served("least_slack", [lost, fine], now=2.9) == ["lost", "fine"]
    assert served("least_slack", [lost, fine], now=3.1) == ["fine", "lost"]


def test_a_request_at_risk_jumps_the_papers_queue() -> None:
    calls = [call("a", 0.0, 20.0), call("b", 1.0, 21.0), call("c", 2.0, 6.0, ahead=3.0), call("d", 2.5, 6.0, ahead=3.0)]
    assert served("paper", calls, now=2.6) == ["a", "b", "c", "d"]
    assert served("paper", calls, now=3.1) == ["c", "d", "a", "b"]


def test_a_call_without_a_deadline_counts_as_due_when_its_patience_ends() -> None:
    calls = [call("whenever"), call("soon", 1.0, 3.0), call("much later", 1.0, PATIENCE_S + 1.0)]
    assert served("edf", calls, now=2.0) == ["soon", "whenever", "much later"]


@given(
    st.sampled_from(policy_names()),
    st.one_of(st.none(), st.floats(0.0, 5.0)),
    st.floats(0.0, 3.0),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=4),
)
def test_no_call_starves_behind_an_endless_stream(
    policy: str, allowed: float | None, ahead: float, others: list[float]
) -> None:
    """Two new calls, due soon, for each one served: for ever overloaded; the old one still comes to the head."""
    queue = CallQueue(policy_by_name(policy), max_batch=1)
    queue.push(call("old", 0.0, allowed, ahead))
    now, number = 0.0, 0
    while True:
        now += 1.0
        for _ in range(2):
            left = others[number % len(others)]
            queue.push(call(f"n{number}", now, now + left, ahead=left / 2))
            number += 1
        if queue.next_batch(now)[0].id == "old":
            break
        # all that may come before it: what arrived up to its rank, turned once, plus the longest work ahead
        assert number < 4 * (2 * PATIENCE_S + 10)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 20), st.floats(0, 3)), min_size=1, max_size=30),
    st.floats(0, 20),
)
def test_calls_that_can_be_in_time_are_served_in_order_of_slack_before_those_that_cannot(
    specs: list[tuple[float, float, float]], now: float
) -> None:
    calls = {f"c{i}": call(f"c{i}", a, a + d, w) for i, (a, d, w) in enumerate(specs)}
    order = [calls[name] for name in served("least_slack", list(calls.values()), now)]
    can = [c for c in order if c.latest_start >= now]
    assert order[: len(can)] == can
    assert [c.latest_start for c in can] == sorted(c.latest_start for c in can)


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_serves_every_call_once(name: str) -> None:
    calls = [call(f"c{i}", float(i), i + (i * 7 % 5), ahead=i % 3) for i in range(50)]
    assert sorted(served(name, calls, now=30.0)) == sorted(c.id for c in calls)
