"""Carries leaf calls from wherever the user's code runs to one I/O loop, and back.

A swapped leaf may be called from an event loop, from a worker thread, or synchronously from code that runs *on* an event loop (many
frameworks do that). The transport behind it lives on one loop only. The bridge owns that loop, on a thread of its own, and lets each
caller wait in its own way:

* a thread blocks until the reply is there;
* a coroutine awaits it;
* synchronous code on a loop whose tasks have a portal (:func:`install_portal`) lets the other tasks of the loop run meanwhile.

Nobody waits for what the transport knows already (:class:`~patchwork_adapters.transport.AnswersNow`).

Cancelling the waiter cancels the call; :meth:`Bridge.cancel` frees every waiter of a request; a deadline frees them too.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from patchwork_adapters.context import REQUEST
from patchwork_adapters.errors import ComponentUnavailable, DeadlinePassed, RequestCancelled
from patchwork_adapters.flight import Cancelled, Flight, Frame, Inbox, Limit
from patchwork_adapters.portal import Portal, has_portal, portal_await
from patchwork_adapters.transport import AnswersNow, LeafCall, Transport
from patchwork_adapters.waiting import is_on_loop, let_waits_yield

T = TypeVar("T")


class Bridge:
    """Sync and async calls over one transport. Starts its thread at the first call; ``close`` is idempotent."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._answer_now = transport.answer_now if isinstance(transport, AnswersNow) else None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._inflight: dict[str, set[Flight[Any]]] = {}
        #: thread -> synchronous calls on a loop there that has no portal; each stopped every task of that loop
        self.blocking: Counter[int] = Counter()

    # ---- whole replies

    def call(self, call: LeafCall, timeout_s: float | None = None) -> bytes:
        """The reply. Raises what the transport raises, DeadlinePassed, RequestCancelled, or TimeoutError after ``timeout_s``."""
        if (known := self._known(call)) is not None:
            return known[0]
        return self._do(call, lambda: self._transport.call(call), limit_of(call, timeout_s))

    async def acall(self, call: LeafCall, timeout_s: float | None = None) -> bytes:
        """As :meth:`call`; cancelling the awaiting task cancels the work."""
        if (known := self._known(call)) is not None:
            return known[0]
        return await self._ado(call, lambda: self._transport.call(call), limit_of(call, timeout_s))

    def _known(self, call: LeafCall) -> Sequence[bytes] | None:
        """What the transport answers at once, in this thread; None: it has to be asked on the I/O loop."""
        if self._answer_now is None:
            return None
        if self._closed:
            raise _closed()
        limit_of(call)  # raises
        return self._answer_now(call)

    # ---- any work on the I/O loop

    def do(self, call: LeafCall, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the I/O loop on behalf of a call and wait for it, as long as it takes."""
        return self._do(call, work, None)

    async def ado(self, call: LeafCall, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As :meth:`do`; cancelling the awaiting task cancels the work."""
        return await self._ado(call, work, None)

    def _do(self, call: LeafCall, work: Callable[[], Coroutine[Any, Any, T]], limit: Limit | None) -> T:
        if self._can_yield():
            result: T = portal_await(self._ado(call, work, limit))
            return result
        flight = self._submit(call, work, self._forget, limit)
        try:
            return flight.wait()
        except Cancelled:
            raise _cancelled(call) from None
        except KeyboardInterrupt:
            flight.cancel()
            raise

    async def _ado(self, call: LeafCall, work: Callable[[], Coroutine[Any, Any, T]], limit: Limit | None) -> T:
        try:
            return await self._submit(call, work, self._forget, limit).arrive()
        except Cancelled:
            raise _cancelled(call) from None

    # ---- streams

    def stream(self, call: LeafCall, timeout_s: float | None = None) -> Iterator[bytes]:
        """The reply's frames; closing the iterator cancels the work. ``timeout_s`` bounds the wait for each frame."""
        if (known := self._known(call)) is not None:
            yield from known
            return
        inbox, flight = self._fly(call)
        try:
            while True:
                if not inbox.has_frames():
                    self._wait_for(inbox, call, timeout_s)
                frame, why = inbox.take()
                if frame is None:
                    _raise_end(why, call)
                    return
                yield frame
        finally:
            flight.cancel()

    async def astream(self, call: LeafCall, timeout_s: float | None = None) -> AsyncIterator[bytes]:
        if (known := self._known(call)) is not None:
            for reply in known:
                yield reply
            return
        inbox, flight = self._fly(call)
        try:
            while True:
                if not inbox.has_frames():
                    await inbox.arrive(timeout_s)
                frame, why = inbox.take()
                if frame is None:
                    _raise_end(why, call)
                    return
                yield frame
        finally:
            flight.cancel()

    def _fly(self, call: LeafCall) -> tuple[Inbox[Frame], Flight[None]]:
        inbox: Inbox[Frame] = Inbox()

        def end(flight: Flight[None], why: BaseException | None) -> None:
            self._forget(flight, why)
            flight.error = None  # the reader raises it
            inbox.put((None, why))

        return inbox, self._submit(call, lambda: self._pump(call, inbox.put), end, limit_of(call, None))

    def _wait_for(self, inbox: Inbox[Frame], call: LeafCall, timeout_s: float | None) -> None:
        try:
            if self._can_yield():
                portal_await(inbox.arrive(timeout_s))
            else:
                inbox.wait(timeout_s)
        except TimeoutError:
            raise TimeoutError(f"no frame from component {call.component} within {timeout_s} s") from None

    # ---- lifecycle

    def cancel(self, request_id: str) -> int:
        """Cancel every call in flight of one request; the waiters get RequestCancelled. Returns how many there were."""
        with self._lock:
            flights = list(self._inflight.get(request_id, ()))
        return sum(flight.cancel() for flight in flights)

    def close(self) -> None:
        """Cancel what is in flight and stop the thread."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
            flights = list(itertools.chain(*self._inflight.values()))
        for flight in flights:
            flight.cancel()
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout=10)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- on the I/O loop

    async def _pump(self, call: LeafCall, put: Callable[[Frame], None]) -> None:
        """Move frames to the waiter."""
        frames = self._transport.stream(call)
        try:
            async for frame in frames:
                put((frame, None))
        finally:
            await _aclose(frames)

    # ---- to the I/O loop

    def _can_yield(self) -> bool:
        """Whether the waiter is synchronous code on a loop whose other tasks can run meanwhile; those that cannot are counted."""
        if not is_on_loop():
            return False
        if has_portal():
            return True
        self.blocking[threading.get_ident()] += 1
        return False

    def _submit(
        self,
        call: LeafCall,
        work: Callable[[], Coroutine[Any, Any, T]],
        on_end: Callable[[Flight[T], BaseException | None], object],
        limit: Limit | None,
    ) -> Flight[T]:
        request_id = call.request.request_id if call.request else ""
        with self._lock:
            flight = Flight(self._running_loop(), work, on_end, limit, request_id)
            self._inflight.setdefault(request_id, set()).add(flight)
        flight.start()
        return flight

    def _forget(self, flight: Flight[T], _: BaseException | None) -> None:
        with self._lock:
            flights = self._inflight[flight.request_id]
            flights.discard(flight)
            if not flights:
                del self._inflight[flight.request_id]

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Under the lock."""
        if self._closed:
            raise _closed()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="patchwork-io", daemon=True)
            self._thread.start()
        elif self._thread is threading.current_thread():
            raise RuntimeError("a leaf was called synchronously on the bridge's own I/O loop")
        return self._loop


