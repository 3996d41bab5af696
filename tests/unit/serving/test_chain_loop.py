"""The loop that user code runs on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import pytest

from patchwork_serving.chain_loop import ChainLoop

WHO: ContextVar[str] = ContextVar("who", default="nobody")


@pytest.fixture
def loop() -> Iterator[ChainLoop]:
    built = ChainLoop()
    yield built
    built.close()
    built.close()


async def test_work_runs_on_its_own_thread_with_the_callers_context(loop: ChainLoop) -> None:
    async def work() -> tuple[str, str]:
        return threading.current_thread().name, WHO.get()

    WHO.set("me")
    assert await loop.run(work) == ("patchwork-chain-loop", "me")


async def test_cancelling_the_caller_cancels_the_work(loop: ChainLoop) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(loop.run(work))
    await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, 5)


async def test_items_arrive_in_order_and_errors_after_them(loop: ChainLoop) -> None:
    async def source() -> AsyncIterator[int]:
        for i in range(200):
            yield i
        raise KeyError("end")

    seen: list[int] = []
    with pytest.raises(KeyError):
        async for item in loop.iterate(source):
            seen.append(item)
    assert seen == list(range(200))


async def test_closing_the_iterator_stops_the_source(loop: ChainLoop) -> None:
    stopped = threading.Event()

    async def source() -> AsyncIterator[int]:
        try:
            i = 0
            while True:
                yield i
                i += 1
        finally:
            stopped.set()

    items = loop.iterate(source)
    assert await anext(items) == 0
    await items.aclose()  # type: ignore[attr-defined]
    assert await asyncio.to_thread(stopped.wait, 5)
