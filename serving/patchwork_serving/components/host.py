"""What stands between the calls that reach a replica and its engine: the queue, the loop, deadlines, reports.

Two times bound a call. Its *due* time, the promised end of its request, orders it. Its *deadline*, when the client is told 504, stops its
work, wherever it is. ``batch_host`` and ``continuous_host`` are the two kinds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from patchwork_adapters.errors import DeadlinePassed
from patchwork_adapters.redaction import redacted, redacted_traceback
from patchwork_scheduler.model import Call
from patchwork_scheduler.pace import Pace
from patchwork_scheduler.policies import Policy, rank_at
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.counts import Counts
from patchwork_serving.components.engine import (
    SILENT,
    BatchEngine,
    ContinuousEngine,
    EngineCall,
    MortalEngine,
    Progress,
)
from patchwork_serving.errors import EngineDied, ServingError
from patchwork_serving.wire import CallFrame, ErrorFrame, Pulse, ReplyFrame, Report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    queued: int
    running: int
    queued_s: float  #: predicted seconds by which the waiting work delays a new call
    running_s: float = 0.0  #: the same of the work that runs


class Estimate(NamedTuple):
    """What a call is expected to take here."""

    alone_s: float = 0.0  #: with the engine to itself; 0 while unknown
    occupied_s: float = 0.0  #: by how much it delays the others
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A call in this replica, owned by the coroutine that serves it."""

    frame: CallFrame
    call: Call
    estimate: Estimate
    deadline: float | None  #: when its work is stopped
    done: asyncio.Future[bytes | None]  #: the reply (batch engines), or None: "go" (continuous engines)
    started: float = 0.0
    batch: int = 1
    prompt_tokens: int = 0  #: as the engine counted them
    output_tokens: int = 0


