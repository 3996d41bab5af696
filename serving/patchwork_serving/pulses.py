"""Listens whether replicas that owe an answer live: the I/O of ``patchwork_scheduler.heartbeat``.

A task that runs while calls are outstanding at components with several replicas, and a small call to each replica that is silent. One
question at a time: a replica that hangs is asked once, and its answer, when it goes on, is its first sign of life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from patchwork_scheduler.heartbeat import TICK_S
from patchwork_serving.scheduling import Asking, Scheduling
from patchwork_serving.wire import Pulse

log = logging.getLogger(__name__)


class Pulses:
    """``take`` asks one replica; it may wait as long as it likes, and raise. Used on one event loop."""

    def __init__(
        self, scheduling: Scheduling, take: Callable[[Asking], Awaitable[bytes]], clock: Callable[[], float]
    ) -> None:
        self._scheduling = scheduling
        self._take = take
        self._clock = clock
        self._listening: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """A call goes out: listen until nothing is outstanding. Cheap to repeat."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(), name="patchwork-pulses")

    async def _listen(self) -> None:
        again = True
        while again:
            await asyncio.sleep(TICK_S)  # what is answered at once is asked by nobody
            askings, again = self._scheduling.listen(self._clock())
            for asking in askings:
                task = asyncio.create_task(self._ask(asking))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask(self, asking: Asking) -> None:
        try:
            pulse: Pulse | None = Pulse.from_bytes(await self._take(asking))
        except Exception as error:  # noqa: BLE001  whatever went wrong, nothing was heard
            log.debug("%s did not give its pulse: %s", asking.replica, type(error).__name__)
            pulse = None
        self._scheduling.pulsed(asking, pulse, self._clock())
