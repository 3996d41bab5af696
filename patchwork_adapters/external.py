"""Requests of OpenAI clients to a server that is not ours: they keep their own transport, and get a limit, a deadline and an observer.

A request passes in three steps: it waits for a place (:meth:`ExternalCalls.enter`), goes to its server through the user's own transport,
and leaves when its answer was read to the end, or dropped (:meth:`Passage.close`). Places are given on the bridge's I/O loop, because
clients of one server may live in any thread and on any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from patchwork_adapters.bridge import Bridge, limit_of
from patchwork_adapters.errors import DeadlinePassed
from patchwork_adapters.protocol import Router
from patchwork_adapters.transport import LeafCall

CLOCK_S = 0.001  #: a timer may fire this much early


class Seen(Protocol):
    """One call as whoever watches it is told of it."""

    def reply(self, payload: bytes) -> None:
        """The whole reply (``encode_response``); of a stream, its head and then each piece of its body."""
        ...

    def waited(self, seconds: float) -> None:
        """How long the call waited for its place."""
        ...


class _Unwatched:
    def reply(self, payload: bytes) -> None: ...

    def waited(self, seconds: float) -> None: ...


Observe = Callable[[LeafCall], AbstractContextManager[Seen]]


class ExternalCalls:
    """Which requests are known calls to servers of others, and how many of each component may be in flight.

    ``concurrency``: by component; a component that it does not name has no limit. ``base_urls``: by component, where its requests go
    instead of where the client would send them.
    """

    def __init__(
        self,
        bridge: Bridge,
        router: Router,
        concurrency: Mapping[str, int],
        observe: Observe = lambda call: nullcontext(_Unwatched()),
        base_urls: Mapping[str, str] | None = None,
    ) -> None:
        self.router = router
        self._bridge = bridge
        self._concurrency = concurrency
        self._observe = observe
        self._base_urls = base_urls or {}
        self._places: dict[str, asyncio.Semaphore] = {}  # used on the I/O loop only

    def base_url(self, component: str) -> str | None:
        """Where the component's requests go instead; None: where the client sends them."""
        return self._base_urls.get(component)

    def enter(self, call: LeafCall) -> Passage:
        """Wait for a place. Raises DeadlinePassed or RequestCancelled; the passage must be closed."""
        passage = Passage(call)
        try:
            self._bridge.do(call, lambda: self._wait(call, passage))
        except BaseException as error:
            passage.close(error)
            raise
        return passage

    async def aenter(self, call: LeafCall) -> Passage:
        """As :meth:`enter`; cancelling the awaiting task gives the place back."""
        passage = Passage(call)
        try:
            await self._bridge.ado(call, lambda: self._wait(call, passage))
        except BaseException as error:
            passage.close(error)
            raise
        return passage

    async def _wait(self, call: LeafCall, passage: Passage) -> None:
        began = time.monotonic()
        watch = self._observe(call)
        seen = watch.__enter__()
        try:
            deadline, late = limit_of(call) or (None, TimeoutError)
            try:
                async with asyncio.timeout_at(deadline):
                    release = await self._place(call.component)
            except TimeoutError:
                raise late() from None
        except BaseException as error:
            watch.__exit__(type(error), error, error.__traceback__)
            raise
        seen.waited(time.monotonic() - began)
        passage.open(asyncio.get_running_loop(), watch, seen, release)

    async def _place(self, component: str) -> Callable[[], None]:
        limit = self._concurrency.get(component)
        if limit is None:
            return lambda: None
        places = self._places.setdefault(component, asyncio.Semaphore(limit))
        await places.acquire()
        return places.release


class Passage:
    """One request that has its place. ``close`` may be called from any thread and more than once."""

    def __init__(self, call: LeafCall) -> None:
        self.call = call
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finish: Callable[[BaseException | None], None] | None = None
        self._seen: Seen = _Unwatched()
        self._closed = False
        self._error: BaseException | None = None

    def open(
        self,
        loop: asyncio.AbstractEventLoop,
        watch: AbstractContextManager[Seen],
        seen: Seen,
        release: Callable[[], None],
    ) -> None:
        """On the I/O loop. The waiter may have left before it was told: then the place is given back at once."""

        def finish(error: BaseException | None) -> None:
            release()
            watch.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

        with self._lock:
            if not self._closed:
                self._loop, self._finish, self._seen = loop, finish, seen
                return
        finish(self._error)

    def reply(self, payload: bytes) -> None:
        """Tell the observer what the server answered."""
        self._seen.reply(payload)

    def close(self, error: BaseException | None = None) -> None:
        """Give the place back; ``error``: why the request failed, None when it did not."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._error = True, error
            loop, finish = self._loop, self._finish
        if loop is not None and finish is not None:
            with contextlib.suppress(RuntimeError):  # the bridge is closed, and its loop with it
                loop.call_soon_threadsafe(finish, error)

    def remaining_s(self) -> float | None:
        """Seconds that the request may still take; None: as long as it likes."""
        request = self.call.request
        return None if request is None else request.remaining_s(time.monotonic())

    def late(self) -> DeadlinePassed | None:
        """The error to raise once the deadline has passed."""
        remaining_s = self.remaining_s()
        if remaining_s is None or remaining_s > CLOCK_S:
            return None
        return DeadlinePassed(f"the deadline passed while {self.call.component} was asked")
