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
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from patchwork_adapters.bridge import install_portal
from patchwork_adapters.flight import Inbox
from patchwork_serving.pacing import pause_s

T = TypeVar("T")

EXECUTOR_THREADS = 128
#: Items of a stream that its reader has not taken, before the chain waits.
WAITING_ITEMS = 64


@dataclass(frozen=True, slots=True)
class _End:
    """Behind the last item: how the stream ended."""

    error: BaseException | None


class _Hurry:
    """Tells a reader that gathers, from another thread, to gather no longer. Made on the reader's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the reader's loop has closed
            self._loop.call_soon_threadsafe(self._told.set)

    async def or_after(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._told.wait()
        self._told.clear()


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
        self._streams = 0  # iterators that are read; counted on their readers' loop, which is one

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

        Under load, items are handed over several at a time (``pacing``): waking the reader for each would cost more than most of them do.
        At most a few items wait here: a reader that is slow slows the chain, and does not fill the memory.
        """
        items: Inbox[tuple[T | None, _End | None]] = Inbox()
        room = threading.Semaphore(WAITING_ITEMS)
        hurry = _Hurry()

        async def pump() -> None:
            end = _End(None)
            try:
                async with contextlib.aclosing(source()) as iterator:  # type: ignore[type-var]
                    async for item in iterator:
                        while not room.acquire(blocking=False):
                            hurry()
                            await asyncio.sleep(0.005)
                        items.put((item, None))
            except BaseException as error:
                end = _End(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
            finally:
                items.put((None, end))
                hurry()

        future = asyncio.run_coroutine_threadsafe(_started(pump), self._loop)
        self._streams += 1
        bursts = 0
        try:
            while True:
                await items.arrive(None)
                while items.has_frames():
                    item, end = items.take()
                    if end is not None:
                        if end.error is not None:
                            raise end.error
                        return
                    room.release()
                    yield cast(T, item)
                bursts += 1
                await hurry.or_after(pause_s(self._streams, bursts))
        finally:
            self._streams -= 1
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
