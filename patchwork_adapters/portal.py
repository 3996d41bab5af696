"""Synchronous code in a task of an event loop that waits for something of that loop, while the loop's other tasks run.

The steps of a task with a portal run in a greenlet. :func:`portal_await` leaves it in the middle of the step, and the task waits for what
the awaitable waits for; when the loop resumes the task, the step goes on where it was.

``greenback`` does the same, with a greenlet for each task, a second coroutine around the first, and a table of tasks. LangChain makes some
tasks for each token of a stream, and a token of 0.6 ms took another 0.3 that way. Here a greenlet belongs to a task only as long as one of
its steps waits; otherwise the next step of any task takes it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

#: What a step's greenlet tells the task: nothing when the step has ended, else what is waited for and in which greenlet.
_Wait = tuple[Any, greenlet]


class _Worker(greenlet):  # type: ignore[misc]  # greenlet tells no types
    """Runs steps of tasks, one after the other."""

    portal: Portal | None  #: whose step runs
    outer: greenlet  #: where the task is that makes it
    told: Any = None  #: what the step that ended yielded
    error: BaseException | None = None  #: or why it ended otherwise

    def run(self, step: Callable[[Any], Any], given: Any) -> None:
        while True:
            try:
                self.told = step(given)
            except GreenletExit:  # nobody needs this greenlet any more
                raise
            except BaseException as error:  # noqa: BLE001  the task's own: raised there
                self.error = error
            step = given = None  # type: ignore[assignment]  # it may wait long for work, and holds on to nothing meanwhile
            step, given = self.outer.switch()


class _Local(threading.local):
    """A thread's workers that have nothing to do: none of them can run in another thread."""

    def __init__(self) -> None:
        self.idle: list[_Worker] = []


class Portal(Coroutine[Any, Any, Any]):
    """A coroutine for ``asyncio.Task``, around the one that the task was to run."""

    __slots__ = ("__weakref__", "_coro", "_waiting", "_worker", "task")

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._coro = coro
        self.task: asyncio.Task[Any] | None = None  #: set by who makes it, which may be after the first step
        self._worker: _Worker | None = None  #: of a step that waits
        self._waiting: greenlet | None = None  #: the one in which it does: the user's code may have made it

    def send(self, value: Any) -> Any:
        return self._begin(self._coro.send, value) if self._worker is None else self._go_on(value, None)

    def throw(self, *raised: Any) -> Any:
        if self._worker is None:
            return self._begin(lambda given: self._coro.throw(*given), raised)
        error = raised[1] if len(raised) > 1 and raised[1] is not None else raised[0]
        return self._go_on(None, error() if isinstance(error, type) else error)

    def close(self) -> None:
        if self._worker is None:
            self._coro.close()
            return
        try:
            self.throw(GeneratorExit())
        except (GeneratorExit, StopIteration):
            return
        raise RuntimeError("a coroutine ignored GeneratorExit")

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:
        """``cr_frame``, ``__qualname__`` and the like: whoever looks at the task sees its coroutine."""
        return getattr(self._coro, name)

    def _begin(self, step: Callable[[Any], Any], given: Any) -> Any:
        here, idle = getcurrent(), _LOCAL.idle
        worker = idle.pop() if idle else _Worker()
        worker.portal, worker.outer = self, here
        worker.gr_context = here.gr_context  # the task's, which the step reads and changes
        waits: _Wait | tuple[()] = worker.switch(step, given)
        if waits:
            self._worker = worker
            told, self._waiting = waits
            return told
        return _ended(worker)

    def _go_on(self, value: Any, error: BaseException | None) -> Any:
        worker, waiting = self._worker, self._waiting
        assert worker is not None
        assert waiting is not None
        worker.outer = getcurrent()
        waits: _Wait | tuple[()] = waiting.switch((value, error))
        if waits:
            told, self._waiting = waits
            return told
        self._worker = self._waiting = None
        return _ended(worker)


def _ended(worker: _Worker) -> Any:
    """The step's outcome; its worker keeps nothing of the task, which may be gone before there is another step."""
    told, error = worker.told, worker.error
    worker.told = worker.error = worker.portal = worker.gr_context = None
    _LOCAL.idle.append(worker)
    if error is None:
        return told
    try:
        raise error
    finally:
        del error  # its traceback holds this frame


def has_portal() -> bool:
    """Whether the running code, on a loop, may use :func:`portal_await`."""
    return _worker() is not None


def portal_await(awaitable: Awaitable[T]) -> T:
    """The result of ``awaitable``, waited for as the current task; RuntimeError where that has no portal."""
    worker = _worker()
    if worker is None:
        raise RuntimeError("this task has no portal")
    steps: Any = awaitable if isinstance(awaitable, Coroutine) else awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            told = steps.throw(error) if error is not None else steps.send(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            error = None
        value, error = worker.outer.switch((told, getcurrent()))


def _worker() -> _Worker | None:
    here: greenlet | None = getcurrent()
    while here is not None:
        if type(here) is _Worker:
            task = here.portal.task if here.portal is not None else None
            # else it is the step of another task, on a loop that runs within this one
            return here if task is None or task is asyncio.current_task() else None
        here = here.parent
    return None


_LOCAL = _Local()
