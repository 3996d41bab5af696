"""An event loop whose clock jumps: what would sleep for an hour ends at once, at exactly the right time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """``oversleep_s``: how late each timer wakes, as those of a busy machine do."""

    def __init__(self, oversleep_s: float = 0.0) -> None:
        super().__init__(_Jumping(self))
        self.now = 0.0
        self.oversleep_s = oversleep_s

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self._loop.now += timeout + self._loop.oversleep_s
            timeout = 0
        return super().select(timeout)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, oversleep_s: float = 0.0) -> T:
    """The result of ``main``, on a loop of its own."""
    loop = VirtualLoop(oversleep_s)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
