"""How a chain in somebody's own program reaches deployed components.

The wrappers of this package know no cluster. They ask the connector that is installed under the entry point ``patchwork.connectors`` for a
:class:`Connection` (``patchwork_serving`` brings one that connects to, or starts, a local deployment).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from patchwork_adapters.context import REQUEST, RequestContext, request_context
from patchwork_adapters.errors import MissingPackage

T = TypeVar("T")

GROUP = "patchwork.connectors"
_END: Any = object()


class Connection(Protocol):
    """A chain whose leaves are swapped, and the components that serve them."""

    def active(self) -> AbstractContextManager[None]:
        """Leaf calls of the running code go to components within the block, and only there."""
        ...

    def trace(self) -> AbstractContextManager[str | None]:
        """The root span of one request around the block; gives its W3C traceparent, None when nothing is traced."""
        ...

    def close(self) -> None:
        """Undo the swap; stop what was started for it. Idempotent."""
        ...


class Connector(Protocol):
    def __call__(self, chain: Any, *, name: str | None, slo_s: float | None) -> Connection: ...


class Unconnected:
    """The connection of a wrapper inside a deployed module: its leaves are served by the deployment already."""

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def trace(self) -> AbstractContextManager[str | None]:
        return nullcontext()

    def close(self) -> None: ...


_deployments = 0


def deployed_here() -> Callable[[], None]:
    """Called in deployed processes: from now on wrappers in the user's module start nothing of their own. Returns how to undo it."""
    global _deployments
    _deployments += 1

    def undo() -> None:
        global _deployments
        _deployments -= 1

    return undo


def connect(chain: Any, *, name: str | None, slo_s: float | None) -> Connection:
    """Raises MissingPackage when only the adapters are installed, and what the connector raises."""
    if _deployments:
        return Unconnected()
    for entry in entry_points(group=GROUP):
        connector: Connector = entry.load()
        return connector(chain, name=name, slo_s=slo_s)
    raise MissingPackage(
        "nothing here can deploy components: pip install patchwork-rag brings patchwork_serving with them"
    )


@contextmanager
def one_request(connection: Connection, slo_s: float | None) -> Iterator[None]:
    """Run a block as one request with a deadline ``slo_s`` seconds from now; inside another request, as part of that one."""
    with connection.active():
        if REQUEST.get() is not None:
            yield
            return
        deadline = None if slo_s is None else time.monotonic() + slo_s
        with connection.trace() as traceparent:
            context = RequestContext(uuid.uuid4().hex, str(uuid.uuid4()), deadline, traceparent=traceparent)
            with request_context(context):
                yield


def parse_slo(slo: str | float | None) -> float | None:
    """``"500ms"``, ``"2s"``, ``"1m"`` or seconds; ValueError says what is wrong."""
    if slo is None:
        return None
    if isinstance(slo, str):
        for unit, seconds in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)):
            if slo.endswith(unit):
                try:
                    slo = float(slo.removesuffix(unit)) * seconds
                except ValueError:
                    raise ValueError(
                        f"slo {slo!r} is not a duration; write for example '500ms', '2s' or '1m'"
                    ) from None
                break
    assert isinstance(slo, int | float)
    if not 0 < slo < float("inf"):
        raise ValueError(f"slo must be a positive duration, not {slo}")
    return float(slo)


# A generator that enters a context would leak it into whatever its reader does between two items: a synchronous one takes its steps in a
# context of its own, an asynchronous one is run by a task of its own.


class Steps:
    """One request whose parts run in one context: the call that gives an answer, and later the reading of that answer."""

    def __init__(self, connection: Connection, slo_s: float | None) -> None:
        self._context = copy_context()
        self._guard = one_request(connection, slo_s)
        self._context.run(self._guard.__enter__)
        self._ended = False

    def run(self, work: Callable[[], T]) -> T:
        """``work()`` as part of the request; when it raises, the request has ended."""
        try:
            return self._context.run(work)
        except BaseException as error:
            self.end(error)
            raise

    async def arun(self, work: Callable[[], Awaitable[T]]) -> T:
        """As :meth:`run`, in a task of its own."""

        async def working() -> T:
            return await work()

        try:
            return await asyncio.create_task(working(), context=self._context)
        except BaseException as error:
            self.end(error)
            raise

    def iterate(self, source: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items of ``source()`` as part of the request, which ends with them; closing this closes what ``source`` gave."""
        iterator = self.run(source)
        try:
            while (item := self.run(lambda: next(iterator, _END))) is not _END:
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                self._context.run(close)
            self.end(None)

    async def aiterate(self, source: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """As :meth:`iterate`. One task reads ``source()``, one item ahead of the reader."""
        items: asyncio.Queue[Any] = asyncio.Queue(1)

        async def pump() -> None:
            iterator = source()
            try:
                async for item in iterator:
                    await items.put(item)
            finally:
                close = getattr(iterator, "aclose", None)
                if close is not None:
                    await close()
            await items.put(_END)

        task = asyncio.create_task(pump(), context=self._context)
        error: BaseException | None = None
        try:
            while (item := await _next_of(items, task)) is not _END:
                yield item
        except BaseException as raised:
            error = None if isinstance(raised, GeneratorExit) else raised
            raise
        finally:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # read it, or asyncio complains of what the reader did not wait for
            self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The request has ended; idempotent."""
        if self._ended:
            return
        self._ended = True

        def leave() -> None:
            # a context manager hands back what it was given; the error goes its own way
            with contextlib.suppress(BaseException):
                self._guard.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

        self._context.run(leave)


async def _next_of(items: asyncio.Queue[Any], task: asyncio.Task[None]) -> Any:
    """The next item; raises what ended the task."""
    if items.empty() and not task.done():
        getting = asyncio.ensure_future(items.get())
        try:
            await asyncio.wait((getting, task), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            getting.cancel()
            raise
        if getting.done():
            return getting.result()
        getting.cancel()
    if not items.empty():
        return items.get_nowait()
    return task.result()  # it failed: at its regular end it leaves a mark in the queue


def stepwise(connection: Connection, slo_s: float | None, source: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Iterate ``source()`` as one request."""
    yield from Steps(connection, slo_s).iterate(source)


async def astepwise(
    connection: Connection, slo_s: float | None, source: Callable[[], AsyncIterator[T]]
) -> AsyncIterator[T]:
    """As :func:`stepwise`."""
    async with contextlib.aclosing(Steps(connection, slo_s).aiterate(source)) as items:  # type: ignore[type-var]
        async for item in items:
            yield item


class Connecting:
    """A connection that is made when it is first needed; several threads may need it at once."""

    def __init__(self, chain: Any, name: str | None, slo_s: float | None) -> None:
        self._wish = (chain, name, slo_s)
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def get(self) -> Connection:
        """Blocks for the seconds that starting components takes, the first time."""
        with self._lock:
            if self._connection is None:
                chain, name, slo_s = self._wish
                self._connection = connect(chain, name=name, slo_s=slo_s)
            return self._connection

    async def aget(self) -> Connection:
        """As :meth:`get`; the event loop goes on meanwhile."""
        connection = self._connection
        return connection if connection is not None else await asyncio.to_thread(self.get)

    def close(self) -> None:
        """Idempotent; the next :meth:`get` connects again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
