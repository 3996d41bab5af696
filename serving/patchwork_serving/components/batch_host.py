"""The host of an engine that runs batches to their end: up to so many batches at once, cut from the head of the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from patchwork_adapters.errors import DeadlinePassed
from patchwork_scheduler.learned import LearnedBatchCost
from patchwork_scheduler.policies import Policy
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.engine import BatchEngine
from patchwork_serving.components.host import ComponentHost, Estimate, Waiting
from patchwork_serving.wire import CallFrame, ReplyFrame


class BatchHost(ComponentHost):
    """``cost`` is learnt from every batch; a queue made with it grows no batch beyond what the tightest call in it can bear."""

    engine: BatchEngine

    def __init__(
        self,
        engine: BatchEngine,
        queue: CallQueue,
        policy: Policy,
        cost: LearnedBatchCost,
        *,
        replica: str,
        max_batch: int,
        parallel: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(engine, queue, policy, replica=replica, limit=parallel, clock=clock)
        self._cost = cost
        self._max_batch = max_batch
        self._batches: dict[asyncio.Task[None], tuple[float, float]] = {}  # each with its start and predicted end

    async def stream(self, frame: CallFrame) -> AsyncIterator[ReplyFrame]:
        yield await self.call(frame)

    async def _call(self, frame: CallFrame) -> ReplyFrame:
        with self._arrived(frame) as waiting:
            reply = await self._outcome(waiting)
        return ReplyFrame((reply or b"",), self._report(waiting))

    def _estimate(self, frame: CallFrame) -> Estimate:
        occupied = self._cost.per_item_s(self._max_batch) * frame.size / self._limit
        return Estimate(self._cost(frame.size), occupied, frame.prompt_tokens, frame.output_tokens)

    def _modelled(self, waiting: Waiting) -> tuple[float, float]:
        return waiting.estimate.alone_s, waiting.estimate.occupied_s

    def _running_s(self, now: float) -> float:
        return sum(max(0.0, end - now) for _, end in self._batches.values()) / self._limit

    def _is_stalled(self, now: float) -> bool:
        return any(self._pace.is_stalled(end - start, now - start) for start, end in self._batches.values())

    def _work(self) -> Iterator[asyncio.Task[None]]:
        return iter(tuple(self._batches))

    def _advance(self, now: float) -> float | None:
        while self._running < self._limit:
            # an idle engine waits for nobody; one with batches inside may hold a call for company
            ready = self._queue.ready_at(now, idle=not self._running)
            if ready is None or ready > now:
                return ready
            self._start_batch(now)
        return None

    def _start_batch(self, now: float) -> None:
        calls = self._queue.next_batch(now)
        batch = [self._take(call, now, len(calls)) for call in calls]
        self._running += 1
        task = asyncio.create_task(self._run(batch))
        self._batches[task] = (now, now + self._cost(sum(call.size for call in calls)))
        task.add_done_callback(self._ended)
        for waiting in batch:  # nobody waits for it any more: stop the work
            waiting.done.add_done_callback(lambda _: task.cancel() if all(w.done.cancelled() for w in batch) else None)

    def _ended(self, task: asyncio.Task[None] | None) -> None:
        """Safe to repeat: a batch tells itself, before its callers hear of it; one that was cancelled before it ran does not."""
        if task is not None and self._batches.pop(task, None) is not None:
            self._running -= 1
            self._wake.set()

    async def _run(self, batch: list[Waiting]) -> None:
        replies: Sequence[bytes | BaseException]
        try:
            replies = await self.engine.run([self._engine_call(w) for w in batch])
            self._learn(batch, replies, self._clock() - batch[0].started)
        except (Exception, DeadlinePassed) as error:  # noqa: BLE001  the loop top of a batch: each caller gets the failure
            replies = [error] * len(batch)
        finally:
            self._ended(asyncio.current_task())
        for waiting, reply in zip(batch, replies, strict=True):
            if waiting.done.done():
                continue
            if isinstance(reply, BaseException):
                waiting.done.set_exception(reply)
            else:
                waiting.done.set_result(reply)

    def _learn(self, batch: list[Waiting], replies: Sequence[bytes | BaseException], seconds: float) -> None:
        # a batch that failed says nothing of how long calls take
        if not all(isinstance(reply, Exception) for reply in replies):
            self.counts.served(len(batch), seconds)
            size = sum(w.call.size for w in batch)
            self._pace.worked(self._cost(size), seconds, self._clock())
            self._cost.observe(size, seconds)
