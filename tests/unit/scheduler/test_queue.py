"""Stories of calls and the batches expected; time is plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.errors import UnknownPolicy
from patchwork_scheduler.model import Call
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue


def call(name: str, arrived: float = 0.0, deadline: float | None = None, size: int = 1) -> Call:
    return Call(id=name, arrived=arrived, deadline=deadline, size=size)


def queue(policy: str = "fifo", max_batch: int = 4, max_wait_s: float = 0.0) -> CallQueue:
    return CallQueue(policy_by_name(policy), max_batch=max_batch, max_wait_s=max_wait_s)


def names(batch: tuple[Call, ...]) -> list[str]:
    return [c.id for c in batch]


def test_calls_leave_in_the_order_they_came_and_no_batch_exceeds_its_size() -> None:
    waiting = queue(max_batch=2)
    for i, name in enumerate("abc"):
        waiting.push(call(name, arrived=float(i)))
    assert names(waiting.next_batch(3.0)) == ["a", "b"]
    assert names(waiting.next_batch(3.0)) == ["c"]
    assert waiting.next_batch(3.0) == ()
    waiting.check_invariants()


def test_a_call_larger_than_a_batch_runs_alone() -> None:
    waiting = queue(max_batch=4)
    waiting.push(call("small", arrived=0.0))
    waiting.push(call("huge", arrived=1.0, size=100))
    waiting.push(call("late", arrived=2.0))
    assert [names(waiting.next_batch(3.0)) for _ in range(3)] == [["small"], ["huge"], ["late"]]


def test_a_removed_call_is_not_served() -> None:
    waiting = queue()
    waiting.push(call("a"))
    waiting.push(call("b"))
    assert waiting.remove("a")
    assert not waiting.remove("a")
    waiting.check_invariants()
    assert names(waiting.next_batch(0.0)) == ["b"]


def test_a_batch_is_held_until_full_or_the_oldest_waited_long_enough() -> None:
    waiting = queue(max_batch=2, max_wait_s=0.1)
    assert waiting.ready_at(0.0) is None
    waiting.push(call("a", arrived=1.0))
    assert waiting.ready_at(1.05) == pytest.approx(1.1)
    waiting.push(call("b", arrived=1.06))
    assert waiting.ready_at(1.06) == 1.06


def test_a_tight_deadline_shortens_the_hold() -> None:
    waiting = queue(max_batch=8, max_wait_s=0.1)
    waiting.push(call("a", arrived=1.0, deadline=1.15))
    assert waiting.ready_at(1.0) == pytest.approx(1.05)


def test_calls_past_their_deadline_are_taken_out() -> None:
    waiting = queue()
    waiting.push(call("late", deadline=1.0))
    waiting.push(call("fine", deadline=3.0))
    waiting.push(call("free"))
    assert names(waiting.expire(2.0)) == ["late"]
    assert names(waiting.next_batch(2.0)) == ["fine", "free"]


def test_earliest_deadline_first_serves_what_is_due_first() -> None:
    waiting = queue("edf")
    waiting.push(call("whenever", arrived=0.0))
    waiting.push(call("later", arrived=1.0, deadline=9.0))
    waiting.push(call("soon", arrived=2.0, deadline=3.0))
    assert names(waiting.next_batch(2.0)) == ["soon", "later", "whenever"]


def test_an_unknown_policy_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownPolicy, match="edf, fifo"):
        policy_by_name("lifo")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.one_of(st.none(), st.floats(0, 10))), max_size=30),
    st.sampled_from(["fifo", "edf"]),
    st.integers(1, 5),
    st.sets(st.integers(0, 29)),
)
def test_no_call_is_lost_or_served_twice(
    specs: list[tuple[int, float | None]], policy: str, max_batch: int, removed: set[int]
) -> None:
    waiting = queue(policy, max_batch=max_batch)
    for i, (size, deadline) in enumerate(specs):
        waiting.push(call(str(i), arrived=float(i), deadline=deadline, size=size))
    gone = {str(i) for i in removed if waiting.remove(str(i))}
    served: list[str] = []
    while batch := waiting.next_batch(100.0):
        assert len(batch) == 1 or sum(c.size for c in batch) <= max_batch
        served += names(batch)
        waiting.check_invariants()
    assert sorted(served) == sorted({str(i) for i in range(len(specs))} - gone)
    assert len(waiting) == waiting.size == 0
