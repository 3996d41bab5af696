"""Coalescing of token streams (design D9): what a stream begins with leaves at once, later frames travel together.

Streaming token by token through a Serve handle costs 20-29 % of an engine's throughput at 64-128 concurrent requests, because every
frame is a remote call; frames that wait a few milliseconds for each other cost little and nobody sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable


async def coalesce(frames: AsyncIterator[bytes], pause_s: Callable[[int], float]) -> AsyncIterator[tuple[bytes, ...]]:
    """Groups of frames in order. After group number n (the first is 1), what arrives within ``pause_s(n)`` seconds makes one group.

    A frame that comes later than that leaves at once, and the last ones do not wait. Closing this iterator closes ``frames``, which
    aborts the work behind it.
    """
    buffer: list[bytes] = []
    arrived = asyncio.Event()
    sent = 0

    async def pump() -> None:
        async for frame in frames:
            buffer.append(frame)
            arrived.set()

    task = asyncio.create_task(pump())
    task.add_done_callback(lambda _: arrived.set())
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            if buffer:
                group = tuple(buffer)
                buffer.clear()
                sent += 1
                yield group
            if task.done():
                if buffer:  # they came while the group was on its way
                    yield tuple(buffer)
                await task  # raises what the engine raised
                return
            if (seconds := pause_s(sent)) > 0:
                await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        await asyncio.wait({task})
        close = getattr(frames, "aclose", None)
        if close is not None:
            await close()
