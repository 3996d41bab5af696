"""An event loop whose clock jumps to the next timer as soon as nothing else is to be done: hours of waiting in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """``oversleep_s``: how late each timer wakes, as those of a busy machine do.

    ``at_rest`` is called before time passes: everybody waits for it then, so what must hold between events can be asserted.
    """

    def __init__(self, oversleep_s: float = 0.0) -> None:
        super().__init__(_Jumping(self))
        self.now = 0.0
        self.oversleep_s = oversleep_s
        self.at_rest: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # which one it is depends on the platform
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        self._loop.at_rest()
        if timeout is None:
            raise RuntimeError("everybody waits for something that no timer brings")
        self._loop.now += timeout + self._loop.oversleep_s
        return found


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, oversleep_s: float = 0.0) -> T:
    """The result of ``main(loop)``, on a loop of its own whose clock begins at 0."""
    loop = VirtualLoop(oversleep_s)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
