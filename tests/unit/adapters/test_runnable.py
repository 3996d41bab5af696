"""The drop-in wrappers over components in memory: same results as the plain chain, and the plain chain stays as it was."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda

from patchwork_adapters import PatchworkRunnable, connection
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.connection import Steps, astepwise, deployed_here, parse_slo
from patchwork_adapters.context import REQUEST
from patchwork_adapters.errors import DeadlinePassed, MissingPackage
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.stores import export, fingerprint
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves

from .fakes import FakeCluster

FILES = Path(__file__).parent / "chains"
QUESTIONS = ["one", "two", "three"]


class InMemory:
    """A connection whose components are a FakeCluster; ``calls`` are those that went to it."""

    def __init__(self, chain: Any, components: FakeCluster) -> None:
        self.cluster = components
        self.bridge = Bridge(components)
        self.closed = 0
        self.swap: Swap = self._swap(chain)

    def _swap(self, chain: Any) -> Swap:
        assignments = {}
        leaves = find_leaves(chain).leaves
        for leaf in leaves:
            if leaf.spec.export is None:
                assignments[leaf.path] = Assignment(leaf.kind, "protocol")
                continue
            rows = [row.to_dict() for row in export(leaf.spec, leaf.obj).rows]
            self.cluster._add({"collection": "c", "rows": rows})
            assignments[leaf.path] = Assignment("store", "engine", "c", fingerprint(leaf.spec, leaf.obj))
        return swap(leaves, assignments, self.bridge, always=False)

    @property
    def calls(self) -> list[LeafCall]:
        return self.cluster.calls

    def active(self) -> AbstractContextManager[None]:
        return self.swap.active()

    def trace(self) -> AbstractContextManager[str | None]:
        return nullcontext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

    def close(self) -> None:
        self.closed += 1
        self.swap.undo()
        self.bridge.close()


class Here:
    """The components in memory that wrappers of this test are connected to."""

    def __init__(self) -> None:
        self.made: list[InMemory] = []

    def __call__(self, chain: Any, *, name: str | None, slo_s: float | None) -> InMemory:
        self.made.append(InMemory(chain, FakeCluster()))
        return self.made[-1]

    @property
    def last(self) -> InMemory:
        return self.made[-1]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    made = Here()
    monkeypatch.setattr(connection, "entry_points", lambda group: [SimpleNamespace(load=lambda: made)])
    yield made
    for one in made.made:
        one.close()


def module(name: str) -> ModuleType:
    """A chain's module as its own program has it: its models answer wherever they are, in this test from a server in memory."""
    path = list(sys.path)
    sys.modules.pop(Path(name).stem, None)
    try:
        return load_target(parse_target(str(FILES / name))).module
    finally:
        sys.path[:] = path
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture
def plain_server() -> Iterator[FakeCluster]:
    """Answers the clients of plain chains, as the server at their URL would."""
    server = FakeCluster()
    with Bridge(server) as bridge:
        cut = OpenAICut(bridge, lambda base_url, path, model: "server")
        cut.install()
        yield server
        cut.undo()


@pytest.fixture
def chain(plain_server: FakeCluster) -> Runnable[Any, Any]:
    found: Runnable[Any, Any] = module("openai_lcel.py").chain
    return found


async def everything(chain: Runnable[Any, Any]) -> dict[str, Any]:
    """What the chain gives in each mode; runs the synchronous modes in threads, as programs with a loop do."""
    return {
        "invoke": await asyncio.to_thread(chain.invoke, "one"),
        "ainvoke": await chain.ainvoke("one"),
        "batch": await asyncio.to_thread(chain.batch, QUESTIONS),
        "batch_as_completed": sorted(await asyncio.to_thread(lambda: list(chain.batch_as_completed(QUESTIONS)))),
        "abatch": await chain.abatch(QUESTIONS),
        "stream": await asyncio.to_thread(lambda: list(chain.stream("two"))),
        "astream": [chunk async for chunk in chain.astream("two")],
        # parallel branches report in the order of their speed
        "events": sorted([(e["event"], e["name"]) async for e in chain.astream_events("two", version="v2")]),
    }


async def test_every_mode_gives_what_the_plain_chain_gives_and_only_the_wrapper_asks_components(
    here: Here, chain: Runnable[Any, Any], plain_server: FakeCluster
) -> None:
    plain = await everything(chain)
    wrapped = PatchworkRunnable(chain)
    before = len(plain_server.calls)
    assert await everything(wrapped) == plain
    assert len(plain_server.calls) == before
    asked = len(here.last.calls)
    assert {call.component for call in here.last.calls} == {"llm", "embedder", "store"}
    assert chain.invoke("one") == plain["invoke"]
    assert (len(plain_server.calls), len(here.last.calls)) == (before + 2, asked)
    wrapped.close()
    assert await everything(chain) == plain
    assert len(here.last.calls) == asked


