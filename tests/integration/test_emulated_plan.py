"""A chain of emulated engines on real Ray, deployed by a plan: what used a profile says so, and another plan changes only what differs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kit.deployed import ROOT, Home, a_home, deployed
from kit.planning import component, profile
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal
from patchwork_scheduler.resources import Resources

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TARGET = str(ROOT / "tests" / "benchmarks" / "chains" / "crag.py")
LLMS = ("llm-grader", "llm-rewriter", "llm-generator")
CORES = ("retriever-search", "retriever-web")
CONFIG = """
models:
  grader: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, n_out: 4, answers: {"yes": 0.7, "no": 0.3}}}
  rewriter: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, n_out: 32}}
  generator: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, n_out: 64}}
components:
  retriever-search: {emulate: {rows: [{batch: 1, seconds: 0.01}]}}
  retriever-web: {emulate: {rows: [{batch: 1, seconds: 0.02}]}}
"""


def write_plan(file: Path, **replicas: int) -> Path:
    """A plan with one replica of everything, but for what is given (``llm_grader=2``)."""
    measured = [*(component(name, gpu={8: 0.5}) for name in LLMS), *(component(name, cpu={1: 0.01}) for name in CORES)]
    fixed = {name: Fixed.replicas(replicas.get(name.replace("-", "_"), 1)) for name in (*LLMS, *CORES)}
    made = make_plan(profile(*measured, chain="crag.py"), Resources.machine(cpus=8, gpus=8), Goal(fixed=fixed))
    made.save(file)
    return file


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as made:
        (made.path / "patchwork.yaml").write_text(CONFIG, encoding="utf-8")
        yield made


@pytest.fixture(scope="module")
def url(home: Home) -> Iterator[str]:
    first = write_plan(home.path / "first.json")
    with deployed(home, TARGET, "--config", str(home.path / "patchwork.yaml"), "--plan", str(first)) as made:
        yield made


def deploy_again(home: Home, plan: Path) -> tuple[int, str]:
    options = ("--detach", "--json", "--config", str(home.path / "patchwork.yaml"), "--plan", str(plan))
    result = home.run("deploy", TARGET, *options)
    return result.returncode, result.stderr


def pids(home: Home, *names: str) -> dict[str, set[int]]:
    return {name: {process.pid for process in home.replicas(name)} for name in names}


def test_everything_that_an_emulated_engine_touches_says_so(home: Home, url: str) -> None:
    answer = httpx.post(f"{url}/invoke", json={"input": "apples?"}, headers={"x-patchwork-trace": "1"}, timeout=60.0)
    assert set(answer.headers["x-patchwork-emulated"].split(",")) == {*LLMS, *CORES}
    spans = [s["attributes"] for s in answer.json()["metadata"]["trace"] if "patchwork.component" in s["attributes"]]
    assert spans
    assert all(attributes["patchwork.emulated"] for attributes in spans)
    release = httpx.get(f"{url}/info").json()["release"]
    assert set(release["emulated"]) == {*LLMS, *CORES}
    assert {c["engine"] for c in release["components"]} == {"emulated"}
    (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
    assert set(app["emulated"]) == {*LLMS, *CORES}


async def test_another_plan_changes_only_what_differs_and_loses_no_request(home: Home, url: str) -> None:
    before = pids(home, "ingress", *LLMS, *CORES)
    second = write_plan(home.path / "second.json", llm_grader=2, retriever_search=2)
    answers: list[int] = []
    stop = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        while not stop.is_set():
            answers.append((await client.post(f"{url}/invoke", json={"input": f"question {number}"})).status_code)
            number += 4

    async with httpx.AsyncClient(timeout=60.0) as client:
        asking = [asyncio.create_task(ask(client, number)) for number in range(4)]
        code, told = await asyncio.to_thread(deploy_again, home, second)
        stop.set()
        await asyncio.gather(*asking)
    assert code == 0, told
    assert set(answers) == {200}
    after = pids(home, "ingress", *LLMS, *CORES)
    assert {name: len(after[name]) for name in after} == {
        "ingress": 1, "llm-grader": 2, "llm-rewriter": 1, "llm-generator": 1, "retriever-search": 2, "retriever-web": 1,
    }  # fmt: skip
    assert all(before[name] <= after[name] for name in before)  # none was replaced
    (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
    assert {row["component"]: row["target"] for row in app["replicas"]} == {
        name: len(after[name]) for name in after if name != "ingress"
    }


def test_a_plan_of_another_chain_touches_nothing_that_runs(home: Home, url: str) -> None:
    before = pids(home, *LLMS, *CORES)
    other = make_plan(profile(component("embedder", cpu={1: 0.1})), Resources.machine(cpus=2))
    other.save(home.path / "other.json")
    code, told = deploy_again(home, home.path / "other.json")
    assert code == 2
    assert "the plan is of another chain: it has embedder" in told
    assert pids(home, *LLMS, *CORES) == before
    assert httpx.post(f"{url}/invoke", json={"input": "still there?"}, timeout=60.0).status_code == 200
