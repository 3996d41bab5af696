"""The autoscaler's loop on boards of dicts: who decides, what is written, what Serve's controller follows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from patchwork_adapters.graph import ComponentGraph
from patchwork_scheduler.autoscale_model import Bounds
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving import release_board
from patchwork_serving.autoscale_policy import FollowDecisions
from patchwork_serving.autoscale_setup import bounds_of, known_of, mode_of, release_key
from patchwork_serving.autoscaling import AutoscaleLoop
from patchwork_serving.bundle import Bundle
from patchwork_serving.config import Config
from patchwork_serving.gateway.account import exposition
from patchwork_serving.release import ComponentSpec, Release
from patchwork_serving.serve_app import _autoscaling, ingress_version

LLM = ComponentSpec(id="llm", kind="llm", way="own", engine="own")
PROFILE = Profile("chain.py", (ComponentProfile("llm", 1.0, (Measured("cpu", (Point(1, 0.1),)),)),))


class Boards:
    """One component, and as many ingress replicas as there are names."""

    def __init__(self, *ingress: str) -> None:
        self.ingress = ingress
        self.at = 0.0
        self.requests = 0
        self.written: dict[str, Any] = {}
        self.deployed: Release | None = None  # since the ingress started

    def current(self, release: Release) -> Release:
        return self.deployed or release

    def pass_time(self, seconds: float, requests: int) -> None:
        self.at += seconds
        self.requests += requests

    def replicas(self) -> list[dict[str, Any]]:
        each = self.requests // max(1, len(self.ingress))
        doors: list[dict[str, Any]] = [
            {
                "component": "ingress",
                "replica": name,
                "at": self.at,
                "requests": each,
                "late": 0,
                "calls": {"llm": each},
            }
            for name in self.ingress
        ]
        return [*doors, {"component": "llm", "replica": "llm#1", "queued": 0, "running": 1, "served_by_batch": {}}]

    def nodes(self) -> Iterable[Mapping[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def decided(self) -> dict[str, Any]:
        return self.written

    def decide(self, document: dict[str, Any]) -> None:
        self.written = json.loads(json.dumps(document))


def bundle(mode: str | None = "on", plan: bool = True, replicas: int = 1, **config: Any) -> Bundle:
    wishes = {"autoscale": {"mode": mode}, **config}
    made = make_plan(PROFILE, Resources.machine(cpus=8), Goal(rate_per_s=5.0)).to_json() if plan else None
    spec = dataclasses.replace(LLM, replicas=replicas)
    release = Release("app", "chain.py", "", ComponentGraph("chain.py", "langchain", ()), (spec,), plan=made, slo_s=2.0)
    return Bundle(release, config=Config.model_validate(wishes))


def loop(boards: Boards, name: str = "ingress#a", **options: Any) -> AutoscaleLoop:
    return AutoscaleLoop(
        bundle(**options), name, boards, clock=lambda: boards.at, wall=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    )


def under_load(boards: Boards, deciding: AutoscaleLoop, steps: int = 4, per_step: int = 40) -> None:
    """20 requests/s unless said otherwise; one replica carries ten."""
    deciding.step()
    for _ in range(steps):
        boards.pass_time(2.0, per_step)
        deciding.step()


def test_a_decision_is_written_with_its_time_and_reason_and_the_controller_follows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boards = Boards("ingress#a")
    under_load(boards, loop(boards))
    assert boards.written["targets"] == {"llm": 3}
    assert boards.written["decisions"] == [
        {
            "time": "2026-01-02T03:04:05+00:00",
            "what": "llm: 1 to 3 replicas",
            "why": "20 requests/s; that is 20 calls/s, 200% of what 1 replica carries",
        }
    ]
    key = release_key(bundle().release, bundle().config)
    assert boards.written["release"] == key
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get", lambda *a, **k: json.dumps(boards.written).encode()
    )
    context = SimpleNamespace(app_name="app", deployment_name="llm", target_num_replicas=1)
    assert FollowDecisions(release=key)(context) == (3, {})
    assert FollowDecisions(release="another")(context) == (1, {})  # of the release before


def test_advice_is_told_once_and_nothing_follows_it() -> None:
    boards = Boards("ingress#a")
    under_load(boards, loop(boards, mode="advisory"), steps=20)
    assert boards.written["targets"] == {"llm": 1}
    assert [d["what"] for d in boards.written["decisions"]] == ["advice: llm: 1 to 3 replicas"]
    assert _autoscaling(LLM, bundle("advisory")) is None


def test_the_first_ingress_replica_decides_and_the_next_goes_on_from_there() -> None:
    boards = Boards("ingress#a", "ingress#b")
    first, second = loop(boards, "ingress#a"), loop(boards, "ingress#b")
    second.step()
    boards.pass_time(2.0, 40)
    second.step()
    assert boards.written == {}
    under_load(boards, first)
    assert boards.written["targets"] == {"llm": 3}
    boards.ingress = ("ingress#b",)
    boards.requests = 0
    under_load(boards, second, per_step=60)
    assert boards.written["targets"] == {"llm": 4}
    assert [d["what"] for d in boards.written["decisions"]] == ["llm: 1 to 3 replicas", "llm: 3 to 4 replicas"]


def test_another_release_begins_anew() -> None:
    boards = Boards("ingress#a")
    under_load(boards, loop(boards))
    under_load(boards, loop(boards, replicas=2), per_step=10)
    assert boards.written["targets"] == {"llm": 2}
    assert boards.written["decisions"] == []


def test_a_release_that_replaced_no_ingress_begins_anew_as_well_and_its_policy_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boards = Boards("ingress#a")
    deciding = loop(boards)
    under_load(boards, deciding)
    again = bundle(replicas=2)
    boards.deployed = again.release
    under_load(boards, deciding, per_step=10)
    assert boards.written["targets"] == {"llm": 2}
    assert boards.written["decisions"] == []
    under_load(boards, deciding, per_step=60)
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get", lambda *a, **k: json.dumps(boards.written).encode()
    )
    policy = FollowDecisions(release=release_key(again.release, again.config))
    context = SimpleNamespace(app_name="app", deployment_name="llm", target_num_replicas=2)
    assert policy(context) == (boards.written["targets"]["llm"], {})
    assert boards.written["targets"]["llm"] > 2


def test_deploying_the_same_again_keeps_what_was_decided() -> None:
    boards = Boards("ingress#a")
    deciding = loop(boards)
    under_load(boards, deciding)
    boards.deployed = bundle().release
    under_load(boards, deciding)
    assert boards.written["targets"] == {"llm": 3}
    assert [d["what"] for d in boards.written["decisions"]] == ["llm: 1 to 3 replicas"]


def test_the_numbers_that_were_deployed_last_are_those_of_the_board() -> None:
    before, after = bundle(replicas=1, plan=False).release, bundle(replicas=3).release
    written = json.dumps({"replicas": {"llm": 3, "gone": 2}, "plan": after.plan}).encode()
    assert release_board.updated(before, written) == after


def test_other_numbers_replace_no_ingress_and_what_it_counts_with_does() -> None:
    version = ingress_version(bundle())
    assert ingress_version(bundle(replicas=3)) == version
    other = {
        "a promise": dataclasses.replace(bundle(), release=dataclasses.replace(bundle().release, slo_s=3.0)),
        "a batch": dataclasses.replace(
            bundle(), release=dataclasses.replace(bundle().release, components=(dataclasses.replace(LLM, max_batch=8),))
        ),
        "a mode that was off": bundle(None, plan=False),
    }
    assert [what for what, made in other.items() if ingress_version(made) == version] == []


def test_by_default_a_planned_release_is_advised_and_others_are_left_alone() -> None:
    planned, plain = bundle(None), bundle(None, plan=False)
    assert mode_of(planned.config, planned.release) == "advisory"
    assert mode_of(plain.config, plain.release) == "off"
    assert not AutoscaleLoop(plain, "ingress#a", Boards()).is_needed


def test_replicas_that_the_user_fixed_are_kept() -> None:
    fixed = bundle(components={"llm": {"replicas": 2}}).config
    limits = bundle(components={"llm": {"replicas": 2, "min_replicas": 0, "max_replicas": 4}}).config
    assert bounds_of(dataclasses.replace(LLM, replicas=2), fixed) == Bounds(2, 2)
    assert bounds_of(LLM, limits) == Bounds(0, 4)
    assert bounds_of(LLM, bundle(autoscale={"min": 2, "max": 3}).config) == Bounds(2, 3)


def test_without_a_plan_every_component_waits_to_be_known() -> None:
    known = known_of(bundle(plan=False).release)
    assert known.assumed == ("llm",)
    boards = Boards("ingress#a")
    under_load(boards, loop(boards, plan=False))  # no service time was seen
    assert boards.written["targets"] == {"llm": 1}


def test_ray_serves_own_autoscaler_can_be_asked_for() -> None:
    wish = {"mode": "ray", "max": 4, "ray": {"target_ongoing_requests": 5}}
    assert _autoscaling(LLM, bundle(autoscale=wish)) == {
        "min_replicas": 1, "max_replicas": 4, "initial_replicas": 1, "target_ongoing_requests": 5,
    }  # fmt: skip


def test_the_last_decision_is_on_the_metrics_page() -> None:
    boards = Boards("ingress#a")
    under_load(boards, loop(boards))
    text = exposition([], [], "app", boards.written).decode()
    assert 'patchwork_autoscale_target_replicas{app="app",component="llm"} 3.0' in text
    assert 'patchwork_autoscale_rate{app="app"} 20.0' in text
    assert 'patchwork_autoscale_changes_total{app="app",direction="up"} 1.0' in text
