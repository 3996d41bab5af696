"""Which replica gets a call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.heartbeat import TICK_S
from patchwork_scheduler.router import Router


def router(*names: str) -> Router:
    made = Router()
    made.set_replicas(names, now=0.0)
    return made


def report(to: Router, name: str, backlog_s: float, now: float) -> None:
    to.sent(name, f"{name}@{now}", 0.0, now)
    to.replied(name, f"{name}@{now}", now, backlog_s=backlog_s)


def test_the_replica_with_least_work_is_chosen_not_the_one_with_fewest_calls() -> None:
    to = router("a", "b")
    to.sent("a", "long", 3.0, now=0.0)
    for i in range(5):
        to.sent("b", f"short{i}", 0.1, now=0.0)
    assert to.choose(1.0, now=0.0) == "b"


def test_equal_replicas_take_turns() -> None:
    to = router("a", "b", "c")
    assert {to.choose(1.0, now=0.0) for _ in range(3)} == {"a", "b", "c"}


def test_a_report_replaces_what_was_assumed_and_fades_with_age() -> None:
    to = router("a", "b")
    report(to, "a", backlog_s=5.0, now=0.0)
    report(to, "b", backlog_s=2.0, now=0.0)
    assert to.choose(0.1, now=1.0) == "b"
    report(to, "b", backlog_s=3.0, now=4.0)
    assert to.choose(0.1, now=4.0) == "a"  # of its five seconds of work, told four seconds ago, four are done


def test_a_cached_prompt_draws_a_call_to_its_replica_until_that_is_too_busy() -> None:
    to = router("a", "b")
    saved = {"a": 0.5}
    assert {to.choose(1.0, 0.0, saved_s=saved) for _ in range(4)} == {"a"}
    to.sent("a", "one", 0.6, 0.0)
    assert to.choose(1.0, 0.0, saved_s=saved) == "b"


def test_a_lost_replica_is_left_alone_and_tried_again_later() -> None:
    to = router("a", "b")
    to.sent("a", "x", 1.0, now=0.0)
    to.lost("a", "x", now=0.1)
    assert {to.choose(9.0, now=0.2) for _ in range(4)} == {"b"}
    to.sent("b", "y", 9.0, now=1.2)
    assert to.choose(1.0, now=1.2) == "a"
    assert to.choose(1.0, now=0.2, exclude={"b"}) == "a"  # the last that is left is better than none
    assert to.choose(1.0, now=0.2, exclude={"a", "b"}) is None


def test_a_silent_replica_is_avoided_within_a_second() -> None:
    to = router("a", "b")
    to.sent("a", "hangs", 0.2, now=0.0)
    to.sent("b", "long", 5.0, now=0.0)
    assert to.choose(0.2, now=0.3) == "a"
    assert to.choose(0.2, now=0.8) == "b"


def test_an_answer_longer_than_predicted_is_no_silence_until_it_takes_twice_as_long() -> None:
    to = router("a", "b")
    to.sent("a", "long", 0.1, now=0.0, alone_s=2.0)
    to.sent("b", "others", 1.0, now=0.0, alone_s=9.0)
    assert to.choose(0.1, now=3.9) == "a"
    assert to.choose(0.1, now=4.3) == "b"


def test_a_replica_that_answers_others_or_in_pieces_is_not_silent() -> None:
    to = router("a", "b")
    to.sent("a", "long", 0.2, now=0.0)
    to.sent("b", "others", 1.0, now=0.0, alone_s=9.0)
    assert to.choose(0.1, now=2.0) == "b"
    to.heard("a", now=2.0)
    assert to.choose(0.1, now=2.4) == "a"
    assert to.choose(0.1, now=2.6) == "b"
    to.sent("a", "short", 0.1, now=2.6)
    to.replied("a", "short", now=2.7, backlog_s=0.0)
    assert to.choose(0.1, now=2.8) == "a"


def test_a_slow_replica_gets_less() -> None:
    to = router("a", "b")
    for i in range(40):
        to.sent("a", f"c{i}", 1.0, float(i))
        to.replied("a", f"c{i}", i + 0.5, backlog_s=0.0, ratio=3.0)
    assert {to.choose(1.0, now=50.0) for _ in range(4)} == {"b"}


def test_what_is_known_of_a_replica_survives_scaling() -> None:
    to = router("a", "b")
    report(to, "a", 5.0, 0.0)
    to.set_replicas(["a", "c"], 0.0)
    assert to.choose(1.0, 0.0) == "c"
    to.replied("b", "gone", 1.0, backlog_s=1.0)  # a late reply of one that was taken away


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.booleans()), max_size=60))
def test_no_work_is_counted_for_ever(events: list[tuple[int, float, bool]]) -> None:
    to = router("a", "b", "c", "d")
    sent = []
    for i, (which, seconds, fails) in enumerate(events):
        name = "abcd"[which]
        to.sent(name, str(i), seconds, now=float(i))
        sent.append((name, str(i), fails))
        to.check_invariants()
    for name, call_id, fails in sent:
        if fails:
            to.lost(name, call_id, 100.0)
        else:
            to.replied(name, call_id, 100.0, backlog_s=None)
        to.check_invariants()
    assert [to.predicted_s(name, 1.0, 1000.0) for name in "abcd"] == [1.0] * 4


def watch(to: Router, until: float, since: float, answering: set[str] = frozenset()) -> float:  # type: ignore[assignment]
    """Ticks until ``until``; those who answer give a good pulse at once. Returns the time of the last tick."""
    now = since
    while (now := now + TICK_S) <= until:
        for name in to.tick(now)[0]:
            if name in answering:
                to.pulsed(name, now, well=True, backlog_s=0.0, slowness=1.0)
    return now


def test_a_hung_replica_is_avoided_within_a_second_however_long_its_calls_are() -> None:
    to = router("a", "b")
    to.sent("a", "hangs", 0.0, now=0.0, alone_s=30.0)
    to.sent("b", "works", 5.0, now=0.0, alone_s=30.0)
    assert to.choose(1.0, now=0.0) == "a"
    now = watch(to, 1.0, since=0.0, answering={"b"})
    assert to.choose(1.0, now) == "b"


def test_a_long_answer_is_no_reason_to_doubt_a_replica_that_gives_its_pulse() -> None:
    to = router("a", "b")
    to.sent("a", "long", 0.1, now=0.0, alone_s=0.1)
    to.sent("b", "others", 1.0, now=0.0, alone_s=0.1)
    now = watch(to, 20.0, since=0.0, answering={"a", "b"})
    assert to.choose(0.1, now) == "a"


def test_a_replica_whose_engine_stands_still_says_so_itself() -> None:
    to = router("a", "b")
    to.sent("a", "stuck", 0.1, now=0.0, alone_s=9.0)
    to.sent("b", "others", 1.0, now=0.0, alone_s=9.0)
    to.tick(0.1)
    to.pulsed("a", 0.15, well=False, backlog_s=0.0, slowness=1.0)
    assert to.choose(0.1, now=0.2) == "b"


def test_a_hung_replica_that_goes_on_is_believed_after_three_good_answers() -> None:
    to = router("a", "b")
    to.sent("a", "hangs", 0.0, now=0.0, alone_s=9.0)
    to.sent("b", "works", 5.0, now=0.0, alone_s=9.0)
    now = watch(to, 5.0, since=0.0, answering={"b"})
    to.pulsed("a", now, well=True, backlog_s=0.0, slowness=1.0)  # the question that was open all the time
    assert to.choose(1.0, now) == "b"
    now = watch(to, now + 1.0, since=now, answering={"a", "b"})
    assert to.choose(1.0, now) == "a"


def test_a_replica_that_says_it_is_slow_gets_less_and_is_tried_again_later() -> None:
    to = router("a", "b")
    to.pulsed("a", 0.0, well=True, backlog_s=1.0, slowness=10.0)
    to.pulsed("b", 0.0, well=True, backlog_s=5.0, slowness=1.0)
    assert to.choose(1.0, now=0.1) == "b"
    assert to.choose(1.0, now=11.0) in {"a", "b"}
    to.pulsed("b", 11.0, well=True, backlog_s=1.0, slowness=1.0)
    assert to.choose(1.0, now=11.1) == "a"


def test_nobody_is_asked_where_there_is_no_choice_or_nothing_is_owed() -> None:
    alone = router("a")
    alone.sent("a", "x", 1.0, now=0.0)
    assert alone.tick(5.0) == ([], False)
    idle = router("a", "b")
    assert idle.tick(5.0) == ([], False)


def test_what_the_watcher_itself_slept_is_no_silence() -> None:
    to = router("a", "b")
    to.sent("a", "x", 0.0, now=0.0, alone_s=9.0)
    to.sent("b", "y", 1.0, now=0.0, alone_s=9.0)
    assert to.tick(0.1)[0] == ["a", "b"]
    to.tick(9.0)  # its event loop was busy: the answers may have been there all the time
    assert to.choose(0.1, now=9.0) == "a"
