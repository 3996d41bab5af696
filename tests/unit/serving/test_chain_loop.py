"""The loop that user code runs on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import pytest

from patchwork_serving.chain_loop import WAITING_ITEMS, ChainLoop

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


async def test_under_load_items_are_handed_over_together_and_the_end_does_not_wait(
    loop: ChainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = paused_for(3600.0, monkeypatch)
    begun = threading.Event()

    async def source() -> AsyncIterator[int]:
        yield 0
        await asyncio.to_thread(begun.wait)
        for number in range(1, 20):
            yield number
            await asyncio.sleep(0)

    found = []
    async for item in loop.iterate(source):
        found.append(item)
        begun.set()
    assert found == list(range(20))
    assert len(pauses) <= 1  # what came after the first was taken when the stream ended, all of it


async def test_a_stream_that_fails_while_items_gather_gives_them_and_then_its_error(
    loop: ChainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused_for(3600.0, monkeypatch)

    async def source() -> AsyncIterator[int]:
        yield 0
        await asyncio.sleep(0)
        yield 1
        raise ValueError("broken")

    found = []
    with pytest.raises(ValueError, match="broken"):
        async for item in loop.iterate(source):
            found.append(item)
    assert found == [0, 1]


async def test_a_chain_that_has_to_wait_for_its_reader_ends_the_gathering(
    loop: ChainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused_for(3600.0, monkeypatch)

    async def source() -> AsyncIterator[int]:
        for number in range(5 * WAITING_ITEMS):
            yield number

    assert [item async for item in loop.iterate(source)] == list(range(5 * WAITING_ITEMS))


async def test_a_reader_that_leaves_no_longer_counts_as_a_stream(
    loop: ChainLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = paused_for(0.0, monkeypatch)

    async def source() -> AsyncIterator[int]:
        yield 0
        await asyncio.Event().wait()

    for _ in range(2):
        items = loop.iterate(source)
        await anext(items)
        reading = asyncio.create_task(anext(items))  # type: ignore[arg-type]
        while not pauses:
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        assert pauses.pop() == (1, 1)


def paused_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every pause takes so long; with how many streams, and after which of its bursts, each was asked for."""
    asked: list[tuple[int, int]] = []

    def pause_s(streams: int, sent: int) -> float:
        asked.append((streams, sent))
        return seconds

    monkeypatch.setattr("patchwork_serving.chain_loop.pause_s", pause_s)
    return asked
