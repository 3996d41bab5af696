"""What stands between the calls that reach a replica and its engine: the queue, the batch loop, deadlines, reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from patchwork_adapters.errors import DeadlinePassed
from patchwork_scheduler.model import Call
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.coalesce import coalesce
from patchwork_serving.components.counts import Counts
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine, EngineCall
from patchwork_serving.deadlines import until_deadline
from patchwork_serving.errors import EngineDied, ServingError
from patchwork_serving.wire import CallFrame, ErrorFrame, ReplyFrame, Report

log = logging.getLogger(__name__)

#: Coalescing grows with the number of streams: one stream is not delayed at all to speak of, 50 streams wait the 50 ms of D9.
COALESCE_PER_STREAM_S = 0.001
COALESCE_MAX_S = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    queued: int
    running: int
    queued_s: float  #: predicted seconds of waiting work


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call in this replica, owned by the coroutine that serves it."""

    frame: CallFrame
    call: Call
    done: asyncio.Future[bytes | None]  #: the reply (batch engines), or None: "go" (continuous engines)
    started: float = 0.0
    batch: int = 1


@dataclass(slots=True)
class _ServiceTime:
    """Running mean of seconds per work item, to predict the waiting work."""

    per_item_s: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def observe(self, seconds: float, items: int) -> None:
        self.recent.append(seconds / max(items, 1))
        self.per_item_s = sum(self.recent) / len(self.recent)


