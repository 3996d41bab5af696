"""The planner against trying out every allocation, and what must hold of every plan."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchwork_scheduler import plan_solve
from patchwork_scheduler.errors import NoFeasiblePlan
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal, Plan
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import Need, NodeType, Resources, unplaced

RATE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Best:
    rate: float
    cost: float


@dataclass(frozen=True)
class Use:
    """One way to run a component: some replicas on each node type, each with one of the batches."""

    calls_per_s: float
    price: float
    seconds: float  #: of its slowest batch
    amounts: tuple[float, ...]  #: cores, GPUs and memory, node type by node type


def every_use(component: ComponentProfile, nodes: tuple[NodeType, ...]) -> list[Use]:
    """All ways to run a component that fit by themselves."""
    choices = [
        list(uses_of(measured, component.tokens, nodes, at))
        for at, node in enumerate(nodes)
        for measured in component.measured
        if measured.hardware in node.offers
    ]
    sums = [added(combination, nodes) for combination in itertools.product(*choices)]
    return [use for use in sums if use.calls_per_s and within(use.amounts, nodes)]


def uses_of(measured: Measured, tokens: float | None, nodes: tuple[NodeType, ...], at: int) -> Iterator[Use]:
    node = nodes[at]
    yield Use(0.0, 0.0, 0.0, (0.0,) * 3 * len(nodes))
    for point in measured.batch_points(tokens):
        need = Need(measured.cpus, measured.gpus, point.memory_bytes)
        price = need.cpus * node.cpu_price + need.gpus * node.gpu_price
        for n in range(1, node.fits(need) * node.count + 1):
            amounts = [0.0] * 3 * len(nodes)
            amounts[3 * at : 3 * at + 3] = [need.cpus * n, need.gpus * n, float(need.memory_bytes * n)]
            yield Use(point.calls_per_s * n, price * n, point.seconds, tuple(amounts))


def added(uses: tuple[Use, ...], nodes: tuple[NodeType, ...]) -> Use:
    return Use(
        sum(u.calls_per_s for u in uses),
        sum(u.price for u in uses),
        max((u.seconds for u in uses), default=0.0),
        tuple(map(sum, zip(*(u.amounts for u in uses), strict=True))) or (0.0,) * 3 * len(nodes),
    )


def within(amounts: tuple[float, ...], nodes: tuple[NodeType, ...]) -> bool:
    limits = [
        limit * node.count
        for node in nodes
        for limit in (node.cpus, node.gpus, math.inf if node.memory_bytes is None else node.memory_bytes)
    ]
    return all(amount <= limit + 1e-9 for amount, limit in zip(amounts, limits, strict=True))


def brute_force(profile: Profile, resources: Resources, slo_s: float | None) -> Best | None:
    """Highest rate, then lowest cost, of all allocations."""
    nodes = resources.types()
    found: list[Best] = []
    ways = [(c, every_use(c, nodes)) for c in profile.components]

    def extend(at: int, so_far: Best, path: float, amounts: tuple[float, ...]) -> None:
        if (slo_s is not None and path > slo_s) or not within(amounts, nodes):
            return
        if at == len(ways):
            found.append(so_far)
            return
        component, uses = ways[at]
        for use in uses:
            best = Best(min(so_far.rate, use.calls_per_s / component.visits), so_far.cost + use.price)
            more = tuple(map(operator.add, amounts, use.amounts))
            extend(at + 1, best, path + component.path_visits * use.seconds, more)

    extend(0, Best(math.inf, 0.0), 0.0, (0.0,) * 3 * len(nodes))
    if not found:
        return None
    top = max(b.rate for b in found)
    return Best(top, min(b.cost for b in found if b.rate >= top * (1 - RATE_TOLERANCE)))


seconds = st.integers(1, 400).map(lambda n: n / 100)


@st.composite
def measurements(draw: st.DrawFn, hardware: str) -> Measured:
    batches = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=2, unique=True))
    points = tuple(Point(b, draw(seconds), memory_bytes=b * draw(st.integers(0, 2))) for b in batches)
    if hardware == "gpu":
        return Measured("gpu", points, cpus=float(draw(st.integers(0, 1))), gpus=1.0)
    return Measured("cpu", points, cpus=float(draw(st.integers(1, 2))))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    components = []
    for index in range(draw(st.integers(1, 3))):
        where = draw(
            st.sampled_from([("cpu",), ("gpu",), ("cpu",), ("cpu", "gpu")] if index == 0 else [("cpu",), ("gpu",)])
        )
        visits = draw(st.sampled_from([0.1, 0.5, 1.0, 3.0]))
        components.append(ComponentProfile(f"c{index}", visits, tuple(draw(measurements(h)) for h in where)))
    return Profile("chain.py", tuple(components))


@st.composite
def machines(draw: st.DrawFn) -> Resources:
    """One machine, or one and some small equal ones; needs are whole, so that sums per type decide."""
    memory = draw(st.sampled_from([None, 8, 24]))
    machine = NodeType("machine", float(draw(st.integers(1, 3))), draw(st.integers(0, 2)), memory)
    if draw(st.booleans()):
        return Resources((machine,))
    return Resources((machine, NodeType("small", 1.0, count=draw(st.integers(1, 2)), cpu_price=0.5)))


@settings(max_examples=300, deadline=None)
@given(profiles(), machines(), st.sampled_from([None, None, 2.0, 6.0]))
def test_no_allocation_is_better_than_the_plan(profile: Profile, resources: Resources, slo_s: float | None) -> None:
    best = brute_force(profile, resources, slo_s)
    if best is None:
        with pytest.raises(NoFeasiblePlan):
            make_plan(profile, resources, Goal(slo_s=slo_s), marginals=False)
        return
    plan = make_plan(profile, resources, Goal(slo_s=slo_s), marginals=False)
    assert plan.rate_per_s == pytest.approx(best.rate, rel=RATE_TOLERANCE)
    assert plan.cost == pytest.approx(best.cost)
    check(plan, resources)


@settings(max_examples=60, deadline=None)
@given(profiles(), machines())
def test_marginal_values_are_those_of_trying_everything_with_one_more(profile: Profile, resources: Resources) -> None:
    best = brute_force(profile, resources, None)
    if best is None:
        return
    for marginal in make_plan(profile, resources).marginals:
        more = brute_force(profile, resources.with_one_more(marginal.node_type, marginal.resource), None)
        assert more is not None
        assert marginal.gain_per_s == pytest.approx(more.rate - best.rate, rel=1e-5, abs=best.rate * 1e-5)


@settings(max_examples=100, deadline=None)
@given(profiles(), st.integers(1, 3), st.sampled_from([0.25, 0.4, 0.6]), st.sampled_from([0.3, 0.5, 1.0]))
def test_replicas_with_fractions_of_gpus_find_a_place_on_the_nodes(
    profile: Profile, count: int, one: float, other: float
) -> None:
    shares = tuple(
        ComponentProfile(f"share{i}", 1.0, (Measured("gpu", (Point(1, 0.5),), cpus=0.5, gpus=share),))
        for i, share in enumerate((one, other))
    )
    resources = Resources((NodeType("node", cpus=3.0, gpus=2, count=count),))
    try:
        plan = make_plan(Profile("chain.py", (*profile.components, *shares)), resources, marginals=False)
    except NoFeasiblePlan:
        return
    check(plan, resources)


@given(st.integers(1, 4), st.integers(1, 40))
def test_what_is_asked_for_is_sustained_for_no_more_than_the_highest_rate_costs(servers: int, percent: int) -> None:
    profile = Profile("chain.py", (ComponentProfile("a", 1.0, (Measured("cpu", (Point(1, 0.25),)),)),))
    resources = Resources.machine(cpus=servers)
    highest = make_plan(profile, resources, marginals=False)
    asked = highest.rate_per_s * percent / 40
    plan = make_plan(profile, resources, Goal(rate_per_s=asked), marginals=False)
    assert plan.rate_per_s >= asked * (1 - RATE_TOLERANCE)
    assert plan.cost <= highest.cost


def check(plan: Plan, resources: Resources) -> None:
    """What must hold of every plan."""
    types = {node.name: node for node in resources.types()}
    wanted: dict[str, list[tuple[Need, int]]] = {name: [] for name in types}
    for component in plan.components:
        assert component.replicas >= 1
        assert component.utilisation <= 1 + RATE_TOLERANCE
        for p in component.placements:
            assert p.hardware in types[p.node_type].offers
            wanted[p.node_type].append((Need(p.cpus, p.gpus, p.memory_bytes), p.replicas))
    for name, needs in wanted.items():
        assert unplaced(types[name], needs) is None
    assert plan.component(plan.bottleneck).utilisation == max(c.utilisation for c in plan.components)
    assert plan.slo_s is None or plan.path_s <= plan.full_batch_path_s <= plan.slo_s * (1 + RATE_TOLERANCE)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_latency_budget_shared_out_beforehand_costs_little_against_the_whole_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = tuple(
        Measured(h, tuple(Point(b, (0.05 + 0.01 * b) / speed) for b in (1, 4, 16, 64)), cpus=1.0, gpus=gpus)
        for h, speed, gpus in (("cpu", 0.2, 0.0), ("l4", 1.0, 1.0), ("h200", 4.0, 1.0))
    )
    profile = Profile("chain.py", tuple(ComponentProfile(f"c{i}", v, measured) for i, v in enumerate((0.3, 1.0, 3.0))))
    small = NodeType("small", 16.0, 4, count=40, hardware=("cpu", "l4"))
    large = NodeType("large", 64.0, 8, count=20, hardware=("cpu", "h200"))
    resources = Resources((small, large))
    goals = [Goal(slo_s=2.0), Goal(slo_s=1.0)]
    quick = [make_plan(profile, resources, goal, marginals=False) for goal in goals]
    monkeypatch.setattr(plan_solve, "share_out", lambda problem: None)
    whole = [make_plan(profile, resources, goal, marginals=False) for goal in goals]
    for plan, best in zip(quick, whole, strict=True):
        check(plan, resources)
        assert best.bound_per_s is not None
        assert 0.95 * best.rate_per_s <= plan.rate_per_s <= best.bound_per_s * (1 + RATE_TOLERANCE)
