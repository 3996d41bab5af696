"""Iterating with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")


async def until_deadline(items: AsyncIterable[T], remaining_s: Callable[[], float | None]) -> AsyncIterator[T]:
    """The items; TimeoutError when the next one is not there before ``remaining_s()`` has run out (None: no limit).

    Each wait has its own timeout: one ``asyncio.timeout`` around a ``yield`` would cancel whichever task happens to iterate.
    Does not close ``items``.
    """
    iterator = aiter(items)
    while True:
        try:
            async with asyncio.timeout(remaining_s()):
                item = await anext(iterator)
        except StopAsyncIteration:
            return
        yield item
