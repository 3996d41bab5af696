"""Leaves that stay in the process: called synchronously on an event loop they work in a thread, and the loop's other tasks go on."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from patchwork_adapters.binding import Bound
from patchwork_adapters.waiting import in_thread

_END = object()


def local_methods(cls: type, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """An override for each method that blocks while it works; coroutines are left alone."""
    found = {}
    for name in names:
        original = inspect.getattr_static(cls, name)
        if inspect.isgeneratorfunction(original):
            found[name] = _generator(name)
        elif not inspect.iscoroutinefunction(original) and not inspect.isasyncgenfunction(original):
            found[name] = _plain(name)
    return found


def _plain(name: str) -> Callable[..., Any]:
    def call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        return in_thread(lambda: getattr(leaf.local, name)(*args, **kwargs))

    return call


def _generator(name: str) -> Callable[..., Any]:
    def call(leaf: Bound, *args: Any, **kwargs: Any) -> Iterator[Any]:
        chunks = getattr(leaf.local, name)(*args, **kwargs)
        context = contextvars.copy_context()  # one for all steps: the generator may set variables and read them later
        try:
            while (chunk := in_thread(lambda: context.run(next, chunks, _END))) is not _END:
                yield chunk
        finally:
            in_thread(lambda: context.run(chunks.close))

    return call
