"""The simulator: small systems whose outcome can be worked out by hand, and what must hold of every run."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchwork_scheduler.admission import Mode
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile, InvalidWorkload
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.policies import policy_names
from patchwork_scheduler.simulate import ComponentPlan, Setup, closed_loop, simulate, unloaded_s
from patchwork_scheduler.simulated_engines import SimulatedContinuous
from patchwork_scheduler.workload import END, Site, Way, Workload, at_rate, gamma, poisson, trace_times

ENGINE = TokenCost(base_s=0.004, prefill_s=1e-5, sequence_s=2e-5)
COSTS: dict[str, BatchCost | TokenCost] = {"embed": BatchCost((1, 32), (0.002, 0.004)), "llm": ENGINE}
PLAN = {"embed": ComponentPlan(1), "llm": ComponentPlan(2, token_budget=2048)}
RAG = Workload(
    "embed",
    [
        Site("embed", "embed", ways=(Way("grade", 1.0),), max_visits=2),
        Site("grade", "llm", fan=3, prompt_tokens=500, output_tokens=4, ways=(Way("answer", 0.7), Way("embed", 0.3))),
        Site("answer", "llm", prompt_tokens=1500, output_tokens=100, output_spread=0.3),
    ],
)  # fmt: skip
ONE = Workload("work", [Site("work", "machine")])
OPEN = Setup("fifo", "open", bounded=False, engine_priority=False)


def test_one_machine_serves_one_after_another() -> None:
    found = simulate(
        ONE,
        {"machine": ComponentPlan(1, max_batch=1)},
        {"machine": BatchCost.constant(1.0)},
        [0.0, 0.1, 0.2],
        SloClass("s", 2.5),
        setup=OPEN,
    )
    assert found.latencies == pytest.approx([1.0, 1.9, 2.8])
    assert (found.attained, found.missed, found.end) == (2, 1, 3.0)


def test_calls_that_wait_together_run_together() -> None:
    plan, costs = {"machine": ComponentPlan(1, max_batch=8)}, {"machine": BatchCost.constant(1.0)}
    found = simulate(ONE, plan, costs, [0.0, 0.1, 0.2], SloClass("s", 9.0), setup=OPEN)
    assert found.latencies == pytest.approx([1.0, 1.9, 1.8])


def test_a_call_in_an_engine_of_its_own_takes_what_the_cost_says() -> None:
    llm = Workload("answer", [Site("answer", "llm", prompt_tokens=1500, output_tokens=100)])
    found = simulate(llm, PLAN, COSTS, [0.0, 100.0], SloClass("s", 9.0), setup=OPEN)
    assert found.latencies == pytest.approx([ENGINE.alone_s(1500, 100)] * 2)
    assert found.ttft == pytest.approx([ENGINE.step_s(1500, 0)] * 2)


def test_prefills_of_others_stretch_the_steps_of_those_that_decode() -> None:
    engine = SimulatedContinuous(ENGINE, token_budget=1000)
    engine.add("old", 500, 10, 0.0, now=0.0)
    end = engine.start(0.0)
    assert end == pytest.approx(0.005)
    assert engine.finish() == (["old"], [])
    engine.add("new", 3000, 1, 0.0, now=0.005)
    ends = []
    while (end := engine.start(end)) is not None:
        ends.append((round(end, 6), *engine.finish()))
    assert [row[0] for row in ends[:3]] == pytest.approx(
        [0.01501, 0.02502, 0.03503]
    )  # 999 tokens beside the one that decodes
    assert [done for _, _, done in ends if done] == [["new"], ["old"]]
    assert engine.generated  # nothing inside any more
    assert len(engine) == 0


def test_a_stretch_of_decoding_ends_with_the_step_in_which_somebody_comes() -> None:
    engine = SimulatedContinuous(TokenCost(0.01, 0.0, 0.0))
    engine.add("a", 1, 100, 0.0, now=0.0)
    now = engine.start(0.0)
    assert now is not None
    engine.finish()
    assert engine.start(now) == pytest.approx(0.33)
    assert engine.add("b", 1, 1, 0.0, now=0.055) == pytest.approx(0.06)
    engine.finish()
    assert engine.generated("a") == 6


@pytest.mark.parametrize("setup", [OPEN, Setup(admission="open")])
def test_a_call_that_is_handed_over_holds_a_place_and_what_its_component_adds_comes_after(setup: Setup) -> None:
    llm = Workload("answer", [Site("answer", "llm", output_tokens=11)])
    plan = {"llm": ComponentPlan(1, max_sequences=1, enter_s=0.5, hop_s=0.25)}
    costs = {"llm": TokenCost(0.1, 0.0, 0.0, call_s=0.5)}
    found = simulate(llm, plan, costs, [0.0, 0.1], SloClass("s", 9.0), setup=setup)
    assert found.latencies == pytest.approx([0.5 + 1.1 + 0.25, 2 * (0.5 + 1.1) + 0.25 - 0.1])


def test_an_engine_is_handed_the_next_prompt_before_its_step_ends() -> None:
    llm = Workload("grade", [Site("grade", "llm", prompt_tokens=1000, output_tokens=1)])
    plan = {"llm": ComponentPlan(1, token_budget=1000, enter_s=0.5)}
    costs = {"llm": TokenCost(0.01, 0.002, 0.0, call_s=0.5)}  # a prompt takes two seconds
    found = simulate(llm, plan, costs, [0.0] * 3, SloClass("s", 6.6), setup=Setup(admission="open"))
    assert found.latencies == pytest.approx([2.5, 4.5, 6.5])  # the engine is never without one


def test_each_request_is_told_once_when_it_ends_or_is_refused() -> None:
    ends: dict[str, float | None] = {}
    slo, plan = SloClass("s", 1.5), {"machine": ComponentPlan(1, max_batch=1)}
    costs = {"machine": BatchCost.constant(1.0)}
    simulate(ONE, plan, costs, [0.0, 0.0], slo, seen=lambda one, at: ends.setdefault(one.id, at))
    assert ends == {"r0": 1.0, "r1": None}


def test_without_sample_runs_nothing_is_known_and_nobody_refused_until_a_request_has_ended() -> None:
    plan, costs = {"machine": ComponentPlan(1, max_batch=1)}, {"machine": BatchCost.constant(1.0)}
    found = simulate(ONE, plan, costs, [0.0, 0.0, 2.5, 2.5], SloClass("s", 1.5), samples=0)
    assert (found.attained, found.missed, found.refused) == (2, 1, 1)


@given(
    policy=st.sampled_from(policy_names()),
    admission=st.sampled_from(["refuse", "hold", "open"]),
    bounded=st.booleans(),
    central=st.booleans(),
    rate=st.floats(1.0, 60.0),
    cv=st.floats(0.3, 4.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_every_request_is_accounted_for_once_whatever_the_setup(
    policy: str, admission: Mode, bounded: bool, central: bool, rate: float, cv: float, seed: int
) -> None:
    setup = Setup(policy, admission, bounded=bounded, central=central, hop_s=0.001)
    found = simulate(RAG, PLAN, COSTS, gamma(rate, cv, seed), SloClass("s", 1.5), setup=setup, requests=60, seed=seed)
    assert found.offered == 60 == found.attained + found.missed + found.refused
    assert len(found.ttft) == found.accepted
    assert all(latency > 0.3 for latency in found.latencies)
    assert admission == "refuse" or not found.refused


def test_equal_arguments_give_equal_results() -> None:
    def run(seed: int) -> list[float]:
        return simulate(RAG, PLAN, COSTS, poisson(20, seed), SloClass("s", 2.0), requests=60, seed=seed).latencies

    assert run(1) == run(1)
    assert run(1) != run(2)


def overload(setup: Setup, times: float) -> float:
    """Share of accepted requests in time, and goodput, at ``times`` the capacity."""
    capacity = closed_loop(RAG, PLAN, COSTS, in_flight=100, span_s=8.0)
    rate = times * capacity.offered / capacity.end
    slo = SloClass("s", 4.0 * unloaded_s(RAG, PLAN, COSTS))
    found = simulate(RAG, PLAN, COSTS, poisson(rate, 5), slo, setup=setup, requests=600, seed=5)
    return found.goodput(600 / rate) / (capacity.offered / capacity.end)


def test_deadlines_are_kept_where_first_come_first_served_keeps_none() -> None:
    assert overload(OPEN, 2.0) < 0.2
    assert overload(Setup(), 2.0) > 0.7


def test_a_profile_without_a_component_of_the_workload_is_refused_by_name() -> None:
    with pytest.raises(IncompleteProfile, match="no component llm"):
        simulate(RAG, PLAN, {"embed": COSTS["embed"]}, [0.0], SloClass("s", 1.0))
    with pytest.raises(IncompleteProfile, match="plan has no component embed"):
        simulate(RAG, {"llm": PLAN["llm"]}, COSTS, [0.0], SloClass("s", 1.0))


def test_a_workload_whose_ways_lead_nowhere_is_refused() -> None:
    with pytest.raises(InvalidWorkload, match=r"sum to 0\.5"):
        Workload("a", [Site("a", "x", ways=(Way(END, 0.5),))])
    with pytest.raises(InvalidWorkload, match="no sites"):
        Workload("a", [Site("a", "x", ways=(Way("b", 1.0),))])
    with pytest.raises(InvalidWorkload, match=r"the start' lead to \['b'\]"):
        Workload("b", [Site("a", "x")])


def test_a_loop_is_left_after_its_most_visits() -> None:
    rng = random.Random(0)
    loops = Workload("a", [Site("a", "x", ways=(Way("a", 0.99), Way(END, 0.01)), max_visits=3)])
    assert max(len(loops.path(rng)) for _ in range(50)) == 3


def test_arrivals_have_the_rate_and_burstiness_asked_for() -> None:
    for cv in (0.5, 1.0, 3.0):
        times = list(itertools.islice(gamma(10.0, cv, 1), 20_000))
        gaps = [b - a for a, b in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(0.1, rel=0.1)
        assert (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5 / mean == pytest.approx(cv, rel=0.1)


def test_traces_are_read_and_brought_to_a_rate() -> None:
    csv = ["TIMESTAMP,ContextTokens", "2023-11-16 18:17:03.9799600,1", "2023-11-16 18:17:04.9799600,2"]
    assert trace_times(csv)[1] - trace_times(csv)[0] == pytest.approx(1.0)
    assert trace_times(['{"timestamp": "82"}', "", '{"timestamp": "93"}']) == [82.0, 93.0]
    assert trace_times(['{"timestamp": 1500}']) == [1.5]
    with pytest.raises(InvalidWorkload, match="TIMESTAMP"):
        trace_times(["a,b", "1,2"])
    assert list(itertools.islice(at_rate([5.0, 6.0, 9.0], 1.0), 5)) == pytest.approx([0.0, 0.5, 2.0, 3.0, 3.5])
    with pytest.raises(InvalidWorkload, match="two arrivals"):
        next(at_rate([1.0], 1.0))