def test_it_composes_and_passes_its_config_on(here: Here, chain: Runnable[Any, Any]) -> None:
    wrapped = PatchworkRunnable(chain)
    plain = chain.invoke("one")
    assert (RunnableLambda(str.strip) | wrapped | str.upper).invoke(" one ") == plain.upper()
    assert list((wrapped | str.upper).stream("one")) == ["".join(chain.stream("one")).upper()]
    seen: list[str] = []
    tagged = wrapped.with_config(tags=["mine"])
    tagged.invoke("one", {"callbacks": [_TagsOf(seen)]})
    assert seen
    assert set(seen) == {"mine"}
    assert len(wrapped.get_graph().nodes) == len(chain.get_graph().nodes)
    assert wrapped.input_schema.model_json_schema() == chain.input_schema.model_json_schema()


async def test_each_call_is_one_request_with_the_deadline_of_the_slo(here: Here, chain: Runnable[Any, Any]) -> None:
    wrapped = PatchworkRunnable(chain, slo="5s")
    wrapped.invoke("one")
    await wrapped.ainvoke("two")
    [_ async for _ in wrapped.astream("three")]
    requests = [call.request for call in here.last.calls]
    assert all(r is not None and r.deadline is not None and r.traceparent is not None for r in requests)
    assert len({r.request_id for r in requests if r is not None}) == 3
    assert REQUEST.get() is None


@pytest.mark.parametrize("mode", ["invoke", "batch", "stream", "ainvoke", "abatch", "astream"])
async def test_a_deadline_that_passes_is_raised_in_every_mode_and_starts_no_fallback(
    here: Here, chain: Runnable[Any, Any], mode: str
) -> None:
    wrapped = PatchworkRunnable(chain, slo="100ms")
    wrapped.connect()
    here.last.cluster.delay_s = 5.0
    fallback: list[str] = []
    with_fallback = wrapped.with_fallbacks([RunnableLambda(fallback.append)])
    calls: dict[str, Callable[[], Any]] = {
        "invoke": lambda: asyncio.to_thread(with_fallback.invoke, "one"),
        "batch": lambda: asyncio.to_thread(with_fallback.batch, QUESTIONS),
        "stream": lambda: asyncio.to_thread(lambda: list(with_fallback.stream("one"))),
        "ainvoke": lambda: with_fallback.ainvoke("one"),
        "abatch": lambda: with_fallback.abatch(QUESTIONS),
        "astream": lambda: _collected(with_fallback.astream("one")),
    }
    with pytest.raises(DeadlinePassed):
        await calls[mode]()
    assert fallback == []
    assert chain.invoke("one")  # the plain chain has no deadline


async def test_leaving_a_stream_cancels_the_work_behind_it(here: Here, plain_server: FakeCluster) -> None:
    loaded = module("openai_lcel.py")

    async def cancelled() -> list[str]:
        for _ in range(100):
            if here.last.cluster.cancelled:
                break
            await asyncio.sleep(0.02)
        return here.last.cluster.cancelled

    whole = PatchworkRunnable(loaded.chain).connect()
    here.last.cluster.delay_s = 0.05
    chunks = whole.astream("a b c d e f g")
    async for _ in chunks:
        break
    await chunks.aclose()  # type: ignore[attr-defined]
    assert await cancelled() == ["POST /v1/chat/completions"]
    whole.close()
    # a sequence of LangChain's that is left in the middle of a synchronous stream lets its model finish, wrapped or not
    model = PatchworkRunnable(loaded.llm).connect()
    here.last.cluster.delay_s = 0.05
    for _ in model.stream("a b c d e f g"):
        break
    assert await cancelled() == ["POST /v1/chat/completions"]


