"""What a replica learns of its engine, from engines whose truth is known."""

from __future__ import annotations

import dataclasses
import random

import pytest

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_scheduler.learned import LearnedBatchCost, LearnedTokenCost, Stretch, TokenCounts, TokenMeter, cost_of
from patchwork_scheduler.simulated_engines import SimulatedContinuous
from patchwork_scheduler.workbound import WorkBound

TRUTH = BatchCost((1.0, 8.0, 32.0), (0.010, 0.012, 0.050))
ENGINE = TokenCost(base_s=0.007, prefill_s=2.4e-5, sequence_s=4e-5)


def test_nothing_is_predicted_before_anything_ran() -> None:
    cost = LearnedBatchCost()
    assert cost(32) == cost.per_item_s(32) == 0.0
    assert LearnedTokenCost().cost is None


def test_a_batch_engine_is_learnt_from_its_batches_and_a_hiccup_is_not_believed() -> None:
    cost, rng = LearnedBatchCost(), random.Random(1)
    for n in range(300):
        size = rng.randint(1, 32)
        cost.observe(size, TRUTH(size) * rng.uniform(0.9, 1.1) * (50.0 if n % 25 == 0 else 1.0))
    for size in (1, 8, 16, 32):
        assert cost(size) == pytest.approx(TRUTH(size), rel=0.2)
    assert cost.per_item_s(32) == pytest.approx(TRUTH.per_item_s(32), rel=0.2)


def test_sizes_that_were_not_seen_follow_the_profile_at_the_speed_of_those_that_were() -> None:
    cost = LearnedBatchCost(TRUTH)
    assert cost(32) == TRUTH(32)
    for _ in range(100):
        cost.observe(1, 0.020)
    assert cost(1) == pytest.approx(0.020)
    assert cost(32) == pytest.approx(0.100, rel=0.05)


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    cost = LearnedBatchCost()
    for seconds in (0.01, 0.03):
        for _ in range(20):
            cost.observe(4, seconds)
    assert cost(4) == pytest.approx(0.03)


def driven(
    cost: TokenCost,
    *,
    rate: float,
    span_s: float,
    seed: int = 0,
    prompts: tuple[int, int] = (50, 1500),
    most: int = 200,
) -> list[Stretch]:
    """Stretches that a replica sees of the simulated engine, when calls of all sizes come at random."""
    engine, meter, rng = SimulatedContinuous(cost), TokenMeter(), random.Random(seed)
    stretches: list[Stretch | None] = []
    seen: dict[str, int] = {}
    arrivals, now, number = 0.0, 0.0, 0
    while now < span_s:
        while arrivals <= now or not len(engine):
            now = max(now, arrivals)
            prompt, number = rng.randint(*prompts), number + 1
            engine.add(f"c{number}", prompt, rng.randint(1, most), 0.0, now)
            meter.started(f"c{number}", prompt, now)
            seen[f"c{number}"] = 0
            arrivals += rng.expovariate(rate)
        end = engine.start(now, most_steps=1)
        assert end is not None
        now = end
        first, done = engine.finish()
        for call in (*(c for c, tokens in seen.items() if tokens and c not in first), *first):
            seen[call] += 1
            stretches.append(meter.generated(call, 1, now))
        for call in done:
            del seen[call]
            stretches.append(meter.finished(call, now))
    return [one for one in stretches if one is not None]


def test_a_token_engine_is_learnt_from_what_comes_out_of_it() -> None:
    learned = LearnedTokenCost()
    for stretch in driven(ENGINE, rate=12.0, span_s=40.0):
        learned.observe(stretch)
    found = learned.cost
    assert found is not None
    # what decisions rest on: how long a step is with so many sequences and so much prefill
    for prefill, sequences in ((0, 1), (0, 30), (1500, 30), (4000, 10)):
        assert found.step_s(prefill, sequences) == pytest.approx(ENGINE.step_s(prefill, sequences), rel=0.2)


