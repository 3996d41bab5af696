"""Equal work in flight is done once; whose end is whose."""

from __future__ import annotations

import asyncio

import pytest

from patchwork_serving.single_flight import SingleFlight


class Work:
    """Counts how often it is begun; ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.tasks: list[asyncio.Task[str]] = []
        self.end = asyncio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        await self.end.wait()
        return "done"


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_work_that_is_cancelled_from_inside_is_begun_anew_by_those_who_wait() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    asking = [asyncio.create_task(flights.run("key", 1.0, work)) for _ in range(3)]
    await turns()
    assert work.begun == 1
    work.tasks[0].cancel()  # as Ray does with what a request began, when that ends
    await turns()
    assert (work.begun, len(flights)) == (2, 1)
    work.end.set()
    first, *others = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)  # it was its own work, and somebody wanted that ended
    assert sorted(others, key=str) == [("done", False), ("done", True)]


async def test_one_who_leaves_leaves_alone() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    asking = [asyncio.create_task(flights.run("key", 1.0, work)) for _ in range(2)]
    await turns()
    asking[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking[1]
    work.end.set()
    assert await asking[0] == ("done", True)
    assert work.begun == 1