async def test_connecting_leaves_the_event_loop_free_and_happens_once(
    here: Here, chain: Runnable[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(chain: Any, *, name: str | None, slo_s: float | None) -> InMemory:
        entered.set()
        assert go_on.wait(10)
        return here(chain, name=name, slo_s=slo_s)

    monkeypatch.setattr(connection, "entry_points", lambda group: [SimpleNamespace(load=lambda: slow)])
    wrapped = PatchworkRunnable(chain)
    tasks = [asyncio.create_task(wrapped.ainvoke(q)) for q in QUESTIONS]
    while not entered.is_set():  # this loop runs on while a thread connects
        await asyncio.sleep(0.01)
    go_on.set()
    assert len(await asyncio.gather(*tasks)) == 3
    assert len(here.made) == 1


def test_a_store_that_is_written_to_is_searched_where_it_is_from_then_on(
    here: Here, plain_server: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = module("openai_lcel.py")
    wrapped = PatchworkRunnable(loaded.store.as_retriever(search_kwargs={"k": 21}))
    assert len(wrapped.invoke("x")) == 20
    assert [c.component for c in here.last.calls] == ["embedder", "store"]
    loaded.store.add_documents([Document("a new one", id="new")])
    found = wrapped.invoke("x")
    assert "new" in {document.id for document in found}
    assert [c.component for c in here.last.calls] == ["embedder", "store", "embedder"]
    assert "was written to" in caplog.text


def test_it_can_be_closed_twice_and_connects_again_when_it_is_used(here: Here, chain: Runnable[Any, Any]) -> None:
    with PatchworkRunnable(chain) as wrapped:
        plain = wrapped.invoke("one")
    wrapped.close()
    assert here.last.closed == 1
    assert wrapped.invoke("one") == plain
    assert len(here.made) == 2


def test_in_a_deployed_module_a_wrapper_starts_nothing(here: Here, chain: Runnable[Any, Any]) -> None:
    undo = deployed_here()
    try:
        assert PatchworkRunnable(chain).invoke("one") == chain.invoke("one")
    finally:
        undo()
    assert here.made == []


def test_without_a_connector_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, chain: Runnable[Any, Any]) -> None:
    monkeypatch.setattr(connection, "entry_points", lambda group: [])
    with pytest.raises(MissingPackage, match="pip install"):
        PatchworkRunnable(chain).invoke("one")


@pytest.mark.parametrize(
    ("slo", "seconds"), [("500ms", 0.5), ("2s", 2.0), ("1m", 60.0), ("3", 3.0), (2, 2.0), (None, None)]
)
def test_durations(slo: Any, seconds: float | None) -> None:
    assert parse_slo(slo) == seconds


@pytest.mark.parametrize("slo", ["soon", "-1s", 0, "inf", "1h30"])
def test_what_is_no_duration_is_refused(slo: Any) -> None:
    with pytest.raises(ValueError, match="slo"):
        parse_slo(slo)


async def test_a_query_engine_answers_the_same_whole_and_as_a_stream(here: Here, plain_server: FakeCluster) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    from patchwork_adapters import PatchworkQueryEngine

    loaded = module("openai_llama.py")
    streaming = loaded.index.as_query_engine(llm=loaded.llm, streaming=True)
    for plain in (loaded.query_engine, streaming):
        expected = str(await asyncio.to_thread(plain.query, "one"))
        wrapped = PatchworkQueryEngine(plain, slo="5s")
        before = len(plain_server.calls)
        assert str(await asyncio.to_thread(wrapped.query, "one")) == expected
        answer = await wrapped.aquery("one")
        if plain is streaming:
            assert "".join([token async for token in answer.async_response_gen()]) == expected
        else:
            assert str(answer) == expected
        nodes = wrapped.retrieve(_bundle("one"))
        assert len(plain_server.calls) == before
        assert [n.node_id for n in nodes] == [n.node_id for n in plain.retrieve(_bundle("one"))]
        requests = {call.request.request_id for call in here.last.calls if call.request}
        assert len(requests) == 3
        assert REQUEST.get() is None
        wrapped.close()


def test_a_streamed_answer_of_a_query_engine_is_part_of_the_request_that_began_it(
    here: Here, plain_server: FakeCluster
) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    from patchwork_adapters import PatchworkQueryEngine

    loaded = module("openai_llama.py")
    wrapped = PatchworkQueryEngine(loaded.index.as_query_engine(llm=loaded.llm, streaming=True), slo="300ms")
    response = wrapped.query("one")
    here.last.cluster.delay_s = 5.0
    with pytest.raises(DeadlinePassed):
        "".join(response.response_gen)


async def test_an_error_in_the_middle_of_a_stream_arrives_after_the_chunks_before_it(here: Here) -> None:
    class Broke(Exception):
        pass

    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise Broke

    got = []
    with pytest.raises(Broke):
        async for item in astepwise(InMemory(RunnableLambda(str), FakeCluster()), None, source):
            got.append(item)
    assert got == [1, 2]


def test_the_parts_of_a_request_share_a_context_and_leave_nothing_in_the_readers(here: Here) -> None:
    request = Steps(InMemory(RunnableLambda(str), FakeCluster()), 5.0)
    first = request.run(REQUEST.get)
    assert first is not None
    (second,) = request.iterate(lambda: (REQUEST.get() for _ in range(1)))
    assert second is first
    assert REQUEST.get() is None


async def _collected(chunks: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks]


def _bundle(text: str) -> Any:
    from llama_index.core import QueryBundle

    return QueryBundle(text)


def _TagsOf(seen: list[str]) -> Any:
    from langchain_core.callbacks import BaseCallbackHandler

    class TagsOf(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, tags: list[str] | None = None, **kwargs: Any) -> None:
            seen.extend(tag for tag in tags or () if not tag.startswith("seq:"))

    return TagsOf()