class ComponentHost:
    """Serves calls through one engine. ``start`` before use; ``close`` refuses what waits and closes the engine.

    A batch engine runs up to ``parallel_batches`` batches at a time. A continuous engine holds up to ``slots`` calls at a time; the rest
    waits here, in the queue's order, because an engine that runs everything at once slows everyone (design D5).
    """

    def __init__(
        self,
        engine: BatchEngine | ContinuousEngine,
        queue: CallQueue,
        *,
        replica: str,
        slots: int | None = None,
        parallel_batches: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self._queue = queue
        self._clock = clock
        self._continuous = isinstance(engine, ContinuousEngine)
        limit = slots or (engine.slots if isinstance(engine, ContinuousEngine) else parallel_batches)
        self._limit = limit
        self._running = 0  # calls (continuous) or batches inside the engine
        self._streams = 0
        self._waiting: dict[str, _Waiting] = {}
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()
        self._service = _ServiceTime()
        self.counts = Counts()
        self._closed = False

    async def start(self) -> None:
        """Start the engine, then the loop; raises what the engine raises."""
        await self.engine.start()
        self._loop_task = asyncio.create_task(self._loop(), name=f"patchwork-host-{self.replica}")

    async def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        tasks = [t for t in (self._loop_task, *self._batches) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in list(self._waiting.values()):
            if not waiting.done.done():
                waiting.done.set_exception(EngineDied("the replica is shutting down; the call runs elsewhere"))
        await self.engine.close()

    def check(self) -> None:
        """EngineDied when the loop has ended: the replica cannot serve any more and must be replaced."""
        if not self._closed and (self._loop_task is None or self._loop_task.done()):
            raise EngineDied(f"the queue loop of {self.replica} has ended")

    def load(self) -> Load:
        return Load(len(self._queue), self._running, self._queue.size * self._service.per_item_s)

    # -- calls -----------------------------------------------------------------------------------------------------

    async def call(self, frame: CallFrame) -> ReplyFrame:
        """The whole reply in one frame; failures are error frames, not exceptions. Cancelling takes the call out of queue and engine."""
        try:
            if self._continuous:
                async with self._admitted(frame) as waiting:
                    payloads = [payload async for payload in self._generate(waiting)]
                    return ReplyFrame(tuple(payloads), self._report(waiting))
            waiting = self._enqueue(frame)
            try:
                reply = await self._wait(waiting)
            finally:
                self._leave(waiting)
            return ReplyFrame((reply or b"",), self._report(waiting))
        except (Exception, DeadlinePassed) as error:  # noqa: BLE001  the loop top of a call: every failure becomes a frame
            return ReplyFrame(error=_error_frame(error))

    async def stream(self, frame: CallFrame) -> AsyncIterator[ReplyFrame]:
        """The reply in coalesced frames; the last one carries the report or the error."""
        if not self._continuous:
            yield await self.call(frame)
            return
        try:
            async with self._admitted(frame) as waiting:
                self._streams += 1
                first: float | None = None
                try:
                    async with contextlib.aclosing(coalesce(self._generate(waiting), self._coalesce_s)) as groups:  # type: ignore[type-var]
                        async for group in groups:
                            if first is None:
                                first = self._clock() - waiting.started
                            yield ReplyFrame(group, last=False)
                finally:
                    self._streams -= 1
                yield ReplyFrame(report=self._report(waiting, first))
        except (Exception, DeadlinePassed) as error:  # noqa: BLE001  the loop top of a stream
            yield ReplyFrame(error=_error_frame(error))

    def _coalesce_s(self) -> float:
        return min(COALESCE_MAX_S, COALESCE_PER_STREAM_S * self._streams)

    # -- queue -----------------------------------------------------------------------------------------------------

    def _enqueue(self, frame: CallFrame) -> _Waiting:
        if self._closed:
            raise EngineDied("the replica is shutting down; the call runs elsewhere")
        now = self._clock()
        deadline = None if frame.remaining_s is None else now + frame.remaining_s
        call = Call(id=frame.id, arrived=now, deadline=deadline, size=frame.size, site=frame.site)
        if deadline is not None and deadline <= now:
            raise DeadlinePassed(f"no time was left when the call reached {self.replica}")
        waiting = _Waiting(frame, call, asyncio.get_running_loop().create_future())
        self._queue.push(call)
        self.counts.arrived()
        self._waiting[call.id] = waiting
        self._wake.set()
        return waiting

    async def _wait(self, waiting: _Waiting) -> bytes | None:
        """The outcome, or DeadlinePassed at the deadline whether the call waits or runs."""
        deadline = waiting.call.deadline
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        try:
            async with asyncio.timeout(timeout):
                return await waiting.done
        except TimeoutError:
            raise DeadlinePassed(f"the deadline passed in {self.replica}") from None

    def _leave(self, waiting: _Waiting) -> None:
        self._queue.remove(waiting.call.id)
        self._waiting.pop(waiting.call.id, None)
        if not waiting.done.done():
            waiting.done.cancel()
        self._wake.set()  # a batch whose callers all left is cancelled by the loop

    @contextlib.asynccontextmanager
    async def _admitted(self, frame: CallFrame) -> AsyncIterator[_Waiting]:
        """Wait for a slot of the continuous engine and hold it."""
        waiting = self._enqueue(frame)
        try:
            await self._wait(waiting)
        except BaseException:
            if waiting.done.done() and not waiting.done.cancelled() and waiting.done.exception() is None:
                self._release()  # granted in the moment we gave up
            self._leave(waiting)
            raise
        try:
            yield waiting
            # one that failed or was cancelled says nothing of how long calls take
            self.counts.served(waiting.batch, self._clock() - waiting.started, calls=1)
        finally:
            self._service.observe(self._clock() - waiting.started, frame.size)
            self._release()
            self._leave(waiting)

    def _release(self) -> None:
        self._running -= 1
        self._wake.set()

    async def _generate(self, waiting: _Waiting) -> AsyncIterator[bytes]:
        deadline = waiting.call.deadline
        engine = self.engine
        assert isinstance(engine, ContinuousEngine)
        frames = engine.generate(_engine_call(waiting))
        try:
            remaining_s = (lambda: None) if deadline is None else (lambda: max(0.0, deadline - self._clock()))
            async for payload in until_deadline(frames, remaining_s):
                yield payload
        except TimeoutError:
            raise DeadlinePassed(f"the deadline passed in {self.replica}") from None
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    # -- loop ------------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        while True:
            now = self._clock()
            ready = self._queue.ready_at(now) if self._running < self._limit else None
            if ready is None or ready > now:
                timeout = None if ready is None else ready - now
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._wake.wait()
                continue
            if self._continuous:
                self._grant(now)
            else:
                self._start_batch(now)

    def _grant(self, now: float) -> None:
        for call in self._queue.next_batch(now):
            waiting = self._waiting.get(call.id)
            if waiting is None or waiting.done.done():
                continue
            waiting.started = now
            waiting.batch = self._running + 1
            self._running += 1
            waiting.done.set_result(None)

    def _start_batch(self, now: float) -> None:
        batch = [w for call in self._queue.next_batch(now) if (w := self._waiting.get(call.id)) and not w.done.done()]
        if not batch:
            return
        for waiting in batch:
            waiting.started = now
            waiting.batch = len(batch)
        self._running += 1
        task = asyncio.create_task(self._run_batch(batch))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)
        for waiting in batch:  # nobody waits for it any more: stop the work
            waiting.done.add_done_callback(lambda _: task.cancel() if all(w.done.cancelled() for w in batch) else None)

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        engine = self.engine
        assert isinstance(engine, BatchEngine)
        try:
            replies = await engine.run([_engine_call(w) for w in batch])
        except Exception as error:  # noqa: BLE001  the loop top of a batch: each caller gets the failure
            replies = [error] * len(batch)
        finally:
            self._running -= 1
            self._wake.set()
        seconds = self._clock() - batch[0].started
        self._service.observe(seconds, sum(w.call.size for w in batch))
        if not all(isinstance(reply, Exception) for reply in replies):
            self.counts.served(len(batch), seconds)
        for waiting, reply in zip(batch, replies, strict=True):
            if waiting.done.done():
                continue
            if isinstance(reply, Exception):
                waiting.done.set_exception(reply)
            else:
                waiting.done.set_result(reply)

    def _report(self, waiting: _Waiting, first_frame_s: float | None = None) -> Report:
        load = self.load()
        return Report(
            replica=self.replica,
            queue_s=waiting.started - waiting.call.arrived,
            service_s=self._clock() - waiting.started,
            first_frame_s=first_frame_s,
            batch=waiting.batch,
            queued=load.queued,
            running=load.running,
            queued_s=load.queued_s,
        )


def _engine_call(waiting: _Waiting) -> EngineCall:
    frame = waiting.frame
    return EngineCall(
        id=frame.id,
        leaf=frame.leaf,
        method=frame.method,
        payload=frame.payload,
        size=frame.size,
        deadline=waiting.call.deadline,
        stream=frame.stream,
    )


def _error_frame(error: BaseException) -> ErrorFrame:
    if isinstance(error, ServingError | DeadlinePassed):
        return ErrorFrame(type(error).__name__, str(error), error.status, error.retryable)
    log.exception("a call failed in the engine", exc_info=error)
    # the message of a foreign exception may quote inputs: name its class only
    return ErrorFrame(
        type(error).__name__, f"{type(error).__name__} in the engine; the replica's log has the traceback", 500, False
    )