def with_request(call: LeafCall) -> LeafCall:
    """The call with the request context of the running code, when it has none of its own."""
    if call.request is not None:
        return call
    return call._replace(request=REQUEST.get())


def install_portal(loop: asyncio.AbstractEventLoop) -> None:
    """Give every task that ``loop`` creates from now on a portal, so that synchronous leaf calls on it do not stop the loop.

    Code on it that waits for work in a thread (LlamaIndex's ``asyncio_run``, a synchronous ``RunnableParallel``) does not either
    (:mod:`patchwork_adapters.waiting`).
    """
    let_waits_yield()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        portal = Portal(coro)
        task = portal.task = asyncio.Task(portal, loop=loop, **options)
        return task

    loop.set_task_factory(factory)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _aclose(frames: AsyncIterator[bytes]) -> None:
    close = getattr(frames, "aclose", None)
    if close is not None:
        await close()


def _raise_end(why: BaseException | None, call: LeafCall) -> None:
    if why is None:
        return
    if isinstance(why, asyncio.CancelledError):
        raise _cancelled(call)
    raise why


def limit_of(call: LeafCall, timeout_s: float | None = None) -> Limit | None:
    """The request's deadline or ``timeout_s`` from now, whichever is first. Raises DeadlinePassed at once when that is in the past."""
    deadline = call.request.deadline if call.request is not None else None
    if deadline is None:
        return None if timeout_s is None else (time.monotonic() + timeout_s, TimeoutError)
    now = time.monotonic()
    if deadline <= now:
        raise _late(call)
    if timeout_s is not None and now + timeout_s < deadline:
        return now + timeout_s, TimeoutError
    return deadline, lambda: _late(call)


def _closed() -> ComponentUnavailable:
    return ComponentUnavailable("the connection to the components is closed; the application is shutting down")


def _late(call: LeafCall) -> DeadlinePassed:
    return DeadlinePassed(f"the deadline passed while component {call.component} was working")


def _cancelled(call: LeafCall) -> RequestCancelled:
    return RequestCancelled(f"the request was cancelled while component {call.component} was working")
