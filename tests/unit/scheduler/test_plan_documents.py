"""The files: what ``patchwork profile`` and ``patchwork plan`` write is read back, and nonsense is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.planning import component, profile
from patchwork_scheduler.errors import InvalidInput, ProfileMismatch
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal, Plan
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.resources import NodeType, Resources

#: as ``patchwork profile`` writes it
PROFILE_FILE = """
{
  "version": 1,
  "chain": "my_chain.py",
  "glue_s": 0.004,
  "components": [
    {
      "id": "embedder", "kind": "embedder", "visits": 1.0, "tokens": 12.0,
      "measured": [
        {
          "hardware": "cpu", "cpus": 1.0, "gpus": 0.0, "cold_start_s": 0.8, "fit_error": 0.03,
          "points": [
            {"batch": 1, "tokens": 8.0, "seconds": 0.004, "memory_bytes": 120000000},
            {"batch": 1, "tokens": 16.0, "seconds": 0.006, "memory_bytes": 120000000},
            {"batch": 8, "tokens": 8.0, "seconds": 0.016, "memory_bytes": 130000000},
            {"batch": 8, "tokens": 16.0, "seconds": 0.032, "memory_bytes": 130000000}
          ]
        }
      ]
    },
    {
      "id": "llm", "kind": "llm", "visits": 1.3, "serial_visits": 1.3,
      "measured": [
        {"hardware": "gpu", "cpus": 1.0, "gpus": 0.5, "cold_start_s": 90.0, "points": [{"batch": 16, "seconds": 1.2}]}
      ]
    },
    {"id": "web", "kind": "tool", "visits": 0.3, "external": true, "external_s": 0.7}
  ],
  "branches": [{"source": "grade", "target": "rewrite", "kind": "cond", "probability": 0.3}],
  "origin": {
    "date": "2026-11-23T04:00:00+00:00", "machine": "2 cores", "versions": {"xllamacpp": "2026.10"}, "samples": 20
  }
}
"""

Change = Callable[[dict[str, Any]], None]


def profile_file() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(PROFILE_FILE)
    return document


def plan_file() -> dict[str, Any]:
    chain = profile(component("search", cpu={1: 0.5}), component("answer", gpu={1: 1.0, 8: 2.0}))
    machine = Resources.machine(cpus=4, gpus=1)
    return replace(make_plan(chain, machine, Goal(slo_s=9.0)), profile=chain, resources=machine).to_json()


def test_a_profile_is_read_from_its_file_and_written_back() -> None:
    read = Profile.from_json(profile_file())
    assert [c.id for c in read.components] == ["embedder", "llm", "web"]
    assert read.component("llm").measured[0].gpus == 0.5
    assert Profile.from_json(read.to_json()) == read


def test_a_profile_survives_the_disk(tmp_path: Path) -> None:
    read = Profile.from_json(profile_file())
    read.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == read


def test_seconds_are_on_the_line_between_the_token_counts_that_were_measured() -> None:
    embedder = Profile.from_json(profile_file()).component("embedder").measured[0]
    assert [(p.batch, p.seconds) for p in embedder.batch_points(12.0)] == [
        (1, pytest.approx(0.005)),
        (8, pytest.approx(0.024)),
    ]
    assert [p.seconds for p in embedder.batch_points(4.0)] == [0.004, 0.016]  # fewer than measured: no faster
    assert [p.seconds for p in embedder.batch_points(24.0)] == [pytest.approx(0.008), pytest.approx(0.048)]
    assert [p.seconds for p in embedder.batch_points(None)] == [0.004, 0.016]


def test_a_plan_is_read_from_its_file_and_written_back(tmp_path: Path) -> None:
    plan = Plan.from_json(plan_file())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.to_json() == plan_file()


def test_resources_are_read_and_written() -> None:
    resources = Resources(
        (NodeType("large", cpus=32, gpus=8, memory_bytes=1 << 40, count=4, hardware=("cpu", "h200")),)
    )
    assert Resources.from_json(json.loads(json.dumps(resources.to_json()))) == resources


def changed(path: tuple[str | int, ...], value: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for step in path[:-1]:
            at = at[step]
        if value is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return change


POINT = ("components", 0, "measured", 0, "points", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed((*POINT, "seconds"), -3.0),
            r"components\[0\]\.measured\[0\]\.points\[1\]\.seconds is -3\.0: .*greater than 0",
        ),
        (changed((*POINT, "seconds"), float("nan")), r"points\[1\]\.seconds is nan"),
        (changed((*POINT, "batch"), 0), r"points\[1\]\.batch is 0"),
        (changed((*POINT, "batch"), "8"), r"points\[1\]\.batch is '8': .*integer"),
        (changed((*POINT, "secnds"), 1.0), r"points\[1\]\.secnds is 1\.0"),
        (changed((*POINT, "tokens"), 8.0), r"holds? \(batch, tokens\) \(1, 8\.0\) twice"),
        (changed((*POINT, "tokens"), None), "measured both with and without tokens"),
        (changed(("components", 0, "measured"), []), "'embedder' has no measurements"),
        (changed(("components", 1, "id"), "embedder"), "component 'embedder' occurs twice"),
        (changed(("components", 1, "visits"), KeyError), r"components\[1\]\.visits is missing"),
        (changed(("components", 1, "measured", 0, "gpus"), 1.5), "gpus of gpu is 1.5.*whole number"),
        (changed(("branches", 0, "probability"), 1.2), r"branches\[0\]\.probability is 1\.2"),
        (changed(("components",), []), "components"),
        (changed(("version",), 2), "version is 2"),
    ],
)
def test_nonsense_in_a_profile_is_refused_by_field_value_and_remedy(change: Change, message: str) -> None:
    document = profile_file()
    change(document)
    with pytest.raises(InvalidInput, match=message) as refused:
        Profile.from_json(document, what="profile.json")
    assert str(refused.value).startswith("profile.json: ")
    assert "measure again with 'patchwork profile'" in str(refused.value)


PLACEMENT = ("components", 0, "placements", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed((*PLACEMENT, "replicas"), 0), r"components\[0\]\.placements\[0\]\.replicas is 0"),
        (changed((*PLACEMENT, "replicas"), 1), r"'search': capacity_per_s is 4, but its placements carry 2"),
        (changed((*PLACEMENT, "batch"), 2.5), r"placements\[0\]\.batch is 2\.5"),
        (changed(("rate_per_s",), 1e9), r"carry 4 calls/s at most, but rate_per_s 1e\+09 needs 1e\+09"),
        (changed(("bottleneck",), "nobody"), "bottleneck is 'nobody', which is none of the components search, answer"),
        (changed(("components", 1, "id"), "search"), "'search' occurs twice"),
        (changed(("slo_s",), "fast"), "slo_s is 'fast'"),
        (changed(("marginals", 0, "resource"), "tpu"), r"marginals\[0\]\.resource is 'tpu'"),
        (
            changed((*PLACEMENT, "cpus"), 2.5),
            "the replicas on machine need 5 cpus and 1 gpus, and do not fit on 1 x 4 cpus and 1 gpus",
        ),
        (changed(("resources", "nodes", 0, "gpus"), 0), r"'answer': hardware is 'gpu', and machine offers cpu"),
        (changed((*PLACEMENT, "node_type"), "mars"), "'search': node_type is 'mars', and the resources are machine"),
        (changed((*PLACEMENT, "hardware"), "tpu"), "'search': hardware is 'tpu', and machine offers cpu, gpu"),
        (changed((*PLACEMENT, "gpus"), 1.5), "gpus is 1.5: more than one GPU must be a whole number"),
        (
            changed(("profile", "components", 1, "id"), "other"),
            "profile and components are not of the same chain: .* answer, other",
        ),
        (changed((*PLACEMENT, "cpu"), 1), r"placements\[0\]\.cpu is 1, and there is no such field; make"),
        (changed(("components",), []), "the plan: components is empty; make"),
    ],
)
def test_a_plan_edited_into_nonsense_is_refused_by_field_value_and_remedy(change: Change, message: str) -> None:
    document = copy.deepcopy(plan_file())
    change(document)
    with pytest.raises(InvalidInput, match=message) as refused:
        Plan.from_json(document)
    assert "make the plan again with 'patchwork plan'" in str(refused.value)


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"plan\.json: .*EOF"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(InvalidInput, match=r"absent\.json cannot be read \(FileNotFoundError\)"):
        Plan.load(tmp_path / "absent.json")


def test_profile_and_plan_of_another_chain_are_refused_by_what_differs() -> None:
    with pytest.raises(ProfileMismatch, match=r"another chain \(my_chain.py\): .*not profiled: reranker; .*have: web"):
        Profile.from_json(profile_file()).check_components(["embedder", "llm", "reranker"])
    with pytest.raises(ProfileMismatch, match="it has answer, search, the chain has other"):
        Plan.from_json(plan_file()).check_components(["other"])
    Profile.from_json(profile_file()).check_components(["web", "llm", "embedder"])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (NodeType("n", cpus=-1), r"nodes\[0\]\.cpus is -1"),
        (NodeType("n", cpus=1, count=0), r"nodes\[0\]\.count is 0"),
        (NodeType("", cpus=1), r"nodes\[0\]\.name is ''"),
    ],
)
def test_resources_that_make_no_sense_are_refused(node: NodeType, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_plan(profile(component("a", cpu={1: 1.0})), Resources((node,)))


def test_one_name_for_two_shapes_is_refused() -> None:
    nodes = Resources((NodeType("node", cpus=1), NodeType("node", cpus=2)))
    with pytest.raises(InvalidInput, match="'node' stands for nodes of different shapes"):
        make_plan(profile(component("a", cpu={1: 1.0})), nodes)


def test_a_profile_takes_on_visits_and_service_times_as_observed() -> None:
    seen = Profile.from_json(profile_file()).observed(visits={"llm": 2.6}, slower={"embedder": 2.0, "web": 3.0})
    assert (seen.component("llm").visits, seen.component("llm").serial_visits) == (2.6, pytest.approx(2.6))
    assert seen.component("embedder").measured[0].points[0].seconds == 0.008
    assert seen.component("web").external_s == pytest.approx(2.1)
    with pytest.raises(InvalidInput, match="no component 'grader'"):
        seen.observed(visits={"grader": 1.0})