def test_as_long_as_calls_run_alone_company_is_taken_to_be_cheap_or_nobody_would_ever_try_it() -> None:
    dear = TokenCost(base_s=0.007, prefill_s=2.4e-5, sequence_s=0.007)
    learned = LearnedTokenCost()
    alone = [one for one in driven(dear, rate=0.01, span_s=2000.0) if one.decoded <= one.steps * (1 + 1e-9)]
    for stretch in alone:
        learned.observe(stretch)
    assert learned.cost is not None
    assert learned.cost.step_s(0, 1) == pytest.approx(dear.step_s(0, 1), rel=0.1)
    assert learned.cost.sequence_s < 0.1 * learned.cost.base_s
    for stretch in driven(dear, rate=2.0, span_s=20.0):  # and is known for what it is soon after it came
        learned.observe(stretch)
    assert learned.cost.sequence_s == pytest.approx(dear.sequence_s, rel=0.15)
    assert learned.cost.base_s == pytest.approx(dear.base_s, rel=0.25)


def test_what_a_call_takes_before_its_engine_steps_is_learnt_and_kept_while_the_engine_is_never_idle() -> None:
    learned = LearnedTokenCost()
    found = driven(ENGINE, rate=0.5, span_s=60.0)
    late = [dataclasses.replace(one, seconds=one.seconds + 0.05) if one.idle else one for one in found]
    assert any(one.idle for one in late)
    for stretch in late:
        learned.observe(stretch)
    assert learned.cost is not None
    assert learned.cost.call_s == pytest.approx(0.05, rel=0.2)
    for stretch in 5 * [one for one in found if not one.idle]:
        learned.observe(stretch)
    assert learned.cost.call_s == pytest.approx(0.05, rel=0.2)


def test_a_profile_is_compared_with_what_the_engine_really_takes() -> None:
    learned = LearnedTokenCost(ENGINE)
    stretches = driven(ENGINE.scaled(2.0), rate=5.0, span_s=40.0)
    for stretch in stretches:
        learned.observe(stretch)
    assert learned.cost is ENGINE
    ratio = sum(one.seconds for one in stretches) / sum(learned.predicted_s(one) for one in stretches)
    assert ratio == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(("prompts", "most"), [((50, 1500), 200), ((2000, 4000), 8)])
def test_an_engine_that_is_as_its_profile_says_is_found_to_be_so_at_any_load(
    rate: float, prompts: tuple[int, int], most: int
) -> None:
    slow = ENGINE.scaled(10.0)  # a prompt takes many steps' time, so that most stretches end in the middle of one
    learned, bound = LearnedTokenCost(slow), WorkBound(slow)
    for stretch in driven(slow, rate=rate, span_s=200.0, prompts=prompts, most=most):
        bound.stepped(learned.predicted_s(stretch), stretch.seconds)
    assert bound.slowdown == pytest.approx(1.0, abs=0.02)


def test_what_an_engine_tells_of_one_step_is_not_divided() -> None:
    meter = TokenMeter(stretch_s=0.2)
    meter.started("a", 100, 0.0)
    meter.generated("a", 1, 0.1)
    meter.started("b", 1000, 0.1)
    assert meter.generated("a", 1, 0.4) is None
    assert meter.generated("b", 1, 0.4001) is None  # the step in which b was prefilled and a decoded
    found = meter.generated("a", 1, 0.5)
    assert found is not None
    assert (found.seconds, found.prefilled, found.prefills, found.mixed) == (pytest.approx(0.4001), 1100.0, 2, 1)


def test_a_stretch_in_which_a_prompt_was_given_up_is_not_counted() -> None:
    meter = TokenMeter()
    meter.started("a", 500, 0.0)
    assert meter.finished("a", 10.0) is None
    meter.started("b", 100, 20.0)
    meter.generated("b", 1, 20.1)
    found = meter.finished("b", 20.2)
    assert found == Stretch(pytest.approx(0.2), 0.0, 0.0, 100.0, 100.0, prefills=1, idle=True)  # type: ignore[arg-type]


def test_tokens_of_a_call_are_foretold_by_its_bytes_its_site_and_its_own_limit() -> None:
    counts = TokenCounts()
    assert counts.prompt(4000) == 1000
    assert counts.output("grade", 16) == 16
    for _ in range(20):
        counts.observe("grade", request_bytes=3000, prompt_tokens=600, output_tokens=4)
    assert counts.prompt(3000) == 600
    assert counts.output("grade", 16) == 4
    assert counts.output("answer", None) > 4


def test_a_cost_survives_the_way_to_a_replica_and_another_document_is_refused() -> None:
    for cost in (TRUTH, ENGINE):
        assert cost_of(dataclasses.asdict(cost)) == cost
    with pytest.raises(IncompleteProfile, match="not rate"):
        cost_of({"rate": 3})
