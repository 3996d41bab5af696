"""From a chain to a served answer without a number of replicas given anywhere: profiled, planned by ``deploy --profile``, asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.deployed import Home, a_home, invoke
from patchwork_scheduler.plan_model import Plan
from patchwork_scheduler.profile_model import Profile

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TARGET = str(Path(__file__).parent / "chains" / "own_parts.py")
#: Two at once take as long as one: the plan has something to choose.
CONFIG = """
scheduler: {admission: "off"}
components:
  llm: {num_cpus: 0.1, emulate: {rows: [{batch: 1, seconds: 0.2}, {batch: 2, seconds: 0.2}]}}
  retriever: {num_cpus: 0.1}
"""
RATE = 15.0  #: two replicas of ten calls per second each


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home() as made:
        (made.path / "patchwork.yaml").write_text(CONFIG, encoding="utf-8")
        (made.path / "inputs.jsonl").write_text('"parrots speak"\n"snakes do not"\n', encoding="utf-8")
        yield made


def test_a_profile_becomes_a_plan_a_deployment_and_an_answer(home: Home) -> None:
    config, profile = str(home.path / "patchwork.yaml"), home.path / "profile.json"
    inputs = str(home.path / "inputs.jsonl")
    measured = home.run(
        "profile", TARGET, "--inputs", inputs, "-o", str(profile), "--config", config, "--max-batch", "2", "--budget", "8s",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert home.left() == []  # what was started to be measured
    assert {c.id for c in Profile.load(profile).components} == {"llm", "retriever"}

    ready = home.run(
        "deploy", TARGET, "--profile", str(profile), "--rate", str(RATE), "--slo", "2s",
        "--config", config, "--port", "0", "--detach", "--json",
    )  # fmt: skip
    assert ready.returncode == 0, ready.stderr
    events = [json.loads(line) for line in ready.stdout.splitlines()]
    (planned,) = [event["plan"] for event in events if event["event"] == "plan"]
    plan = Plan.from_json(planned)
    assert (plan.component("llm").replicas, plan.component("retriever").replicas) == (2, 1)
    assert plan.component("llm").placements[0].batch == 2
    url = events[-1]["url"]
    assert invoke(url, "parrots speak") == ".kaeps storraP kaeps storrap!"
    (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
    assert {row["component"]: row["ready"] for row in app["replicas"]} == {"llm": 2, "retriever": 1}
