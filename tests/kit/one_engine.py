"""A transport to one engine in this process, for leaves of the ``engine`` way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

from patchwork_adapters.transport import LeafCall
from patchwork_serving.components.engine import ContinuousEngine, EngineCall


class OneEngine:
    """Starts the engine on the transport's loop, at the first call."""

    def __init__(self, engine: ContinuousEngine) -> None:
        self._engine = engine
        self._started: asyncio.Lock | None = None
        self._ids = itertools.count()
        self._ready = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._engine.close(), self._loop).result(timeout=30)

    async def call(self, call: LeafCall) -> bytes:
        frames = [frame async for frame in self.stream(call)]
        (frame,) = frames
        return frame

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self._started = self._started or asyncio.Lock()
        async with self._started:
            if not self._ready:
                self._loop = asyncio.get_running_loop()
                await self._engine.start()
                self._ready = True
        sent = EngineCall(str(next(self._ids)), call.leaf, call.method, call.payload, call.size, stream=call.stream)
        async for frame in self._engine.generate(sent):
            yield frame
