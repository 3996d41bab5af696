"""What may go into a continuous engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.model import Call
from patchwork_scheduler.workbound import WorkBound

ENGINE = TokenCost(base_s=0.004, prefill_s=1e-5, sequence_s=2e-5)


def call(name: str, deadline: float | None = None, prompt: int = 600, output: int = 100) -> Call:
    return Call(id=name, arrived=0.0, deadline=deadline, prompt_tokens=prompt, output_tokens=output)


def bound(**options: int) -> WorkBound:
    return WorkBound(ENGINE, **options)


def test_an_idle_engine_takes_anything() -> None:
    assert bound().has_room(call("huge", prompt=100_000), now=0.0)


def test_a_tight_call_that_runs_keeps_prefills_out_until_it_is_done() -> None:
    engine = bound()
    engine.started(call("tight", deadline=0.42, output=100), now=0.0)  # bears 4.2 ms a step, a decode step takes 4
    engine.first_token("tight")
    assert not engine.has_room(call("next"), now=0.0)
    engine.finished("tight")
    assert engine.has_room(call("next"), now=0.4)
    engine.check_invariants()


def test_a_call_with_time_to_spare_bears_prefills_up_to_the_step_it_needs() -> None:
    engine = bound()
    engine.started(call("easy", deadline=2.0, output=100), now=0.0)  # bears 20 ms a step
    engine.first_token("easy")
    assert 1_600 < engine.allowance(0.0) < 1_900
    engine.started(call("a", deadline=9.0), now=0.0)
    assert engine.has_room(call("b"), now=0.0)
    engine.started(call("b", deadline=9.0), now=0.0)
    assert not engine.has_room(call("c"), now=0.0)
    engine.first_token("a")
    assert engine.has_room(call("c"), now=0.0)


def test_each_engine_inside_has_a_prompt_of_its_own_where_any_may_prefill() -> None:
    def after_one_prompt(shards: int, deadline: float) -> tuple[bool, bool]:
        """Whether a second prompt has room, and a third beside it."""
        engine = bound(shards=shards)
        engine.started(call("running", deadline=deadline, output=100), now=0.0)
        engine.first_token("running")
        engine.started(call("a"), now=0.0)
        second = engine.has_room(call("b"), now=0.0)
        engine.started(call("b"), now=0.0)
        return second, engine.has_room(call("c"), now=0.0)

    assert after_one_prompt(1, deadline=1.1) == (False, False)  # 11 ms a step: 986 tokens, and a prompt has 600
    assert after_one_prompt(2, deadline=1.1) == (True, False)
    assert after_one_prompt(2, deadline=0.42) == (False, False)  # it bears none


def test_near_its_end_a_call_bears_more_again() -> None:
    engine = bound()
    engine.started(call("one", deadline=1.0, output=100), now=0.0)
    before = engine.allowance(0.0)
    engine.generated("one", 95)
    assert engine.allowance(0.5) > before


def test_a_call_that_is_lost_anyway_holds_nobody_up() -> None:
    engine = bound()
    engine.started(call("lost", deadline=0.1, output=100), now=0.0)
    engine.first_token("lost")
    assert engine.has_room(call("next"), now=0.0)


def test_a_slower_engine_than_profiled_is_given_less() -> None:
    engine = bound()
    engine.started(call("easy", deadline=2.0, output=100), now=0.0)
    engine.first_token("easy")
    before = engine.allowance(0.0)
    for _ in range(100):
        engine.stepped(0.010, 0.020)
    assert engine.allowance(1e-3) < before


def test_sequences_are_bounded_too() -> None:
    engine = bound(max_sequences=2)
    engine.started(call("a"), 0.0)
    engine.started(call("b"), 0.0)
    assert not engine.has_room(call("c"), 0.0)


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 5000), st.integers(1, 300)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_whatever_waits_gets_in_once_those_inside_are_done(specs: list[tuple[float, int, int]], rng: object) -> None:
    """Work conservation: an engine is never empty while a call waits, and so everything is served."""
    engine = bound(max_sequences=8)
    waiting = [call(f"c{i}", d, p, o) for i, (d, p, o) in enumerate(specs)]
    inside: list[str] = []
    done = 0
    now = 0.0
    while waiting or inside:
        while waiting and engine.has_room(waiting[0], now):
            one = waiting.pop(0)
            engine.started(one, now)
            inside.append(one.id)
        assert inside
        now += 0.05
        leaving = inside.pop(rng.randrange(len(inside)))  # type: ignore[attr-defined]
        engine.first_token(leaving)
        engine.finished(leaving)
        engine.finished(leaving)
        engine.check_invariants()
        done += 1
    assert done == len(specs)
    assert len(engine) == engine.prefill_tokens == 0


def test_a_host_that_hears_of_first_tokens_a_little_late_leaves_the_engine_no_gap() -> None:
    leading = WorkBound(ENGINE, lead_s=0.003)
    leading.started(call("tight", deadline=1.0, output=100), now=0.0)  # bears steps of 9 ms
    leading.first_token("tight")
    leading.started(call("a", deadline=1.0), now=0.1)  # its prompt is done at 0.106
    assert not leading.has_room(call("b"), now=0.101)
    assert leading.ask_again_at(0.101, 0.01) == pytest.approx(0.103, abs=1e-3)
    assert leading.has_room(call("b", deadline=1.0), now=0.1035)
    leading.started(call("b", deadline=1.0), now=0.1035)
    assert not leading.has_room(call("c"), now=0.104)  # one ahead, no more
    leading.check_invariants()
