from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator

import pytest

from patchwork_adapters.errors import DeadlinePassed, RequestCancelled
from patchwork_serving.gateway.faults import NotReady, RequestRefused, RunIdTaken
from patchwork_serving.gateway.runs import Mailbox, Run, RunRegistry

CONTEXT = contextvars.Context


def started(registry: RunRegistry, run_id: str, release: asyncio.Event, seconds: float = 60.0) -> Run:
    async def work() -> str:
        await release.wait()
        return f"value of {run_id}"

    run = registry.open((run_id,))
    run.start(work(), seconds, CONTEXT())
    return run


async def test_a_run_ends_with_its_value_and_is_forgotten() -> None:
    registry, release = RunRegistry(8), asyncio.Event()
    run = started(registry, "a", release)
    release.set()
    assert await run.value() == "value of a"
    await run.ended()
    assert len(registry) == 0


async def test_a_cancelled_run_tells_its_waiter_and_stops_its_work() -> None:
    registry = RunRegistry(8)
    run = started(registry, "a", asyncio.Event())
    assert registry.cancel("a")
    with pytest.raises(RequestCancelled):
        await run.value()
    await run.ended()
    assert not registry.cancel("a")


async def test_a_waiter_does_not_wait_for_work_that_is_slow_to_end() -> None:
    registry, release = RunRegistry(8), asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    run = registry.open(("a",))
    run.start(stubborn(), 60.0, CONTEXT())
    await asyncio.sleep(0)
    registry.cancel("a")
    with pytest.raises(RequestCancelled):
        await run.value()
    assert len(registry) == 1, "it still holds resources, so that it still counts"
    release.set()
    await run.ended()
    assert len(registry) == 0


async def test_a_run_past_its_deadline_is_stopped() -> None:
    run = started(RunRegistry(8), "a", asyncio.Event(), seconds=0.0)
    with pytest.raises(DeadlinePassed):
        await run.value()


async def test_a_run_that_cancels_itself_is_not_mistaken_for_its_caller_being_cancelled() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    run = RunRegistry(8).open(("a",))
    run.start(work(), 60.0, CONTEXT())
    with pytest.raises(RequestCancelled):
        await run.value()


async def test_chunks_arrive_in_order_and_then_the_end() -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(200):  # more than a mailbox holds
            yield n

    run = RunRegistry(8).open(("a",))
    run.start_stream(numbers, 60.0, CONTEXT())
    taken: list[int] = []
    while (chunks := await run.next_chunks(None)) is not None:
        taken += chunks
    assert taken == list(range(200))


async def test_a_stream_that_fails_gives_its_chunks_first() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    run = RunRegistry(8).open(("a",))
    run.start_stream(broken, 60.0, CONTEXT())
    assert await run.next_chunks(None) == [1]
    with pytest.raises(ValueError, match="broken"):
        await run.next_chunks(None)


async def test_stopping_a_stream_closes_its_iterator() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    run = RunRegistry(8).open(("a",))
    run.start_stream(endless, 60.0, CONTEXT())
    await run.next_chunks(None)
    run.stop(RequestCancelled("gone"))
    await run.ended()
    assert closed.is_set()
    with pytest.raises(RequestCancelled):
        await run.next_chunks(None)


async def test_silence_is_not_the_end() -> None:
    box = Mailbox()
    assert await box.take(0.0) == []
    assert not box.closed


async def test_a_full_mailbox_makes_the_writer_wait() -> None:
    box = Mailbox(size=1)
    await box.put(1)
    second = asyncio.create_task(box.put(2))
    await asyncio.sleep(0)
    assert not second.done()
    assert await box.take(None) == [1]
    await second
    assert await box.take(None) == [2]


async def test_run_ids_are_unique_among_those_in_flight() -> None:
    registry = RunRegistry(8)
    run = registry.open(("a", "b"))
    for ids in (("b",), ("c", "c")):
        with pytest.raises(RunIdTaken):
            registry.open(ids)
    registry.discard(run)
    registry.open(("b",))


async def test_more_runs_than_allowed_are_refused() -> None:
    registry = RunRegistry(1)
    registry.open(("a",))
    with pytest.raises(RequestRefused) as refused:
        registry.open(("b",))
    assert refused.value.retry_after_s > 0


async def test_draining_waits_for_runs_and_takes_no_new_ones() -> None:
    registry, release = RunRegistry(8), asyncio.Event()
    run = started(registry, "a", release)
    draining = asyncio.create_task(registry.drain(60.0))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        registry.open(("b",))
    release.set()
    assert await draining == 0
    assert await run.value() == "value of a"


async def test_draining_cancels_what_does_not_end_in_time() -> None:
    registry = RunRegistry(8)
    run = started(registry, "a", asyncio.Event())
    assert await registry.drain(0.0) == 1
    with pytest.raises(RequestCancelled):
        await run.value()
