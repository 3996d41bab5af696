"""One piece of work on the I/O loop, and whoever waits for it in another thread or on another loop.

``asyncio.run_coroutine_threadsafe`` does the same through two futures that watch each other, at three times the price; a leaf call is
made often enough for that to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Frame = tuple[bytes | None, BaseException | None]  #: a frame, or (None, why it ended: None at the regular end)
Limit = tuple[
    float, Callable[[], BaseException]
]  #: when work has to end (``time.monotonic()``), and what its waiter gets then


class Cancelled(Exception):
    """The work was cancelled, not its waiter."""


class Flight(Generic[T]):
    """Ends once: with the value or the error of the work, late, or cancelled; the last two free the waiter at once and then the work.

    Of what happens on the I/O loop as little as can be comes after the waiter was told, and no round of the loop: the waiter's thread
    would have to wait for it.
    """

    __slots__ = (
        "_is_cancelled", "_is_over", "_limit", "_lock", "_loop", "_on_end", "_task", "_tell", "_timer", "_value", "_work",
        "error", "request_id",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], Coroutine[Any, Any, T]],
        on_end: Callable[[Flight[T], BaseException | None], object],
        limit: Limit | None = None,
        request_id: str = "",
    ) -> None:
        """``on_end``: called once, in any thread, before the waiter is told, with what ended the work (None: it returned)."""
        self.request_id = request_id
        self._loop = loop
        self._work = work
        self._limit = limit
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tell: Callable[[], object] | None = None  #: wakes the waiter
        self._value: Any = None
        self.error: BaseException | None = (
            None  #: taken by who raises it: its traceback holds frames that hold this object
        )
        self._is_over = False
        self._is_cancelled = False
        self._on_end = on_end

    def start(self) -> None:
        """The work sees the caller's context variables. RuntimeError when the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            if not self._is_over:  # else it was cancelled with all others when the loop was
                raise

    def cancel(self) -> bool:
        """False when it had ended. May be called from any thread."""
        if self._is_over or not self._end(None, None, is_cancelled=True):
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the work with it
            self._loop.call_soon_threadsafe(self._stop)
        return True

    def wait(self) -> T:
        """Blocks this thread. Raises what the work raised, what its limit says, or Cancelled."""
        gate = threading.Lock()
        gate.acquire()
        if self._will_tell(gate.release):
            gate.acquire()
        return self._outcome()

    async def arrive(self) -> T:
        """As :meth:`wait`, on any loop; leaving early cancels the work."""
        told = _Told()
        if self._will_tell(told):
            try:
                await told.future
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._outcome()

    def _will_tell(self, tell: Callable[[], object]) -> bool:
        with self._lock:
            self._tell = tell
            return not self._is_over

    def _outcome(self) -> T:
        if self._is_cancelled:
            raise Cancelled
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None
        value: T = self._value
        return value

    def _end(self, value: T | None, error: BaseException | None, *, is_cancelled: bool = False) -> bool:
        with self._lock:
            if self._is_over:
                return False
            self._is_over, self._is_cancelled = True, is_cancelled
            self._value, self.error = value, error
            tell, self._tell = self._tell, None
        self._on_end(self, asyncio.CancelledError() if is_cancelled else error)
        if tell is not None:
            tell()
        return True

    # ---- on the I/O loop

    def _begin(self) -> None:
        if self._is_over:
            return
        if self._limit is not None:
            self._timer = self._loop.call_at(self._limit[0], self._expire)
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        # the waiter is told from here: a callback of the task would come one round of the loop later
        try:
            value = await self._work()
        except asyncio.CancelledError:
            self._land(None, None, is_cancelled=True)
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            self._land(None, error)
            raise
        except BaseException as error:  # noqa: BLE001  the waiter raises it, whatever it is
            self._land(None, error)
        else:
            self._land(value, None)

    def _land(self, value: T | None, error: BaseException | None, *, is_cancelled: bool = False) -> None:
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
        self._end(value, error, is_cancelled=is_cancelled)

    def _expire(self) -> None:
        assert self._limit is not None
        if self._end(None, self._limit[1]()):
            self._stop()

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()


class Inbox(Generic[T]):
    """Frames, or anything else, on their way to their reader, in whichever thread or loop it reads on.

    It is woken when it waits, not for each of them.
    """

    __slots__ = ("_frames", "_lock", "_tell")

    def __init__(self) -> None:
        self._frames: deque[T] = deque()
        self._lock = threading.Lock()
        self._tell: Callable[[], object] | None = None

    def put(self, frame: T) -> None:
        with self._lock:
            self._frames.append(frame)
            tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def has_frames(self) -> bool:
        return bool(self._frames)

    def take(self) -> T:
        """The next of those that are there."""
        return self._frames.popleft()

    def wait(self, timeout_s: float | None) -> None:
        """Blocks this thread until there is a frame, or TimeoutError."""
        gate = threading.Lock()
        gate.acquire()
        if self._will_tell(gate.release) and not gate.acquire(timeout=-1 if timeout_s is None else timeout_s):
            self._tell = None
            if not self._frames:
                raise TimeoutError

    async def arrive(self, timeout_s: float | None) -> None:
        """As :meth:`wait`, on a loop."""
        told = _Told()
        if not self._will_tell(told):
            return
        try:
            if timeout_s is None:
                await told.future
            else:
                async with asyncio.timeout(timeout_s):
                    await told.future
        finally:
            self._tell = None

    def _will_tell(self, tell: Callable[[], object]) -> bool:
        with self._lock:
            self._tell = None if self._frames else tell
            return not self._frames


class _Told:
    """A future of the running loop that may be settled by a call in any thread."""

    __slots__ = ("_loop", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the waiter's loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
