"""Equal work in flight is done once: who asks for what is already under way waits for it too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from patchwork_adapters.errors import DeadlinePassed

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    key: Hashable
    task: asyncio.Task[T]
    group: Hashable
    due: float
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Used on one event loop. Work is cancelled when the last of those who wait for it has left."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(
        self, key: Hashable, due: float, work: Callable[[], Coroutine[Any, Any, T]], *, group: Hashable = None
    ) -> tuple[T, bool]:
        """The result of ``work``, or of equal work under way, and whether it was our own.

        ``due``: when it is needed. Work begun for somebody who needs it later is not waited for: it may stand behind others in a queue.
        """
        while True:
            flight, mine = self._flights.get(key), False
            if flight is None or flight.due > due:
                flight, mine = self._begin(key, due, work, group), True
            try:
                return await self._wait(flight), mine
            except DeadlinePassed:
                if mine:
                    raise
                # that of the one who began it, who had less time than we have; our own ends us from outside
            except asyncio.CancelledError:
                if mine or _is_cancelled():
                    raise
                # the work was ended from inside, with the request of the one who began it, or with its replica

    def detach(self, group: Hashable) -> None:
        """What is asked for from now on must not be answered by work of this group that is under way: its data change."""
        for key in [key for key, flight in self._flights.items() if flight.group == group]:
            del self._flights[key]

    def _begin(
        self, key: Hashable, due: float, work: Callable[[], Coroutine[Any, Any, T]], group: Hashable
    ) -> _Flight[T]:
        flight = self._flights[key] = _Flight(key, asyncio.create_task(work()), group, due)

        def over(task: asyncio.Task[T]) -> None:
            self._forget(flight)
            if not task.cancelled():
                task.exception()  # read it, or asyncio complains when all who waited have left

        flight.task.add_done_callback(over)
        return flight

    async def _wait(self, flight: _Flight[T]) -> T:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._forget(flight)  # before it has ended: nobody may join work that is being cancelled
                flight.task.cancel()  # does nothing when it is done

    def _forget(self, flight: _Flight[T]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


def _is_cancelled() -> bool:
    """Whether it is the caller itself that somebody cancels."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
