"""A deadline, or a cancelled request, ends the run: no fallback, retry or error handler of the user's takes it for a failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypedDict

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from kit.twins import leaf_of
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.errors import DeadlinePassed, RequestCancelled, RequestStopped
from patchwork_adapters.swap import swap
from patchwork_adapters.transport import LeafCall


class Model(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "model"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("said"))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("said"))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        yield ChatGenerationChunk(message=AIMessageChunk("said"))


class Stopping:
    """Counts calls; carries none out: the request is stopped while it waits."""

    def __init__(self) -> None:
        self.error: BaseException = DeadlinePassed("late")
        self.calls = 0

    async def call(self, call: LeafCall) -> bytes:
        self.calls += 1
        raise self.error

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.calls += 1
        raise self.error
        yield b""


class State(TypedDict, total=False):
    said: str


def graph(model: Model, failed: Callable[[Any], Any]) -> Any:
    def ask(state: State) -> State:
        return {"said": model.invoke("x").text}

    builder = StateGraph(State)
    builder.add_node("ask", ask, retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.001, retry_on=Exception))
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile().with_fallbacks([RunnableLambda(failed)])


CHAINS: dict[str, Callable[[Model, Callable[[Any], Any]], Any]] = {
    "fallbacks": lambda model, failed: model.with_fallbacks([RunnableLambda(failed)]),
    "retries": lambda model, failed: model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False),
    "both, in parallel": lambda model, failed: RunnableParallel(
        a=model.with_retry().with_fallbacks([RunnableLambda(failed)])
    ),
    "a graph's retries": graph,
}


def run(chain: Any, mode: str, given: Any) -> Any:
    match mode:
        case "invoke":
            return chain.invoke(given)
        case "batch":
            return chain.batch([given])
        case "stream":
            return list(chain.stream(given))
        case "ainvoke":
            return asyncio.run(chain.ainvoke(given))
        case "abatch":
            return asyncio.run(chain.abatch([given]))
        case _:
            return asyncio.run(_read(chain.astream(given)))


async def _read(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


@pytest.mark.parametrize("error", [DeadlinePassed("late"), RequestCancelled("gone")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("mode", ["invoke", "batch", "stream", "ainvoke", "abatch", "astream"])
@pytest.mark.parametrize("name", CHAINS)
def test_what_stops_a_request_is_no_failure_of_the_leaf(name: str, mode: str, error: BaseException) -> None:
    failures: list[Any] = []
    model, transport = Model(), Stopping()
    transport.error = error
    leaf = leaf_of(model)
    chain = CHAINS[name](model, failures.append)
    with Bridge(transport) as bridge:
        made = swap([leaf], {leaf.path: Assignment("own", "own")}, bridge)
        with pytest.raises(RequestStopped) as caught:
            run(chain, mode, {} if name.startswith("a graph") else "x")
        made.undo()
    assert type(caught.value) is type(error)
    assert failures == []
    assert transport.calls == 1


def test_a_deadline_that_has_passed_asks_nothing_and_starts_no_fallback() -> None:
    failures: list[Any] = []
    model, transport = Model(), Stopping()
    leaf = leaf_of(model)
    with Bridge(transport) as bridge:
        swap([leaf], {leaf.path: Assignment("own", "own")}, bridge)
        request = RequestContext("r", "r", deadline=time.monotonic() - 1)
        with request_context(request), pytest.raises(DeadlinePassed):
            model.with_fallbacks([RunnableLambda(failures.append)]).invoke("x")
    assert (failures, transport.calls) == ([], 0)
