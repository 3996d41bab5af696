"""A component that no longer takes as long as profiled, from the batches of its replica to a warning and another plan."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from kit.virtual_stack import Part, VirtualStack
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters.graph import ComponentGraph
from patchwork_scheduler.cost import BatchCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving.autoscaling import AutoscaleLoop
from patchwork_serving.bundle import Bundle
from patchwork_serving.config import Config
from patchwork_serving.gateway.account import exposition
from patchwork_serving.release import ComponentSpec, Release

PROFILED_S = 0.1
RATE = 4.0  #: two fifths of what a replica carries, if the profile is true
SECONDS = 40.0


class Boards:
    """One ingress replica, and the replicas of a stack on a clock that jumps."""

    def __init__(self, stack: VirtualStack) -> None:
        self.stack = stack
        self.requests = 0
        self.written: dict[str, Any] = {}

    def current(self, release: Release) -> Release:
        return release

    def replicas(self) -> list[dict[str, Any]]:
        door = {
            "at": self.stack.loop.time(),
            "requests": self.requests,
            "late": 0,
            "calls": {"embedder": self.requests},
        }
        return [{"component": "ingress", "replica": "ingress#a", **door}, *self.stack.reports()]

    def nodes(self) -> Iterable[Mapping[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0}}]

    def decided(self) -> dict[str, Any]:
        return self.written

    def decide(self, document: dict[str, Any]) -> None:
        self.written = json.loads(json.dumps(document))


def decided(real_s: float) -> dict[str, Any]:
    """The autoscaler's last word after ``SECONDS`` of calls that take ``real_s``."""
    profile = Profile("chain.py", (ComponentProfile("embedder", 1.0, (Measured("cpu", (Point(1, PROFILED_S),)),)),))
    plan = make_plan(profile, Resources.machine(cpus=8), Goal(rate_per_s=RATE)).to_json()
    spec = ComponentSpec(id="embedder", kind="embedder", way="own", engine="own")
    graph = ComponentGraph("chain.py", "langchain", ())
    bundle = Bundle(
        Release("app", "chain.py", "", graph, (spec,), plan=plan, slo_s=5.0),
        config=Config.model_validate({"autoscale": {"mode": "on"}}),
    )

    async def main(loop: VirtualLoop) -> dict[str, Any]:
        parts = {"embedder": Part(BatchCost((1.0,), (real_s,)), replicas=1, batch=1)}
        stack = VirtualStack(loop, parts, SloClass("default", 5.0), policy="least_slack", admission="off")
        await stack.start()
        boards = Boards(stack)
        deciding = AutoscaleLoop(
            bundle, "ingress#a", boards, clock=loop.time, wall=lambda: datetime(2026, 1, 2, tzinfo=UTC)
        )

        async def ask(number: int) -> None:
            await asyncio.sleep(number / RATE)
            boards.requests += 1
            request = stack.enter(f"r{number}", loop.time())
            assert request is not None
            await stack.call(request, "embedder", f"text {number}")
            stack.leave(request)

        asking = [asyncio.create_task(ask(number)) for number in range(int(SECONDS * RATE))]
        for _ in range(int(SECONDS / 2)):
            deciding.step()
            await asyncio.sleep(2.0)
        await asyncio.gather(*asking)
        await stack.close()
        return boards.written

    return run_virtually(main)


def test_a_component_that_takes_twice_as_long_is_named_and_planned_as_it_is() -> None:
    found = decided(real_s=0.22)  # it keeps up, at 88 %, and nothing waits: only its seconds tell
    warning, change = found["decisions"]
    assert warning["what"] == "warning"
    assert warning["why"].startswith("embedder takes 2.2 times as long as profiled: planned with what is observed")
    assert change["what"] == "embedder: 1 to 2 replicas"
    assert "of what 1 replica carries" in change["why"]
    assert found["targets"] == {"embedder": 2}
    assert found["numbers"]["drift"] == {"embedder": 2.2}
    assert 'patchwork_autoscale_drift{app="app",component="embedder"} 2.2' in exposition([], [], "app", found).decode()


def test_a_component_that_takes_as_long_as_profiled_is_left_alone() -> None:
    found = decided(real_s=0.11)
    assert found["decisions"] == []
    assert found["targets"] == {"embedder": 1}
