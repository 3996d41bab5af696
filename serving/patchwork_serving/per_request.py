"""How many leaf calls of one request are under way at once: the others wait for their turn, in the order in which they were made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Turns:
    places: asyncio.Semaphore
    users: int = 0


class CallsPerRequest:
    """Used on one event loop. ``most``: of each request; None: as many as its chain makes."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._turns: dict[str, _Turns] = {}

    def __len__(self) -> int:
        """Requests that have calls under way or waiting."""
        return len(self._turns)

    @asynccontextmanager
    async def place(self, run_id: str) -> AsyncIterator[None]:
        """A place among the calls of the request, held inside; calls of no request (an empty id) need none."""
        if self._most is None or not run_id:
            yield
            return
        turns = self._turns.setdefault(run_id, _Turns(asyncio.Semaphore(self._most)))
        turns.users += 1
        try:
            async with turns.places:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._turns[run_id]
