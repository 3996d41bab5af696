"""The profiler on a chain of emulated engines, with replicas in this process instead of on Ray."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from patchwork_adapters import codec
from patchwork_adapters.record import ImportRecord
from patchwork_scheduler.cost import TokenCost, fit_cost
from patchwork_scheduler.from_profile import GLUE, simulated
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving import build_process, profiler
from patchwork_serving.bundle import Bundle
from patchwork_serving.components import measuring
from patchwork_serving.components.emulated_factory import in_its_time
from patchwork_serving.config import Paths, load_config
from patchwork_serving.profiler import Task
from patchwork_serving.profiling import Search
from patchwork_serving.progress import SilentProgress
from patchwork_serving.release import ComponentSpec
from patchwork_serving.replica import build
from patchwork_serving.serve_control import Cluster
from patchwork_serving.wire import CallFrame, ReplyFrame

pytestmark = pytest.mark.alone

CHAINS = Path(__file__).parents[1] / "benchmarks" / "chains"
CONFIG = """
models:
  grader: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, slower: 0.2, n_out: 4, answers: {"yes": 0.5, "no": 0.5}}}
  rewriter: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, slower: 0.2, n_out: 8}}
  generator: {engine: emulated, engine_args: {profile: llama-3.2-3b-h100, slower: 0.2, n_out: 16}}
components:
  retriever-search: {emulate: {rows: [{batch: 1, seconds: 0.004}]}}
  retriever-web: {emulate: {rows: [{batch: 1, seconds: 0.006}]}}
"""


class Replica:
    """An engine as its replica offers it to handles: ``replica.call.remote(frame)``."""

    def __init__(self, spec: ComponentSpec, bundle: Bundle) -> None:
        # the user's own objects cannot run beside the orchestrator in one process
        self.engine: Any = in_its_time(_Passages(), spec) if spec.engine == "own" else build(spec, bundle)
        self.call = _Method(self._call)
        self.measure = _Method(self._measure)
        self.born = _Method(self._born)
        self._started = asyncio.Lock()
        self._is_started = False

    def options(self, *, method_name: str, **_: Any) -> _Method:
        method: _Method = getattr(self, method_name)
        return method

    async def _ready(self) -> None:
        async with self._started:
            if not self._is_started:
                await self.engine.start()
                self._is_started = True

    async def _call(self, data: bytes) -> bytes:
        await self._ready()
        run = await measuring.measure(self.engine, [CallFrame.from_bytes(data).to_bytes()], 1)
        return ReplyFrame(run.replies).to_bytes()

    async def _measure(self, frames: list[bytes], at_once: int) -> measuring.Run:
        await self._ready()
        return await measuring.measure(self.engine, frames, at_once)

    async def _born(self) -> float:
        return 1.5


class _Passages:
    """A batch engine in place of the user's own retriever."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {}

    async def run(self, batch: Sequence[Any]) -> list[bytes | Exception]:
        return [codec.encode_outcome([Document("a passage")]) for _ in batch]


class _Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        return _Response(asyncio.ensure_future(self._method(*arguments)))


class _Response:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self._task = task

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("profiler")
    (folder / "patchwork.yaml").write_text(CONFIG, encoding="utf-8")
    config = load_config(folder / "patchwork.yaml")
    request = build_process.BuildRequest(str(CHAINS / "crag.py"), "crag", config.model_dump(mode="json"))
    built = build_process.build(request, SilentProgress(), Paths(folder, folder))
    path, modules = list(sys.path), set(sys.modules)
    yield Bundle(built.release, record=built.record or ImportRecord().to_bytes(), config=config)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("crag", "lookup"):
            del sys.modules[name]


def profiled(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Profile:
    replicas: dict[tuple[int, str], Replica] = {}
    specs = {spec.id: spec for spec in bundle.release.components}

    def handle_of(component: str) -> Replica:
        key = (
            id(asyncio.get_running_loop()),
            component,
        )  # the chain's calls and the measurements have loops of their own
        if key not in replicas:
            replicas[key] = Replica(specs[component], bundle)
        return replicas[key]

    monkeypatch.setattr(profiler, "serve_handles", lambda _: handle_of)
    search = Search(max_batch=4, least_gain=-1.0, budget_s=5.0, enough_s=0.0)
    values = {"inputs": [f"question {n}" for n in range(8)], "search": search, **changes}
    return asyncio.run(profiler.profile(Task(bundle, Cluster("", {}), **values), SilentProgress()))


def test_visits_branches_points_and_costs_come_from_the_samples(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = profiled(bundle, monkeypatch)
    visits = {c.id: c.visits for c in found.components}
    assert visits["retriever-search"] == visits["llm-grader"] == visits["llm-generator"] == 1.0
    assert visits["llm-rewriter"] == visits["retriever-web"]
    assert 0 < visits["llm-rewriter"] < 1  # by hash of the question, the same every time
    owner = {site: c.id for c in found.components for site in c.call_sites} | {
        "__start__": "__start__",
        "__end__": "__end__",
    }
    assert all("@" in site for site in owner if not site.startswith("__"))  # a deployment's call-sites
    taken = {(owner[b.source], owner[b.target]): b.probability for b in found.branches}
    assert taken["__start__", "retriever-search"] == 1.0
    assert taken["llm-grader", "llm-rewriter"] == visits["llm-rewriter"]
    assert found.component("llm-grader").output_tokens == 4.0
    assert (found.component("llm-grader").prompt_tokens or 0) > 5
    assert found.component("retriever-search").output_tokens is None
    grader, search = found.component("llm-grader").measured[0], found.component("retriever-search").measured[0]
    assert {p.batch for p in grader.points} == {1, 2, 4}
    assert len({p.tokens for p in grader.points}) > 1  # measured at two lengths
    assert (grader.hardware, grader.gpus, search.hardware) == ("gpu", 1.0, "cpu")  # what its profile stands for
    assert isinstance(fit_cost(grader.rows), TokenCost)
    assert grader.cold_start_s == 1.5
    assert all(p.memory_bytes > 0 for p in grader.points)
    assert Profile.from_json(found.to_json()) == found
    plan = make_plan(found, Resources.machine(cpus=4, gpus=4))
    assert plan.rate_per_s > 0
    # what the simulator makes of it: requests walk from call-site to call-site, and a grader's steps are those of continuous batching
    inside = simulated(plan, found)
    assert set(inside.workload.sites) - {GLUE} == {site for c in found.components for site in c.call_sites}
    assert isinstance(inside.costs["llm-grader"], TokenCost)
    assert next(s for s in inside.workload.sites.values() if s.component == "llm-grader").output_tokens == 4


def test_a_component_that_no_sample_reaches_is_measured_with_a_call_made_up_for_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = profiled(bundle, monkeypatch)
    known = tuple(c for c in full.components if c.id != "llm-rewriter")
    one = {
        f"question {n}": profiled(bundle, monkeypatch, inputs=[f"question {n}"], known=full.components)
        for n in range(8)
    }
    satisfied = next(question for question, found in one.items() if found.component("llm-rewriter").visits == 0)
    found = profiled(bundle, monkeypatch, inputs=[satisfied], known=known)
    assert found.component("llm-rewriter").visits == 0
    assert found.component("llm-rewriter").measured[0].points
    assert found.component("llm-grader").measured == full.component("llm-grader").measured  # not measured again
