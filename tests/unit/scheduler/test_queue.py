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
    with pytest.raises(UnknownPolicy, match="edf, fifo, least_slack, paper"):
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


def costly(max_batch: int = 8, max_wait_s: float = 0.0) -> CallQueue:
    """A batch takes 0.1 s and 0.1 s more for each item."""
    return CallQueue(
        policy_by_name("least_slack"), max_batch=max_batch, max_wait_s=max_wait_s, cost=lambda size: 0.1 + 0.1 * size
    )


def due(name: str, deadline: float, ahead_s: float = 0.2, after_s: float = 0.0) -> Call:
    return Call(id=name, arrived=0.0, deadline=deadline, ahead_s=ahead_s, after_s=after_s)


def test_a_batch_grows_only_as_long_as_its_tightest_deadline_bears() -> None:
    waiting = costly()
    waiting.push(due("tight", 0.45))
    for i in range(4):
        waiting.push(due(f"easy{i}", 5.0))
    assert names(waiting.next_batch(0.0)) == ["tight", "easy0", "easy1"]
    assert names(waiting.next_batch(0.4)) == ["easy2", "easy3"]


def test_a_call_that_is_late_anyway_does_not_make_batches_small() -> None:
    waiting = costly()
    waiting.push(due("late", 0.1))
    for i in range(3):
        waiting.push(due(f"easy{i}", 5.0))
    assert names(waiting.next_batch(0.0)) == ["easy0", "easy1", "easy2", "late"]


def test_work_that_follows_shortens_what_a_batch_may_take() -> None:
    waiting = costly()
    waiting.push(due("first of two", 2.0, ahead_s=1.9, after_s=1.7))
    waiting.push(due("easy", 5.0))
    assert names(waiting.next_batch(0.0)) == ["first of two", "easy"]
    waiting.push(due("first of two", 2.0, ahead_s=1.9, after_s=1.75))
    waiting.push(due("easy", 5.0))
    assert names(waiting.next_batch(0.0)) == ["first of two"]


def test_nothing_is_held_while_the_engine_is_idle() -> None:
    waiting = queue(max_batch=8, max_wait_s=0.1)
    waiting.push(call("a", arrived=1.0))
    assert waiting.ready_at(1.0, idle=True) == 1.0
    assert waiting.ready_at(1.0) == pytest.approx(1.1)


def test_a_batch_is_not_held_when_a_full_one_would_lose_the_tightest() -> None:
    waiting = costly(max_batch=4, max_wait_s=1.0)
    waiting.push(due("a", 2.0, ahead_s=0.2))
    assert waiting.ready_at(0.0) == pytest.approx(2.0 - 0.2 - 1.0)  # the hold is longer than what a full batch adds


def test_removed_calls_leave_no_trace_in_what_is_held() -> None:
    waiting = queue(max_batch=8, max_wait_s=0.1)
    waiting.push(call("old", arrived=0.0, deadline=0.5))
    waiting.push(call("new", arrived=1.0))
    waiting.remove("old")
    assert waiting.ready_at(1.0) == pytest.approx(1.1)


def test_at_most_so_many_calls_are_taken() -> None:
    waiting = queue(max_batch=8)
    for name in "abc":
        waiting.push(call(name))
    assert names(waiting.next_batch(0.0, limit=2)) == ["a", "b"]
    head = waiting.peek(0.0)
    assert head is not None
    assert head.id == "c"


@given(
    st.lists(st.tuples(st.floats(0.05, 3), st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=30),
    st.floats(0, 2),
)
def test_what_joins_a_batch_never_loses_the_deadline_of_one_that_is_in_it(
    specs: list[tuple[float, int, float]], now: float
) -> None:
    waiting = costly(max_batch=6)
    for i, (deadline, size, after) in enumerate(specs):
        alone = 0.1 + 0.1 * size
        waiting.push(Call(id=str(i), arrived=0.0, deadline=deadline, size=size, ahead_s=alone + after, after_s=after))
    while batch := waiting.next_batch(now):
        ends = [now + 0.1 + 0.1 * sum(c.size for c in batch[: i + 1]) for i in range(len(batch))]
        for one, joined in zip(batch, ends, strict=True):
            assert one.deadline is not None
            finish = one.deadline - one.after_s
            assert joined > finish or ends[-1] <= finish
        waiting.check_invariants()
