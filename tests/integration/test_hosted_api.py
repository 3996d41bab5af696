"""A hosted API stays where it is, and gets a limit, a deadline and a trace: real clients, a real server on a real socket."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit.hosted import HostedApi, hosted_api
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.errors import DeadlinePassed
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves
from patchwork_serving.assign import assign
from patchwork_serving.chain_loop import ChainLoop
from patchwork_serving.config import Config, Paths
from patchwork_serving.gateway.metrics import GatewayMetrics
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.metered import MeteredCalls
from patchwork_serving.release import Release
from patchwork_serving.routing import ModelRouter
from patchwork_serving.taken_apart import external_calls
from patchwork_serving.telemetry import RequestTelemetry, Tracing, open_tracing

KEY = "sk-nobody-may-see-this"
ELSEWHERE = (
    "https://api.hosted.example/v1"  #: nothing answers here: requests must go to the server that the config names
)


class NoComponents:
    """A transport that nothing may be sent to."""

    async def call(self, call: LeafCall) -> bytes:
        raise AssertionError(f"{call.component} is not deployed")

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        raise AssertionError(f"{call.component} is not deployed")
        yield b""


@dataclass
class Setting:
    api: HostedApi
    bridge: Bridge
    tracing: Tracing
    memory: InMemorySpanExporter
    metrics: GatewayMetrics

    def spans(self) -> list[dict[str, Any]]:
        self.bridge.close()  # what was told to its loop has happened then
        self.tracing.provider.force_flush()
        return [{"name": s.name, **dict(s.attributes or {})} for s in self.memory.get_finished_spans()]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Setting]:
    with hosted_api() as api:
        config = Config.model_validate(
            {
                "models": {name: {"source": api.url, "engine": "external"} for name in ("big", "busy", "slow")},
                "components": {f"llm-{name}": {"concurrency": 2} for name in ("big", "slow")},
            }
        )
        chains = [chat(name) for name in ("big", "busy", "slow")]
        leaves = find_leaves(chains[0] | FakeListChatModel(responses=[""]) | chains[1] | chains[2]).leaves
        assigned = assign(
            [leaf for leaf in leaves if leaf.spec.speaks_openai],
            config,
            ImportRouter(config, Paths(tmp_path, tmp_path)).find,
        )
        release = Release("app", "", "", ComponentGraph("", "langchain", ()), assigned.specs)
        memory = InMemorySpanExporter()
        tracing = open_tracing("app", "ingress", exporters=[memory])
        metrics = GatewayMetrics("app")
        components = {spec.id: spec for spec in release.components}
        observer = MeteredCalls(RequestTelemetry(tracing, components), metrics, components)
        with Bridge(NoComponents()) as bridge:
            cut = OpenAICut(bridge, ModelRouter.of(release), external=external_calls(release, bridge, observer))
            cut.install()
            yield Setting(api, bridge, tracing, memory, metrics)
            cut.undo()
        tracing.close()


def chat(model: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=ELSEWHERE, api_key=KEY, max_retries=0, **options)  # type: ignore[arg-type]


def of_this_loop(model: str) -> ChatOpenAI:
    """langchain-openai shares one asynchronous HTTP client among all models of a URL, and that belongs to one loop."""
    return chat(model, http_async_client=openai.DefaultAsyncHttpxClient())


def a_request(deadline_s: float | None = None) -> RequestContext:
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    return RequestContext(uuid.uuid4().hex, str(uuid.uuid4()), deadline)


def in_threads(count: int, work: Any) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return [f.result() for f in [pool.submit(copy_context().run, work) for _ in range(count)]]


def test_no_more_requests_are_in_flight_than_the_limit_from_threads_and_from_several_loops(setting: Setting) -> None:
    llm = chat("big")

    async def several() -> list[str]:
        return [str(m.content) for m in await asyncio.gather(*(of_this_loop("big").ainvoke("hi") for _ in range(3)))]

    works = [lambda: [str(llm.invoke("hi").content)], lambda: asyncio.run(several())] * 3
    with ThreadPoolExecutor(6) as pool:
        answers = [text for f in [pool.submit(w) for w in works] for text in f.result()]
    assert answers == ["hosted: hi"] * 12
    assert setting.api.most == 2
    assert set(setting.api.keys) == {f"Bearer {KEY}"}


def test_a_stream_holds_its_place_until_it_ends_or_is_closed(setting: Setting) -> None:
    def read() -> str:
        return "".join(str(c.content) for c in chat("big").stream("hi"))

    async def aread() -> str:
        return "".join([str(c.content) async for c in of_this_loop("big").astream("hi")])

    async def leave_early() -> None:
        client = openai.AsyncOpenAI(base_url=ELSEWHERE, api_key=KEY)
        async with await client.chat.completions.create(
            model="big", messages=[{"role": "user", "content": "x"}], stream=True
        ) as s:
            async for _ in s:
                break

    assert in_threads(6, read) == ["hosted stream"] * 6
    assert in_threads(4, lambda: asyncio.run(aread())) == ["hosted stream"] * 4
    in_threads(4, lambda: asyncio.run(leave_early()))
    assert in_threads(2, read) == ["hosted stream"] * 2
    assert setting.api.most == 2


def test_each_call_has_its_span_with_usage_and_is_counted_and_no_key_is_in_it(setting: Setting) -> None:
    with request_context(a_request(30.0)):
        chat("big").invoke("hi")
        list(chat("big", stream_usage=True).stream("hi"))
        with pytest.raises(openai.RateLimitError):
            chat("busy").invoke("hi")
    spans = setting.spans()
    assert [s["name"] for s in spans] == ["chat big", "chat big", "chat busy"]
    for span in spans[:2]:
        assert span["patchwork.way"] == "external"
        assert (span["gen_ai.usage.input_tokens"], span["gen_ai.usage.output_tokens"]) == (5, 2)
        assert span["patchwork.queue_s"] >= 0
        assert span["patchwork.slack_s"] > 0
    assert spans[2]["error.type"]
    assert KEY not in repr(spans)
    exposed = setting.metrics.expose().decode()
    assert 'patchwork_component_calls_total{app="app",component="llm-big",kind="llm",outcome="ok"} 2.0' in exposed
    assert 'patchwork_component_calls_total{app="app",component="llm-busy",kind="llm",outcome="failed"} 1.0' in exposed


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_deadline_ends_the_wait_for_a_place_and_the_request_itself(setting: Setting, is_async: bool) -> None:
    def ask(deadline_s: float) -> str:
        with request_context(a_request(deadline_s)):
            try:
                if is_async:
                    asyncio.run(_invoke("slow"))
                else:
                    chat("slow").invoke("hi")
            except DeadlinePassed:
                return "late"
        return "answered"

    with ThreadPoolExecutor(4) as pool:
        inside = [pool.submit(ask, 2.0) for _ in range(2)]
        while setting.api.inside < 2:
            time.sleep(0.01)
        waiting = [pool.submit(ask, 0.2) for _ in range(2)]
        assert [f.result() for f in (*waiting, *inside)] == ["late"] * 4
    assert setting.api.most == 2
    assert len(setting.api.keys) == 2  # the others never left
    assert [s["error.type"] for s in setting.spans()] == ["DeadlinePassed"] * 4


async def _invoke(model: str) -> None:
    await of_this_loop(model).ainvoke("hi")


async def test_cancelling_a_task_that_waits_gives_its_place_to_another(setting: Setting) -> None:
    async def ask() -> None:
        with request_context(a_request()):
            await of_this_loop("slow").ainvoke("hi")

    tasks = [asyncio.create_task(ask()) for _ in range(4)]
    while setting.api.inside < 2:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
    with request_context(a_request(20.0)):
        assert (await of_this_loop("big").ainvoke("hi")).content == "hosted: hi"
        first, second = await asyncio.gather(*(of_this_loop("big").ainvoke(text) for text in "ab"))
    assert (first.content, second.content) == ("hosted: a", "hosted: b")


async def test_synchronous_calls_on_the_chains_loop_let_each_other_run(setting: Setting) -> None:
    setting.api.delay_s = 0.3

    async def call() -> str:
        return str(chat("big").invoke("hi").content)

    loop = ChainLoop()
    try:
        answers = await asyncio.gather(*(loop.run(call) for _ in range(2)))
    finally:
        await asyncio.to_thread(loop.close)
    assert answers == ["hosted: hi"] * 2
    assert setting.api.most == 2
