"""Coalescing of token streams (design D9): the first frame leaves at once, later ones travel together.

Streaming token by token through a Serve handle costs 20-29 % of an engine's throughput at 64-128 concurrent requests, because every
frame is a remote call; frames that wait a few milliseconds for each other cost little and nobody sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable


async def coalesce(frames: AsyncIterator[bytes], interval_s: Callable[[], float]) -> AsyncIterator[tuple[bytes, ...]]:
    """Groups of frames in order: the first frame alone, then whatever arrived within ``interval_s()`` seconds.

    Closing this iterator closes ``frames``, which aborts the work behind it.
    """
    buffer: list[bytes] = []
    arrived = asyncio.Event()
    done = False

    async def pump() -> None:
        nonlocal done
        try:
            async for frame in frames:
                buffer.append(frame)
                arrived.set()
        finally:
            done = True
            arrived.set()

    task = asyncio.create_task(pump())
    first = True
    try:
        while True:
            await arrived.wait()
            if not first and not done:
                await asyncio.wait({task}, timeout=interval_s())
            first = False
            arrived.clear()
            if buffer:
                group = tuple(buffer)
                buffer.clear()
                yield group
            if done and not buffer:
                await task  # raises what the engine raised
                return
            if done:
                arrived.set()
    finally:
        task.cancel()
        await asyncio.wait({task})
        close = getattr(frames, "aclose", None)
        if close is not None:
            await close()