class ComponentHost(ABC):
    """Serves calls through one engine. ``start`` before use; ``close`` refuses what waits and closes the engine.

    ``limit``: batches, or calls, inside the engine at once. The rest waits here, in the queue's order.
    """

    def __init__(
        self,
        engine: BatchEngine | ContinuousEngine,
        queue: CallQueue,
        policy: Policy,
        *,
        replica: str,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self._queue = queue
        self._policy = policy
        self._clock = clock
        self._limit = limit
        self._running = 0  # calls (continuous) or batches inside the engine
        self._queued_s = 0.0
        self._waiting: dict[str, Waiting] = {}
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self.counts = Counts()
        self._pace = Pace()
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
        tasks = [t for t in (self._loop_task, *self._work()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in list(self._waiting.values()):
            if not waiting.done.done():
                waiting.done.set_exception(EngineDied("the replica is shutting down; the call runs elsewhere"))
        await self.engine.close()

    def check(self) -> None:
        """EngineDied when the loop or the engine has ended: the replica cannot serve any more and must be replaced."""
        if self._closed:
            return
        if self._loop_task is None or self._loop_task.done():
            raise EngineDied(f"the queue loop of {self.replica} has ended")
        if isinstance(self.engine, MortalEngine):
            self.engine.check()

    def load(self) -> Load:
        queued_s = self._queued_s if len(self._queue) else 0.0  # sums of floats do not come back to zero
        return Load(len(self._queue), self._running, queued_s, self._running_s(self._clock()))

    def pulse(self) -> Pulse:
        """How the replica fares, between replies."""
        load, now = self.load(), self._clock()
        try:
            self.check()
            well = not (self._closed or self._is_stalled(now))
        except EngineDied:
            well = False
        return Pulse(self.replica, well, load.queued_s, load.running_s, self._pace.slowness(now))

    async def call(self, frame: CallFrame) -> ReplyFrame:
        """The whole reply in one frame; failures are error frames, not exceptions. Cancelling takes the call out of queue and engine."""
        try:
            return await self._call(frame)
        except (Exception, DeadlinePassed) as error:  # noqa: BLE001  the loop top of a call: every failure becomes a frame
            return ReplyFrame(error=error_frame(error))

    @abstractmethod
    def stream(self, frame: CallFrame) -> AsyncIterator[ReplyFrame]:
        """The reply in coalesced frames; the last one carries the report or the error."""

    # -- what the two kinds do -------------------------------------------------------------------------------------

    @abstractmethod
    async def _call(self, frame: CallFrame) -> ReplyFrame: ...

    @abstractmethod
    def _estimate(self, frame: CallFrame) -> Estimate: ...

    @abstractmethod
    def _running_s(self, now: float) -> float:
        """Predicted seconds by which what is inside the engine delays a new call."""

    @abstractmethod
    def _is_stalled(self, now: float) -> bool:
        """Whether the engine should long have given something and has not."""

    @abstractmethod
    def _advance(self, now: float) -> float | None:
        """Let in what may go in; when to ask again, or None: when something has happened."""

    def _work(self) -> Iterator[asyncio.Task[None]]:
        """Tasks to be cancelled at the end."""
        return iter(())

    # -- the queue -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _arrived(self, frame: CallFrame) -> Iterator[Waiting]:
        """The call, waiting in the queue; it is in neither queue nor engine afterwards."""
        waiting = self._enqueue(frame)
        try:
            yield waiting
        finally:
            self._leave(waiting)

    def _enqueue(self, frame: CallFrame) -> Waiting:
        if self._closed:
            raise EngineDied("the replica is shutting down; the call runs elsewhere")
        now = self._clock()
        if frame.remaining_s is not None and frame.remaining_s <= 0.0:
            raise DeadlinePassed(f"no time was left when the call reached {self.replica}")
        estimate = self._estimate(frame)
        call = _call_of(frame, estimate, now)
        deadline = None if frame.remaining_s is None else now + frame.remaining_s
        waiting = Waiting(frame, call, estimate, deadline, asyncio.get_running_loop().create_future())
        self._queue.push(call)
        self.counts.arrived()
        self._queued_s += estimate.occupied_s
        self._waiting[call.id] = waiting
        self._wake.set()
        return waiting

    def _take(self, call: Call, now: float, batch: int) -> Waiting:
        """A call that has left the queue for the engine."""
        waiting = self._waiting[call.id]
        self._queued_s -= waiting.estimate.occupied_s
        waiting.started, waiting.batch = now, batch
        return waiting

    async def _outcome(self, waiting: Waiting) -> bytes | None:
        """What ``done`` becomes, or DeadlinePassed at the deadline whether the call waits or runs."""
        deadline = waiting.deadline
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        try:
            async with asyncio.timeout(timeout):
                return await waiting.done
        except TimeoutError:
            raise DeadlinePassed(f"the deadline passed in {self.replica}") from None

    def _leave(self, waiting: Waiting) -> None:
        if self._queue.remove(waiting.call.id):
            self._queued_s -= waiting.estimate.occupied_s
        self._waiting.pop(waiting.call.id, None)
        if not waiting.done.done():
            waiting.done.cancel()
        self._wake.set()

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            again = self._advance(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if again is None else max(0.0, again - now)):
                    await self._wake.wait()

    # -- what goes out ---------------------------------------------------------------------------------------------

    def _engine_call(self, waiting: Waiting, progress: Progress = SILENT) -> EngineCall:
        frame, call = waiting.frame, waiting.call
        return EngineCall(
            id=frame.id,
            leaf=frame.leaf,
            method=frame.method,
            payload=frame.payload,
            size=frame.size,
            deadline=waiting.deadline,
            stream=frame.stream,
            priority=round(rank_at(self._policy, call, waiting.started) * 1000.0),
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
            progress=progress,
        )

    def _report(self, waiting: Waiting, first_frame_s: float | None = None) -> Report:
        load = self.load()
        alone_s, occupied_s = self._modelled(waiting)
        return Report(
            replica=self.replica,
            queue_s=waiting.started - waiting.call.arrived,
            service_s=self._clock() - waiting.started,
            first_frame_s=first_frame_s,
            batch=waiting.batch,
            queued=load.queued,
            running=load.running,
            queued_s=load.queued_s,
            running_s=load.running_s,
            prompt_tokens=waiting.prompt_tokens,
            output_tokens=waiting.output_tokens,
            alone_s=alone_s,
            occupied_s=occupied_s,
        )

    def _modelled(self, waiting: Waiting) -> tuple[float, float]:
        """What the engine's cost model makes of a call that is over: alone, occupied; zeros without a model."""
        return 0.0, 0.0


def _call_of(frame: CallFrame, estimate: Estimate, now: float) -> Call:
    """The frame as the scheduler sees it. Without a promised end, the time at which the request is given up orders it."""
    left = frame.remaining_s if frame.due_s is None else frame.due_s
    return Call(
        id=frame.id,
        arrived=now,
        deadline=None if left is None else now + left,
        size=frame.size,
        site=frame.site,
        # the sender knows the rest of the request, this replica knows its own engine
        ahead_s=max(frame.ahead_s, frame.after_s + estimate.alone_s),
        after_s=frame.after_s,
        prompt_tokens=estimate.prompt_tokens,
        output_tokens=estimate.output_tokens,
    )


def error_frame(error: BaseException) -> ErrorFrame:
    """What the caller is told of a failure."""
    if isinstance(error, ServingError | DeadlinePassed):
        return ErrorFrame(type(error).__name__, redacted(str(error)), error.status, error.retryable)
    log.error("a call failed in the engine\n%s", redacted_traceback(error))
    # the message of a foreign exception may quote inputs: name its class only
    return ErrorFrame(
        type(error).__name__, f"{type(error).__name__} in the engine; the replica's log has the traceback", 500, False
    )
