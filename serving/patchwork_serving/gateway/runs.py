"""Runs in flight: each is one task, that ends by itself, at its deadline, when the client goes, or when it is cancelled by id."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from patchwork_adapters.errors import DeadlinePassed, RequestCancelled, RequestStopped
from patchwork_serving.gateway.faults import NotReady, RequestRefused, RunIdTaken

_MAILBOX_SIZE = 64  #: chunks that wait for a slow client before the chain waits too


class Mailbox:
    """Chunks between the run's task and the response; both on one loop. A full box makes the writer wait."""

    def __init__(self, size: int = _MAILBOX_SIZE) -> None:
        self._size = size
        self._items: deque[Any] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False
        self.blocked_s = 0.0  #: in which the writer waited for the reader

    async def put(self, item: Any) -> None:
        if len(self._items) >= self._size and not self.closed:
            began = time.monotonic()
            try:
                while len(self._items) >= self._size and not self.closed:
                    self._room.clear()
                    await self._room.wait()
            finally:
                self.blocked_s += time.monotonic() - began
        self._items.append(item)
        self._filled.set()

    def close(self) -> None:
        """No more will come; what is inside can still be taken."""
        self.closed = True
        self._filled.set()
        self._room.set()

    async def take(self, wait_s: float | None) -> list[Any]:
        """All that waits, at least one; empty after ``wait_s`` seconds of silence, or at the end (then ``closed`` is true)."""
        if not self._items and not self.closed:
            self._filled.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._filled.wait()
            except TimeoutError:
                return []
        taken = list(self._items)
        self._items.clear()
        self._room.set()
        return taken


class Run:
    """One execution of the chain. ``ids`` has one run id, or one per input of a batch."""

    def __init__(self, ids: tuple[str, ...], on_end: Callable[[Run], None]) -> None:
        self.ids = ids
        self._on_end = on_end
        self._mailbox = Mailbox()
        self._stopped = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason: RequestStopped | None = None
        self._worked_until: float | None = None

    @property
    def id(self) -> str:
        return self.ids[0]

    @property
    def stopped(self) -> bool:
        """It was told to end, and may still be busy with that."""
        return self._reason is not None

    @property
    def started(self) -> bool:
        return self._task is not None

    def worked_until(self, now: float) -> float:
        """When the work was done, or would have been had the client read as fast as it was written to; ``now`` while it is under way."""
        until = now if self._worked_until is None else self._worked_until
        return until - self._mailbox.blocked_s

    def start(self, work: Coroutine[Any, Any, Any], seconds: float, context: Context) -> None:
        """Run ``work`` in ``context``; stop it after ``seconds``."""
        self._task = asyncio.create_task(work, name=f"run {self.id}", context=context)
        self._task.add_done_callback(self._ended)
        late = DeadlinePassed("the deadline has passed")
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.stop, late)

    def start_stream(self, chunks: Callable[[], AsyncIterator[Any]], seconds: float, context: Context) -> None:
        """Like :meth:`start`, for work that yields chunks; read them with :meth:`next_chunks`."""
        self.start(self._pump(chunks), seconds, context)

    def stop(self, reason: RequestStopped) -> None:
        """Cancel the work. Whoever waits gets ``reason`` now, even if the work is slow to end."""
        if self._task is None or self._task.done() or self._reason is not None:
            return
        self._reason = reason
        self._task.cancel()
        self._stopped.set_result(None)
        self._mailbox.close()

    async def value(self) -> Any:
        """What the work returned; raises what it raised, or why it was stopped."""
        assert self._task is not None
        await asyncio.wait((self._task, self._stopped), return_when=asyncio.FIRST_COMPLETED)
        if self._reason is not None:
            raise self._reason
        if self._task.cancelled():
            raise RequestCancelled("the run was cancelled from inside")
        return self._task.result()

    async def next_chunks(self, silence_s: float | None) -> list[Any] | None:
        """The chunks that came since; empty after ``silence_s`` without any; None at the end. Raises as :meth:`value`."""
        chunks = await self._mailbox.take(silence_s)
        if self._reason is not None:
            raise self._reason
        if chunks or not self._mailbox.closed:
            return chunks
        await self.value()
        return None

    async def ended(self) -> None:
        """Wait until the work is over, whatever it raised."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _pump(self, chunks: Callable[[], AsyncIterator[Any]]) -> None:
        # the iterator lives and dies in this one task: closing it from another would leave its context variables behind
        iterator = chunks()
        try:
            async for chunk in iterator:
                await self._mailbox.put(chunk)
        finally:
            try:
                aclose: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
                if aclose is not None:
                    await aclose()
            finally:
                self._mailbox.close()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._worked_until = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        if not task.cancelled():
            task.exception()  # read it, or asyncio complains when a stopped run raises after its answer was given
        self._on_end(self)


class RunRegistry:
    """Every run in flight, by each of its ids."""

    def __init__(self, max_in_flight: int) -> None:
        self._max = max_in_flight
        self._by_id: dict[str, Run] = {}
        self._runs: set[Run] = set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._runs)

    def open(self, ids: tuple[str, ...]) -> Run:
        """A run under these ids, until its work ends or :meth:`discard`. Raises NotReady, RequestRefused or RunIdTaken."""
        if self.draining:
            raise NotReady("this replica is shutting down")
        if len(self._runs) >= self._max:
            raise RequestRefused(f"{self._max} requests are in flight; try again later")
        if len(set(ids)) < len(ids) or any(run_id in self._by_id for run_id in ids):
            raise RunIdTaken("config.run_id is used by a run in flight; leave it out or choose another")
        run = Run(ids, self.discard)
        self._runs.add(run)
        self._by_id.update(dict.fromkeys(ids, run))
        return run

    def discard(self, run: Run) -> None:
        """Forget a run; safe to repeat."""
        if run in self._runs:
            self._runs.remove(run)
            for run_id in run.ids:
                del self._by_id[run_id]

    def cancel(self, run_id: str) -> bool:
        """Stop the run with this id; False when none is in flight."""
        run = self._by_id.get(run_id)
        if run is None or run.stopped:
            return False
        run.stop(RequestCancelled("the run was cancelled"))
        return True

    async def drain(self, seconds: float) -> int:
        """Take no more runs, wait for those in flight, and cancel what is left after ``seconds``; how many were cancelled."""
        self.draining = True
        if not self._runs:
            return 0
        waits = [asyncio.ensure_future(run.ended()) for run in self._runs]
        await asyncio.wait(waits, timeout=seconds)
        left = list(self._runs)
        for run in left:
            run.stop(RequestCancelled("the server is shutting down"))
        await asyncio.wait(waits, timeout=1.0)
        for wait in waits:
            wait.cancel()
        return len(left)
