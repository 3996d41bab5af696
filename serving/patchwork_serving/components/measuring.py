"""Running an engine with known calls, and nothing else, to see how long it takes. Used by ``patchwork profile``, in the replica itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_adapters.protocol import decode_response
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine, EngineCall
from patchwork_serving.errors import EngineRefused
from patchwork_serving.wire import CallFrame

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run showed. Picklable: it travels from the replica to the profiler."""

    seconds: tuple[
        float, ...
    ]  #: of each batch; of a continuous engine, the time in which a batch's worth of calls was completed
    cpu_s: float  #: that the process worked, all threads together
    wall_s: float
    rss_bytes: int  #: of the process, afterwards
    replies: tuple[bytes, ...] = field(default=(), repr=False)


async def measure(
    engine: BatchEngine | ContinuousEngine, frames: Sequence[bytes], at_once: int, clock: Clock = time.perf_counter
) -> Run:
    """Run the calls, ``at_once`` of them at any time (a continuous engine) or in each batch. Raises what the engine raises,
    and EngineRefused for what it answers with an error status: a call that is refused takes no time, and would be profiled as that.
    """
    calls = [_call(frame) for frame in frames]
    process = psutil.Process()
    before, began = _cpu_s(process), clock()
    if isinstance(engine, BatchEngine):
        seconds, replies = await _batches(engine, calls, at_once, clock)
    else:
        seconds, replies = await _kept_busy(engine, calls, at_once, clock)
    wall_s = clock() - began
    return Run(tuple(seconds), _cpu_s(process) - before, wall_s, process.memory_info().rss, tuple(replies))


async def _batches(
    engine: BatchEngine, calls: Sequence[EngineCall], size: int, clock: Clock
) -> tuple[list[float], list[bytes]]:
    seconds, replies = [], []
    for start in range(0, len(calls), size):
        began = clock()
        answers = await engine.run(calls[start : start + size])
        seconds.append(clock() - began)
        for call, answer in zip(calls[start : start + size], answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            replies.append(_accepted(call, answer))
    return seconds, replies


async def _kept_busy(
    engine: ContinuousEngine, calls: Sequence[EngineCall], at_once: int, clock: Clock
) -> tuple[list[float], list[bytes]]:
    """As a queue that never empties does: whoever ends is followed at once. Seconds per ``at_once`` calls."""
    waiting: Iterator[EngineCall] = iter(calls)
    replies: list[bytes] = []

    async def worker() -> None:
        for call in waiting:
            first, *more = [frame async for frame in engine.generate(call)]
            replies.append(b"".join([_accepted(call, first), *more]))

    began = clock()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(calls))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [(clock() - began) * at_once / len(calls)], replies


def _accepted(call: EngineCall, frame: bytes) -> bytes:
    """The reply's first frame, unless it is a refusal told by HTTP's status."""
    if call.method.startswith("POST ") and (response := decode_response(frame)).status >= 400:
        told = response.body[:200].decode("utf-8", "replace")
        raise EngineRefused(f"the engine refused {call.method} with status {response.status}: {told}")
    return frame


def _call(data: bytes) -> EngineCall:
    frame = CallFrame.from_bytes(data)
    return EngineCall(frame.id, frame.leaf, frame.method, frame.payload, size=frame.size, stream=frame.stream)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
