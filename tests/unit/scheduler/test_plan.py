"""Profiles and resources, and the plans expected of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kit.paper_shapes import crag
from kit.planning import component, profile
from patchwork_scheduler.errors import InvalidInput, NoFeasiblePlan, SloUnreachable
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal, Plan
from patchwork_scheduler.plan_sharing import needed_cores, sharing_cores
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import NodeType, Resources

PAPER_MACHINE = Resources.machine(cpus=5, gpus=2)
BATCHES = (1, 10, 15, 20, 40, 70)


def paper_example(retriever_units_per_query: float) -> Profile:
    """The worked example: augmenter 1 unit per item, generator 10 units for any batch."""
    return profile(
        component("retriever", cpu={b: retriever_units_per_query * b for b in BATCHES}),
        component("augmenter", cpu={b: 1.0 * b for b in BATCHES}),
        component("generator", gpu=dict.fromkeys(BATCHES, 10.0)),
    )


def replicas(plan: Plan) -> dict[str, int]:
    return {c.id: c.replicas for c in plan.components}


def test_the_papers_worked_example_is_retriever_bound_with_three_two_one() -> None:
    plan = make_plan(paper_example(2.0), PAPER_MACHINE)
    assert replicas(plan) == {"retriever": 3, "augmenter": 2, "generator": 1}
    assert plan.rate_per_s == pytest.approx(1.5)
    assert plan.bottleneck == "retriever"
    assert plan.component("retriever").utilisation == pytest.approx(1.0)
    assert plan.component("augmenter").utilisation == pytest.approx(0.75)


def test_with_a_faster_retriever_the_bottleneck_moves_to_the_augmenter() -> None:
    plan = make_plan(paper_example(0.2), PAPER_MACHINE)
    assert replicas(plan) == {"retriever": 1, "augmenter": 4, "generator": 1}
    assert plan.rate_per_s == pytest.approx(4.0)
    assert plan.bottleneck == "augmenter"


def test_on_a_crag_shape_the_grader_gets_four_of_six_gpus() -> None:
    plan = make_plan(crag(), Resources.machine(cpus=4, gpus=6))
    on_gpus = {c.id: c.replicas for c in plan.components if c.placements[0].gpus}
    assert on_gpus == {"grader": 4, "rewriter": 1, "generator": 1}
    assert replicas(plan)["retriever"] == 2


def test_a_branch_that_one_request_in_ten_takes_is_provisioned_for_one_in_ten() -> None:
    chain = profile(component("always", cpu={1: 1.0}), component("branch", cpu={1: 1.0}, visits=0.1))
    plan = make_plan(chain, Resources.machine(cpus=11))
    assert replicas(plan) == {"always": 10, "branch": 1}
    assert plan.rate_per_s == pytest.approx(10.0)


def test_a_loop_run_three_times_is_provisioned_three_times() -> None:
    chain = profile(component("loop", cpu={1: 1.0}, visits=3), component("once", cpu={1: 1.0}))
    plan = make_plan(chain, Resources.machine(cpus=8))
    assert replicas(plan) == {"loop": 6, "once": 2}


def test_of_plans_with_equal_rate_the_one_with_fewest_resources_is_taken() -> None:
    plan = make_plan(paper_example(2.0), PAPER_MACHINE)
    assert plan.component("generator").replicas == 1  # two GPUs would not be faster
    assert plan.cost == pytest.approx(5 * 1.0 + 16.0)


def test_of_plans_with_equal_cost_the_one_with_the_shortest_path_is_taken() -> None:
    plan = make_plan(paper_example(2.0), PAPER_MACHINE)
    assert {p.batch for p in plan.component("retriever").placements} == {1}  # larger batches gain nothing


def test_a_rate_that_is_asked_for_is_reached_with_the_fewest_resources() -> None:
    plan = make_plan(paper_example(2.0), Resources.machine(cpus=50, gpus=9), Goal(rate_per_s=2.0))
    assert replicas(plan) == {"retriever": 4, "augmenter": 2, "generator": 1}
    assert plan.target_rate_per_s == 2.0
    assert plan.rate_per_s == pytest.approx(2.0)


def test_a_rate_out_of_reach_is_refused_with_the_one_within_reach_and_the_bottleneck() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"rate is 9 requests/s.*sustain 1\.5 at most, limited by 'retriever'"):
        make_plan(paper_example(2.0), PAPER_MACHINE, Goal(rate_per_s=9.0))


def test_room_for_bursts_is_kept_when_asked_for() -> None:
    plan = make_plan(paper_example(2.0), PAPER_MACHINE, Goal(max_utilisation=0.5))
    assert plan.rate_per_s == pytest.approx(0.75)
    assert plan.component("retriever").utilisation == pytest.approx(0.5)


def test_an_slo_shorter_than_the_unloaded_path_is_refused_with_the_component_that_breaks_it() -> None:
    chain = profile(component("search", cpu={1: 0.1}), component("answer", gpu={1: 2.0, 8: 4.0}))
    with pytest.raises(SloUnreachable, match=r"slo is 2 s.*takes 2\.1 s; 'answer' breaks it with 2 s"):
        make_plan(chain, PAPER_MACHINE, Goal(slo_s=2.0))


def test_a_hosted_api_that_is_too_slow_is_named_as_well() -> None:
    hosted = ComponentProfile("hosted", 2.0, external=True, external_s=3.0)
    with pytest.raises(SloUnreachable, match="'hosted' breaks it with 6 s"):
        make_plan(profile(component("search", cpu={1: 0.1}), hosted), PAPER_MACHINE, Goal(slo_s=5.0))


def test_the_slo_bounds_the_batch_that_is_chosen() -> None:
    chain = profile(component("answer", gpu={1: 1.0, 8: 2.0, 64: 8.0}))
    one = Resources.machine(cpus=1, gpus=1)
    assert make_plan(chain, one).component("answer").placements[0].batch == 64
    tight = make_plan(chain, one, Goal(slo_s=5.0))
    assert tight.component("answer").placements[0].batch == 8
    assert (tight.path_s, tight.full_batch_path_s) == (pytest.approx(1.0), pytest.approx(2.0))


def test_calls_that_run_side_by_side_count_once_on_the_path() -> None:
    grader = component("grader", gpu={1: 1.0}, visits=4, serial_visits=1)
    assert make_plan(profile(grader), PAPER_MACHINE, Goal(slo_s=1.5)).path_s == pytest.approx(1.0)


def test_memory_bounds_the_batch() -> None:
    chain = profile(component("answer", cpu={1: 1.0, 8: 2.0, 64: 8.0}, memory_per_call=1 << 30))
    plan = make_plan(chain, Resources.machine(cpus=1, memory_bytes=10 << 30))
    assert plan.component("answer").placements[0].batch == 8


def test_fractions_of_a_gpu_are_shared_but_never_across_two() -> None:
    chain = profile(component("embed", gpu={1: 1.0}, gpu_share=0.4))
    assert make_plan(chain, Resources.machine(cpus=1, gpus=2)).component("embed").replicas == 4  # not 5


def test_replicas_that_fit_only_in_sum_are_not_planned() -> None:
    large = component("large", gpu={1: 1.0}, gpu_share=0.6)
    small = component("small", gpu={1: 1.0}, gpu_share=0.5)
    plan = make_plan(profile(large, small), Resources.machine(cpus=1, gpus=2))
    # 0.6 + 0.6 + 0.5 is less than two GPUs, but no GPU takes two of them other than both small ones
    assert replicas(plan) == {"large": 1, "small": 1}
    with pytest.raises(NoFeasiblePlan, match="in pieces that fit on single nodes"):
        make_plan(profile(large, small), Resources.machine(cpus=1, gpus=1))


def test_each_node_type_gets_the_batch_that_suits_it() -> None:
    fast, slow = component("x", gpu={1: 1.0, 8: 2.0}).measured[0], component("x", gpu={1: 2.0, 4: 4.0}).measured[0]
    both = ComponentProfile("answer", 1.0, (replace(fast, hardware="h200"), replace(slow, hardware="l4")))
    nodes = (
        NodeType("large", cpus=8, gpus=2, hardware=("cpu", "h200")),
        NodeType("small", cpus=4, gpus=1, count=3, hardware=("cpu", "l4")),
    )
    plan = make_plan(Profile("chain.py", (both,)), Resources(nodes))
    assert {(p.node_type, p.replicas, p.batch) for p in plan.components[0].placements} == {
        ("large", 2, 8),
        ("small", 3, 4),
    }
    assert plan.rate_per_s == pytest.approx(2 * 4 + 3 * 1)


def test_a_component_without_gpus_runs_on_the_cores_of_a_gpu_node() -> None:
    plan = make_plan(profile(component("search", cpu={1: 1.0})), Resources.machine(cpus=2, gpus=1))
    assert replicas(plan) == {"search": 2}


def test_fixed_choices_are_kept() -> None:
    fixed = {"retriever": Fixed.replicas(2), "generator": Fixed(batch=10, max_replicas=1)}
    plan = make_plan(paper_example(2.0), PAPER_MACHINE, Goal(fixed=fixed))
    assert plan.component("retriever").replicas == 2
    assert plan.component("generator").placements[0].batch == 10
    assert plan.rate_per_s == pytest.approx(1.0)


def test_a_component_that_nothing_calls_keeps_one_replica_unless_none_is_allowed() -> None:
    chain = profile(component("used", cpu={1: 1.0}), component("unused", cpu={1: 1.0}, visits=0))
    assert replicas(make_plan(chain, PAPER_MACHINE))["unused"] == 1
    none = make_plan(chain, PAPER_MACHINE, Goal(fixed={"unused": Fixed(min_replicas=0)}))
    assert replicas(none) == {"used": 5, "unused": 0}


def test_one_more_core_or_gpu_is_worth_what_solving_again_says() -> None:
    plan = make_plan(paper_example(2.0), PAPER_MACHINE)
    worth = {m.resource: m.gain_per_s for m in plan.marginals}
    with_a_core = make_plan(paper_example(2.0), Resources.machine(cpus=6, gpus=2))
    assert worth == {"cpu": pytest.approx(with_a_core.rate_per_s - plan.rate_per_s), "gpu": 0.0}
    assert worth["cpu"] == pytest.approx(0.5)


def test_marginal_values_are_of_the_highest_rate_also_when_a_lower_one_was_asked_for() -> None:
    asked = make_plan(paper_example(2.0), PAPER_MACHINE, Goal(rate_per_s=1.0))
    assert asked.marginals == make_plan(paper_example(2.0), PAPER_MACHINE).marginals


def test_nodes_listed_one_by_one_are_planned_as_types() -> None:
    one_by_one = Resources(tuple(NodeType(f"node-{i}", cpus=2) for i in range(4)))
    chain = profile(component("a", cpu={1: 1.0}), component("b", cpu={1: 1.0}))
    plan = make_plan(chain, one_by_one)
    assert [(p.node_type, p.replicas) for c in plan.components for p in c.placements] == [("node-0", 4), ("node-0", 4)]
    assert [m.node_type for m in plan.marginals] == ["node-0"]


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (Goal(rate_per_s=0.0), r"the goal: rate_per_s is 0\.0.*greater than 0.*correct --slo, --rate"),
        (Goal(slo_s=-1.0), r"slo_s is -1\.0"),
        (Goal(max_utilisation=1.5), r"max_utilisation is 1\.5"),
        (Goal(rate_per_s=float("nan")), "rate_per_s is nan"),
        (Goal(fixed={"retreiver": Fixed()}), "no component 'retreiver'; it has retriever, augmenter, generator"),
        (Goal(fixed={"generator": Fixed(hardware="tpu")}), "hardware is 'tpu', but it was measured on gpu"),
        (Goal(fixed={"generator": Fixed(batch=3)}), "batch is 3, which was not measured; measured were 1, 10, 15"),
        (Goal(fixed={"generator": Fixed(min_replicas=0)}), "fixed.generator allows no replica"),
    ],
    ids=[
        "zero rate",
        "negative slo",
        "utilisation above one",
        "nan",
        "unknown component",
        "unknown hardware",
        "batch",
        "none",
    ],
)
def test_a_goal_that_makes_no_sense_is_refused_by_field_value_and_remedy(goal: Goal, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_plan(paper_example(2.0), PAPER_MACHINE, goal)


def test_more_least_than_most_replicas_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_replicas is 1, fewer than min_replicas 2"):
        Fixed(min_replicas=2, max_replicas=1)


def test_a_profile_that_nothing_was_called_in_is_refused() -> None:
    with pytest.raises(InvalidInput, match="every component's visits is 0"):
        make_plan(profile(component("a", cpu={1: 1.0}, visits=0)), PAPER_MACHINE)


def test_hardware_that_no_node_offers_is_refused_with_what_there_is() -> None:
    nodes = Resources((NodeType("node", cpus=4, gpus=1, hardware=("cpu", "h200")),))
    with pytest.raises(NoFeasiblePlan, match="'generator' was measured on gpu, but the nodes offer cpu, h200"):
        make_plan(paper_example(2.0), nodes)


def test_too_few_resources_for_one_of_each_are_counted_out() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"needs about 2 cpus and 1 gpus.*there are 1 cpus and 1 gpus"):
        make_plan(paper_example(2.0), Resources.machine(cpus=1, gpus=1))


def test_a_replica_larger_than_any_node_is_named() -> None:
    chain = profile(component("huge", cpu={1: 1.0}, memory_per_call=64 << 30))
    with pytest.raises(NoFeasiblePlan, match=r"'huge': one replica needs 1 cpus, 0 gpus and 64\.0 GiB"):
        make_plan(chain, Resources.machine(cpus=4, memory_bytes=8 << 30))


def on_two_cores() -> Profile:
    """An LLM that keeps two cores busy for a second, and an embedder that keeps one busy for a tenth."""
    llm = component("llm", cpu={1: 1.0})
    wide = replace(llm, measured=(replace(llm.measured[0], cpus=2.0),))
    return profile(component("embedder", cpu={1: 0.1}), wide)


def test_on_a_machine_too_small_for_one_of_each_replicas_share_its_cores() -> None:
    machine = Resources.machine(cpus=2)
    assert needed_cores(on_two_cores(), machine, {}) == 3.0
    shared = sharing_cores(on_two_cores(), machine, {})
    assert [c.measured[0].cpus for c in shared.components] == [0.66, 1.33]
    assert [c.measured[0].busy for c in shared.components] == [1.0, 2.0]
    assert replicas(make_plan(shared, machine)) == {"embedder": 1, "llm": 1}


def test_what_shares_cores_is_bounded_by_what_these_work_off_together() -> None:
    plan = make_plan(sharing_cores(on_two_cores(), Resources.machine(cpus=2), {}), Resources.machine(cpus=2))
    assert plan.core_s == pytest.approx(0.1 * 1 + 1.0 * 2)  # of cores, by one request
    assert plan.rate_per_s == pytest.approx(2 / 2.1)  # not the 1.0 that the LLM has by itself
    assert plan.bottleneck == "llm"
    assert plan.component("llm").utilisation == pytest.approx(2 / 2.1)
    (core,) = plan.marginals
    assert core.gain_per_s == pytest.approx(1.0 - 2 / 2.1)  # then it is the LLM's one replica that limits


def test_a_rate_that_shared_cores_do_not_carry_is_refused() -> None:
    shared = sharing_cores(on_two_cores(), Resources.machine(cpus=2), {})
    with pytest.raises(
        NoFeasiblePlan, match=r"rate is 0\.98 requests/s, but the replicas share cores, which carry 0\.952"
    ):
        make_plan(shared, Resources.machine(cpus=2), Goal(rate_per_s=0.98))


def test_cores_are_shared_only_where_they_must_be_and_not_those_given_by_hand() -> None:
    chain = on_two_cores()
    assert sharing_cores(chain, Resources.machine(cpus=3), {}) is chain
    two_nodes = Resources((NodeType("node", cpus=1, count=2),))
    assert sharing_cores(chain, two_nodes, {}) is chain  # which node is short is the planner's to say
    kept = sharing_cores(chain, Resources.machine(cpus=2), {}, keep={"embedder"})
    assert [c.measured[0].cpus for c in kept.components] == [1.0, 1.0]
    assert sharing_cores(chain, Resources.machine(cpus=2), {}, keep={"embedder", "llm"}) is chain


def test_replicas_with_the_cores_that_they_keep_busy_are_never_bounded_by_the_cores() -> None:
    for cpus in (3, 5, 7):
        assert make_plan(on_two_cores(), Resources.machine(cpus=cpus)).core_s is None
