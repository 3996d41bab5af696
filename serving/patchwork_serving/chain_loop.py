"""The event loop that the user's code runs on: not the server's, so that a chain that blocks it cannot stop health checks.

Every task has a portal (see ``patchwork_adapters.bridge.install_portal``), so that a synchronous leaf call made on the loop lets the other
requests run. Its default executor is large: LangChain runs synchronous parts of asynchronous chains there, and Python's own default is
``cpu_count + 4`` threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from patchwork_adapters.bridge import install_portal

T = TypeVar("T")

EXECUTOR_THREADS = 128
_END = object()


class ChainLoop:
    """Owns the loop and its thread. ``close`` is idempotent."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._executor = ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="patchwork-chain")
        self._loop.set_default_executor(self._executor)
        install_portal(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, name="patchwork-chain-loop", daemon=True)
        self._thread.start()
        self._closed = False

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await ``work()`` on the loop with the caller's context variables; cancelling cancels it there and waits for its end."""
        future = asyncio.run_coroutine_threadsafe(_started(work), self._loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.cancel()
            raise

    async def iterate(self, source: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The items of ``source()``, which runs in one task on the loop; closing this iterator cancels that task.

        At most a few items wait here: a reader that is slow slows the chain, and does not fill the memory.
        """
        here = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()
        room = threading.Semaphore(64)

        def put(item: object) -> None:
            with contextlib.suppress(RuntimeError):  # the reader's loop has closed
                here.call_soon_threadsafe(items.put_nowait, item)

        async def pump() -> None:
            try:
                iterator = source()
                async with contextlib.aclosing(iterator):  # type: ignore[type-var]
                    async for item in iterator:
                        while not room.acquire(blocking=False):  # noqa: ASYNC110  the reader is on another loop
                            await asyncio.sleep(0.005)
                        put(item)
            except BaseException as error:
                put((_END, error))
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                put((_END, None))

        future = asyncio.run_coroutine_threadsafe(_started(pump), self._loop)
        try:
            while True:
                item = await items.get()
                if isinstance(item, tuple) and item and item[0] is _END:
                    if item[1] is not None:
                        raise item[1]
                    return
                room.release()
                yield item
        finally:
            future.cancel()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        if not self._thread.is_alive():
            self._loop.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


async def _started(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # the coroutine is made on the loop, so that code before its first await also sees the loop
    return await work()


async def _cancel_all() -> None:
    tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
