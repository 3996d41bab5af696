"""How a chain in somebody's own program reaches deployed components.

The wrappers of this package know no cluster. They ask the connector that is installed under the entry point ``patchwork.connectors`` for a
:class:`Connection` (``patchwork_serving`` brings one that connects to, or starts, a local deployment).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from importlib.metadata import entry_points
from typing import Any, Protocol

from patchwork_adapters.context import REQUEST, RequestContext, request_context
from patchwork_adapters.errors import MissingPackage

GROUP = "patchwork.connectors"


class Connection(Protocol):
    """A chain whose leaves are swapped, and the components that serve them."""

    def active(self) -> AbstractContextManager[None]:
        """Leaf calls of the running code go to components within the block, and only there."""
        ...

    def close(self) -> None:
        """Undo the swap; stop what was started for it. Idempotent."""
        ...


class Connector(Protocol):
    def __call__(self, chain: Any, *, name: str | None, slo_s: float | None) -> Connection: ...


def connect(chain: Any, *, name: str | None, slo_s: float | None) -> Connection:
    """Raises MissingPackage when only the adapters are installed, and what the connector raises."""
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
        with request_context(RequestContext(uuid.uuid4().hex, str(uuid.uuid4()), deadline)):
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


# A generator that enters a context would leak it into whatever its reader does between two items: each step runs in a context of its own.


def stepwise(connection: Connection, slo_s: float | None, source: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Iterate ``source()`` as one request."""
    context = copy_context()
    guard = one_request(connection, slo_s)
    context.run(guard.__enter__)
    try:
        iterator = context.run(source)
        while True:
            try:
                item = context.run(next, iterator)
            except StopIteration:
                return
            yield item
    finally:
        context.run(guard.__exit__, None, None, None)


async def astepwise(
    connection: Connection, slo_s: float | None, source: Callable[[], AsyncIterator[Any]]
) -> AsyncIterator[Any]:
    context = copy_context()
    guard = one_request(connection, slo_s)
    context.run(guard.__enter__)
    try:
        iterator = context.run(source)
        while True:
            step = asyncio.create_task(_next(iterator), context=context)
            try:
                item = await step
            except StopAsyncIteration:
                return
            yield item
    finally:
        context.run(guard.__exit__, None, None, None)


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)
