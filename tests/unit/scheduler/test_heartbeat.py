"""Whether a replica lives, and whether its engine keeps its pace."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.heartbeat import ANSWER_WITHIN_S, ASK_AFTER_S, PROOFS_AT_MOST, TICK_S, Heart
from patchwork_scheduler.pace import Pace


def listen(delays: list[float], seconds: float) -> list[tuple[float, bool]]:
    """A replica that owes something all the time and answers the n-th question after ``delays[n]`` (the last one repeats): what the
    heart made of it at each tick."""
    heart, seen, due, asked = Heart(), [], None, 0
    for n in range(1, round(seconds / TICK_S)):
        now = n * TICK_S
        if due is not None and due <= now:
            heart.answered(due, well=True)
            due = None
        if heart.tick(now, owes=True):
            due = now + delays[min(asked, len(delays) - 1)]
            asked += 1
        seen.append((now, heart.suspect))
    return seen


@given(st.lists(st.floats(0.0, ANSWER_WITHIN_S - TICK_S), min_size=1))
def test_who_answers_soon_is_never_suspect(delays: list[float]) -> None:
    assert not any(suspect for _, suspect in listen(delays, 20.0))


@given(st.lists(st.floats(0.0, 0.3), max_size=20))
def test_who_falls_silent_is_suspect_within_a_second(delays: list[float]) -> None:
    seen = listen([*delays, 1e9], 30.0)
    # questions follow one another after the pause and the answer; a tick is late by up to its own length, each time
    last_word = sum(max(ASK_AFTER_S, delay) + 2 * TICK_S + delay for delay in delays)
    assert all(suspect for now, suspect in seen if now > last_word + 1.0)


@given(st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.6, 0.8, 1.5]), min_size=1))
def test_it_does_not_flap(delays: list[float]) -> None:
    states = [suspect for _, suspect in listen(delays, 120.0)]
    turns = sum(before != after for before, after in itertools.pairwise(states))
    # each relapse doubles the proofs, up to the most; those take their time
    doublings = PROOFS_AT_MOST.bit_length()
    assert turns <= 2 * (doublings + 120.0 / (PROOFS_AT_MOST * ASK_AFTER_S)), states


@given(st.floats(0.0, 100.0))
def test_who_recovers_is_cleared(hangs: float) -> None:
    assert not listen([hangs, 0.01], hangs + 15.0)[-1][1]


def test_a_reply_is_a_sign_of_life_that_spares_a_question() -> None:
    heart = Heart()
    assert heart.tick(0.1, owes=True)
    heart.answered(0.1, well=True)
    for n in range(2, 100):
        heart.heard()
        assert not heart.tick(n * TICK_S, owes=True)


def test_a_question_that_another_replica_answered_stays_open() -> None:
    heart = Heart()
    for n in range(1, 10):
        if heart.tick(n * TICK_S, owes=True):
            heart.unanswered()
    assert heart.suspect


def test_an_engine_that_stands_still_is_told_from_one_whose_calls_differ() -> None:
    steady, varied = Pace(), Pace()
    for n in range(20):
        steady.worked(1.0, 1.0, n)
        varied.worked(1.0, 8.0 if n == 10 else 1.0, n)
    assert not steady.is_stalled(1.0, 1.9)
    assert steady.is_stalled(1.0, 2.1)
    assert not varied.is_stalled(1.0, 15.0)
    assert varied.is_stalled(1.0, 17.0)
    assert not Pace().is_stalled(0.0, 1e9)  # nothing is predicted yet


def test_an_engine_that_is_slow_of_late_says_so_and_is_forgiven_when_nothing_runs() -> None:
    pace = Pace()
    for n in range(20):
        pace.worked(0.1, 0.12, n)
    assert pace.slowness(20.0) == 1.0
    for n in range(4):
        pace.worked(0.1, 1.0, 20.0 + n)
    assert pace.slowness(24.0) > 5.0
    assert pace.slowness(60.0) == 1.0
