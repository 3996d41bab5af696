"""From the documents of ``profile`` and ``plan`` to what the simulator runs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from kit.planning import component, profile
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_scheduler.from_profile import GLUE, Simulated, simulated
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.profile_model import Branch, ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import Resources
from patchwork_scheduler.simulate import unloaded

EMBED = component("embed", cpu={1: 0.002, 8: 0.004})
LLM = component("llm", gpu={1: 0.5, 8: 0.8})
ROWS = tuple(
    {"n_in": n_in, "n_out": n_out, "batch": batch, "seconds": batch * n_in * 1e-5 + 0.004 * n_out}
    for n_in, n_out, batch in [(1000, 1, 1), (1000, 1, 8), (1000, 64, 1), (1000, 64, 8)]
)


def system(known: Profile) -> Simulated:
    return simulated(make_plan(known, Resources.machine(cpus=8, gpus=2)), known)


def drawn(found: Simulated, times: int = 4000) -> Counter[str]:
    rng = random.Random(1)
    return Counter(step.site.component for _ in range(times) for step in found.workload.path(rng))


def test_components_are_called_as_often_as_in_the_sample_runs() -> None:
    found = system(profile(EMBED, replace(LLM, visits=1.3), component("web", cpu={1: 0.1}, visits=0.25)))
    counts = drawn(found)
    assert counts["embed"] == 4000
    assert counts["llm"] / 4000 == pytest.approx(1.3, abs=0.03)
    assert counts["web"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_calls_made_at_once_are_made_at_once() -> None:
    found = system(profile(EMBED, replace(LLM, visits=4.0, serial_visits=1.0)))
    assert [(step.site.component, step.site.fan) for step in found.workload.path(random.Random(0))] == [
        ("embed", 1), ("llm", 4),
    ]  # fmt: skip


def test_requests_walk_along_the_branches_where_these_name_call_sites() -> None:
    branches = (
        Branch("__start__", "embed", 1.0),
        Branch("embed", "grade", 1.0),
        Branch("grade", "embed", 0.3, "loop"),
        Branch("grade", "answer", 0.7, "cond"),
    )
    llm = replace(LLM, visits=2.4, call_sites=("grade", "answer"))
    found = system(Profile("crag.py", (replace(EMBED, visits=1.43), llm), branches))
    names = [step.site.id for step in found.workload.path(random.Random(3))]
    assert names[:2] == ["embed", "grade"]
    assert names[-1] == "answer"
    assert drawn(found)["embed"] / 4000 == pytest.approx(1 / 0.7, rel=0.05)


def test_hosted_apis_and_the_chains_own_time_take_time_but_no_replicas() -> None:
    hosted = ComponentProfile("hosted", 2.0, external=True, external_s=0.3)
    found = system(Profile("c.py", (EMBED, hosted), glue_s=0.01))
    assert found.plan["hosted"].unlimited
    assert found.plan[GLUE].unlimited
    alone = unloaded(found.workload, found.plan, found.costs, SloClass("s", 1.0), requests=3)
    assert alone.latencies == pytest.approx([0.01 + 0.002 + 0.6] * 3, abs=0.002)
    assert set(alone.components) == {"embed"}


def test_an_llm_measured_by_tokens_batches_continuously() -> None:
    measured = Measured("gpu", (Point(8, 0.8),), cpus=0.0, gpus=1.0, rows=ROWS)
    llm = ComponentProfile("llm", 1.0, (measured,), prompt_tokens=1000, output_tokens=64)
    assert isinstance(system(profile(llm)).costs["llm"], TokenCost)
    assert isinstance(system(profile(replace(llm, output_tokens=None))).costs["llm"], BatchCost)


def test_a_component_that_the_plan_or_the_profile_lacks_is_named() -> None:
    both = profile(EMBED, LLM)
    plan = make_plan(both, Resources.machine(cpus=8, gpus=2))
    with pytest.raises(IncompleteProfile, match="has no component llm, which the plan"):
        simulated(plan, profile(EMBED))
    with pytest.raises(IncompleteProfile, match="no replica of web"):
        simulated(plan, profile(EMBED, LLM, component("web", cpu={1: 0.1})))
