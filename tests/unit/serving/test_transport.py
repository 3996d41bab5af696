"""The Ray transport with handles that are made of coroutines: what it does when replicas are late, lost or refuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from patchwork_adapters.context import RequestContext
from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_adapters.transport import LeafCall
from patchwork_serving import transport as transport_module
from patchwork_serving.transport import RayTransport
from patchwork_serving.wire import CallFrame, ErrorFrame, ReplyFrame, Report

Answer = Callable[[CallFrame], Any]


class Response:
    def __init__(self, coro: Any) -> None:
        self._task = asyncio.ensure_future(coro)
        self.cancelled = False

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()


class Frames:
    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._source

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Answers the n-th call with the n-th answer; the last one repeats."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.frames: list[CallFrame] = []
        self.sent: list[Any] = []
        self.replicas: list[str] = []  #: named for each call

    def options(self, *, method_name: str, stream: bool, session_id: str) -> Bound:
        assert stream == (method_name == "stream")
        return Bound(self, stream, session_id)

    def take(self, data: bytes, stream: bool, replica: str) -> Any:
        frame = CallFrame.from_bytes(data)
        self.frames.append(frame)
        self.replicas.append(replica)
        answer = self._answers[min(len(self.frames), len(self._answers)) - 1]
        sent = Frames(answer(frame)) if stream else Response(answer(frame))
        self.sent.append(sent)
        return sent


class Bound:
    """A method of the handle, at one replica."""

    def __init__(self, handle: Handle, stream: bool, replica: str) -> None:
        self._handle, self._stream, self._replica = handle, stream, replica

    def remote(self, data: bytes) -> Any:
        return self._handle.take(data, self._stream, self._replica)


def call(deadline: float | None = None, stream: bool = False) -> LeafCall:
    request = RequestContext("r", "run", deadline, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    return LeafCall("llm", "leaf", "chat", b"question", stream=stream, request=request)


def ok(payload: bytes = b"answer") -> Answer:
    async def answer(frame: CallFrame) -> bytes:
        return ReplyFrame((payload,), Report("replica-1")).to_bytes()

    return answer


def refused(kind: str, status: int, retryable: bool) -> Answer:
    async def answer(frame: CallFrame) -> bytes:
        return ReplyFrame(error=ErrorFrame(kind, "said so", status, retryable)).to_bytes()

    return answer


async def died(frame: CallFrame) -> bytes:
    raise ActorDiedError


async def never(frame: CallFrame) -> bytes:
    await asyncio.Event().wait()
    return b""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "BACKOFF_S", 0.0)


async def test_a_call_carries_its_remaining_seconds_and_trace_parent() -> None:
    handle = Handle(ok())
    assert await RayTransport(lambda _: handle).call(call(deadline=time.monotonic() + 5)) == b"answer"
    assert handle.frames[0].remaining_s == pytest.approx(5, abs=0.5)
    assert handle.frames[0].traceparent is not None


async def test_a_call_of_a_lost_replica_runs_elsewhere() -> None:
    handle = Handle(died, refused("EngineDied", 503, True), ok())
    assert await RayTransport(lambda _: handle).call(call()) == b"answer"
    assert len(handle.frames) == 3
    assert len({frame.id for frame in handle.frames}) == 3


async def test_a_call_that_no_replica_answers_ends_as_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "UNAVAILABLE_PATIENCE_S", 0.0)
    handle = Handle(died)
    with pytest.raises(ComponentUnavailable, match="no replica of llm"):
        await RayTransport(lambda _: handle).call(call())
    assert len(handle.frames) == transport_module.MAX_ATTEMPTS


async def test_a_refusal_is_not_tried_again() -> None:
    handle = Handle(refused("EngineRefused", 400, False))
    with pytest.raises(ComponentFailed, match="EngineRefused"):
        await RayTransport(lambda _: handle).call(call())
    assert len(handle.frames) == 1


async def test_a_deadline_cancels_the_call_in_the_replica() -> None:
    handle = Handle(never)
    with pytest.raises(DeadlinePassed):
        await RayTransport(lambda _: handle).call(call(deadline=time.monotonic() + 0.02))
    assert handle.sent[0].cancelled


async def test_cancelling_the_caller_cancels_the_call_in_the_replica() -> None:
    handle = Handle(never)
    task = asyncio.create_task(RayTransport(lambda _: handle).call(call()))
    while not handle.sent:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.sent[0].cancelled


async def test_a_stream_starts_again_elsewhere_only_before_its_first_frame() -> None:
    async def breaks_at_once(frame: CallFrame) -> AsyncIterator[bytes]:
        raise ActorDiedError
        yield b""

    async def breaks_later(frame: CallFrame) -> AsyncIterator[bytes]:
        yield ReplyFrame((b"a", b"b"), last=False).to_bytes()
        raise ActorDiedError

    handle = Handle(breaks_at_once, breaks_later)
    seen: list[bytes] = []
    with pytest.raises(ComponentUnavailable, match="middle"):
        async for frame in RayTransport(lambda _: handle).stream(call(stream=True)):
            seen.append(frame)
    assert seen == [b"a", b"b"]
    assert len(handle.frames) == 2


async def test_leaving_a_stream_cancels_it_in_the_replica() -> None:
    async def endless(frame: CallFrame) -> AsyncIterator[bytes]:
        while True:
            yield ReplyFrame((b"t",), last=False).to_bytes()

    handle = Handle(endless)
    frames = RayTransport(lambda _: handle).stream(call(stream=True))
    assert await anext(frames) == b"t"
    await frames.aclose()  # type: ignore[attr-defined]
    assert handle.sent[0].cancelled
