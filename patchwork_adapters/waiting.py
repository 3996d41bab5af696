"""Waiting for a thread, in synchronous code on an event loop whose tasks have portals: the loop's other tasks run meanwhile.

Frameworks wait that way inside asynchronous methods: LlamaIndex's ``asyncio_run``, a synchronous ``RunnableParallel`` or graph.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, _base
from types import FrameType
from typing import Any, TypeVar

from patchwork_adapters.portal import has_portal, portal_await

T = TypeVar("T")

#: Whose waiting for threads yields. Not everybody's: a user's function that waits while it holds a lock would let another request of the
#: same thread run into that lock.
_WAITERS = ("langchain", "langgraph", "llama_index", "workflows")


def let_waits_yield() -> None:
    """From now on ``Future.result``, ``wait`` and the end of a pool let other tasks run, where tasks have portals; elsewhere not."""
    blocking, joining = Future.result, ThreadPoolExecutor.shutdown
    waiting = _base._create_and_install_waiters  # type: ignore[attr-defined]
    if getattr(blocking, "_patchwork", False):
        return

    @functools.wraps(blocking)
    def result(self: Future[Any], timeout: float | None = None) -> Any:
        if not self.done() and on_loop_with_portal() and _asked_by_framework():
            with contextlib.suppress(TimeoutError):  # raised below, as the class that the caller expects
                portal_await(_ended(self, timeout))
            timeout = 0 if timeout is not None else None
        return blocking(self, timeout)

    @functools.wraps(joining)
    def shutdown(self: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and on_loop_with_portal() and _asked_by_framework():
            joining(self, wait=False, cancel_futures=cancel_futures)
            in_thread(lambda: joining(self, wait=True))
        else:
            joining(self, wait=wait, cancel_futures=cancel_futures)

    def install_waiters(fs: Any, return_when: str) -> Any:
        """Of ``concurrent.futures.wait``, which modules hold by name."""
        waiter = waiting(fs, return_when)
        if on_loop_with_portal() and _asked_by_framework():
            waiter.event = _Yielding(waiter.event)
        return waiter

    result._patchwork = True  # type: ignore[attr-defined]
    _base._create_and_install_waiters = install_waiters  # type: ignore[attr-defined]
    Future.result = result  # type: ignore[method-assign]
    ThreadPoolExecutor.shutdown = shutdown  # type: ignore[method-assign, assignment]


class _Yielding:
    """A thread's event that lets the other tasks of the loop run while it is waited for."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def wait(self, timeout: float | None = None) -> bool:
        return in_thread(lambda: self._event.wait(timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)


def _asked_by_framework() -> bool:
    """Whether the caller of our caller, past the standard library's own steps (``with``, ``map``), is a framework's code."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("concurrent.futures"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith(_WAITERS)


async def _ended(future: Future[Any], timeout_s: float | None) -> None:
    """Waits without taking the outcome; leaving early does not cancel the future, which the caller may not own."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(tell)
    async with asyncio.timeout(timeout_s):
        await ended.wait()


def in_thread(work: Callable[[], T]) -> T:
    """``work()``, in a thread when this is synchronous code on a loop with a portal: the other tasks of the loop run meanwhile."""
    if not on_loop_with_portal():
        return work()
    result: T = portal_await(asyncio.to_thread(work))
    return result


def on_loop_with_portal() -> bool:
    return is_on_loop() and has_portal()


def is_on_loop() -> bool:
    return asyncio._get_running_loop() is not None  # the public one raises, which costs more than the call
