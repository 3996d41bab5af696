"""Remaining work learnt from requests that ended."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.errors import InvalidSloClass, UnknownSloClass
from patchwork_scheduler.estimate import GROUP, NOTHING, WINDOW, Estimates, Recent, Visit
from patchwork_scheduler.model import SloClass, State, slo_class

GRADE, ANSWER = State("grade"), State("answer")


def visits(grade_s: float = 0.1, answer_s: float = 1.0) -> list[Visit]:
    return [
        Visit(GRADE, "llm", started=0.0, work_s=grade_s, occupied_s=4 * grade_s),
        Visit(ANSWER, "llm", started=0.5, work_s=answer_s, occupied_s=answer_s),
    ]


def test_what_lies_ahead_is_this_call_and_all_that_follow() -> None:
    estimates = Estimates()
    estimates.observe(visits(), finished=3.0)
    assert estimates.ahead(GRADE).work_s == pytest.approx(1.1)
    assert estimates.ahead(GRADE).demand == {"llm": pytest.approx(1.4)}
    assert estimates.ahead(GRADE).time_s == pytest.approx(3.0)  # waiting included
    assert estimates.ahead(ANSWER).work_s == pytest.approx(1.0)


def test_nothing_is_known_before_a_seed_or_a_request() -> None:
    estimates = Estimates()
    assert estimates.ahead(GRADE) is NOTHING
    estimates.seed(GRADE, 0.7, {"llm": 0.3})
    assert estimates.ahead(GRADE).work_s == 0.7


def test_a_seed_is_soon_outweighed_and_no_longest_request() -> None:
    estimates = Estimates()
    estimates.seed(ANSWER, 9.0, {"llm": 9.0})
    assert estimates.ahead(ANSWER).samples == 0
    estimates.observe(visits(answer_s=1.0)[1:], finished=1.5)
    ahead = estimates.ahead(ANSWER)
    assert ahead.work_s == pytest.approx((1.0 + 0.2 * 9.0) / 1.2)
    assert ahead.demand["llm"] == pytest.approx(ahead.work_s)
    for _ in range(19):
        estimates.observe(visits(answer_s=1.0)[1:], finished=1.5)
    assert estimates.ahead(ANSWER).work_s == pytest.approx(1.0, rel=0.1)
    assert estimates.ahead(ANSWER).high_work_s < 1.1
    assert estimates.calibration()[ANSWER].count == 20  # the first was predicted too, by the seed


def test_what_the_tenth_request_is_first_to_need_is_a_tenth_of_the_demand() -> None:
    estimates = Estimates()
    for _ in range(9):
        estimates.observe([Visit(GRADE, "llm", 0.0, 1.0, 1.0)], finished=1.0)
    estimates.observe([Visit(GRADE, "llm", 0.0, 1.0, 1.0), Visit(State("web"), "web", 1.0, 5.0, 5.0)], finished=6.0)
    assert estimates.ahead(GRADE).demand == {"llm": pytest.approx(1.0), "web": pytest.approx(0.5)}


def test_a_loop_count_never_seen_is_answered_from_the_nearest_one() -> None:
    estimates = Estimates()
    estimates.seed(State("think", 0), 3.0, {})
    estimates.seed(State("think", 2), 1.0, {})
    assert estimates.ahead(State("think", 9)).work_s == 1.0
    estimates.seed(State("think", 8), 0.5, {})
    assert estimates.ahead(State("think", 9)).work_s == 0.5


def test_estimates_follow_a_change() -> None:
    estimates = Estimates()
    for _ in range(200):
        estimates.observe(visits(answer_s=1.0), finished=2.0)
    for _ in range(200):
        estimates.observe(visits(answer_s=3.0), finished=4.0)
    assert estimates.ahead(ANSWER).work_s == pytest.approx(3.0, rel=0.05)


def test_a_branch_taken_sometimes_counts_by_its_share() -> None:
    estimates = Estimates()
    web = Visit(State("web"), "web", 0.2, 2.0, 2.0)
    rng = random.Random(1)
    for _ in range(2000):
        first, last = visits()
        estimates.observe([first, web, last] if rng.random() < 0.3 else [first, last], finished=4.0)
    assert estimates.ahead(GRADE).demand["web"] == pytest.approx(0.6, rel=0.5)


def test_calibration_sets_prediction_against_what_was() -> None:
    estimates = Estimates()
    for _ in range(50):
        estimates.observe(visits(), finished=2.0)
    calibration = estimates.calibration()[GRADE]
    assert calibration.count == 49  # the first had no prediction
    assert calibration.bias == pytest.approx(1.0)
    assert calibration.mean_error_s == pytest.approx(0.0, abs=1e-9)


def test_the_quantile_is_that_of_the_latest_observations() -> None:
    recent = Recent()
    assert recent.quantile() == 0.0
    for value in [9.0] * 48 + [i / 256 for i in range(256)]:
        recent.observe(value, mean=1.0)
    assert recent.quantile(0.5) == pytest.approx(0.5, abs=0.01)
    assert recent.quantile(1.0) == 255 / 256


def test_a_branch_that_few_requests_take_is_in_what_may_lie_ahead() -> None:
    estimates = Estimates()
    for i in range(100):
        estimates.observe(visits(answer_s=3.0 if i % 20 == 0 else 1.0), finished=4.0)
    ahead = estimates.ahead(GRADE)
    assert ahead.work_s < 1.5
    assert ahead.high_work_s == pytest.approx(3.1)
    assert ahead.samples == 100


def test_the_first_request_found_everything_cold_and_is_not_what_may_lie_ahead() -> None:
    estimates = Estimates()
    for i in range(10):
        estimates.observe(visits(answer_s=1.0 if i else 9.0), finished=4.0)
    ahead = estimates.ahead(GRADE)
    assert ahead.high_work_s < 5.0
    assert ahead.samples == 10  # it was seen, though: fifty requests are enough, the first among them


@pytest.mark.parametrize("cold", [7, 12])  # less and more than half of a group
def test_requests_of_a_cold_start_are_not_for_long_what_may_lie_ahead(cold: int) -> None:
    rng, estimates = random.Random(2), Estimates()
    for i in range(200):
        seconds = rng.uniform(0.7, 1.3)
        estimates.observe(visits(answer_s=3.0 * seconds if i < cold else seconds), finished=4.0)
    assert 1.2 < estimates.ahead(ANSWER).high_work_s < 1.8  # of 200, four are longer than the quantile: all were cold


def test_requests_of_a_bad_hour_that_is_over_are_not_for_long_what_may_lie_ahead() -> None:
    rng, estimates = random.Random(4), Estimates()
    for i in range(320):
        seconds = rng.uniform(0.7, 1.3)
        estimates.observe(visits(answer_s=2.5 * seconds if 90 <= i < 150 else seconds), finished=4.0)
        if i == 149:
            assert estimates.ahead(ANSWER).high_work_s > 3.0
    assert 1.2 < estimates.ahead(ANSWER).high_work_s <= 1.31


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=600))
def test_whatever_is_left_out_the_latest_are_in_and_no_more_than_a_window(values: list[float]) -> None:
    recent = Recent()
    for value in values:
        recent.observe(value, mean=1.0)
    assert min(len(values), GROUP) <= len(recent) <= WINDOW + GROUP
    assert recent.quantile(1.0) >= max(values[-GROUP:])


def test_rare_long_requests_are_in_whatever_groups_are_left_out() -> None:
    """Half of the requests take three times as long, so that groups differ; one in 25 takes ten times."""
    rng, recent, found = random.Random(5), Recent(), []
    for _ in range(4000):
        recent.observe(10.0 if rng.random() < 0.04 else rng.choice([1.0, 3.0]), mean=2.0)
        found.append(recent.quantile(0.98))
    assert found[500:].count(10.0) > 0.7 * len(found[500:])


def test_after_a_change_to_slower_requests_none_stands_out() -> None:
    rng, estimates = random.Random(3), Estimates()
    for i in range(250):
        seconds = rng.uniform(0.7, 1.3)
        estimates.observe(visits(answer_s=seconds if i < 150 else 3.0 * seconds), finished=4.0)
    assert 3.3 < estimates.ahead(ANSWER).high_work_s <= 3.9


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_no_time_is_refused(deadline: float) -> None:
    with pytest.raises(InvalidSloClass, match="deadline_s of SLO class 'fast'"):
        SloClass("fast", deadline)


def test_an_unknown_class_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownSloClass, match="batch, fast"):
        slo_class({"fast": SloClass("fast", 1.0), "batch": SloClass("batch", 60.0)}, "slow")
