"""The Ray transport with handles that are made of coroutines: what it does when replicas are late, lost or refuse."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError

from patchwork_adapters import codec
from patchwork_adapters.context import RequestContext
from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_adapters.transport import LeafCall
from patchwork_serving import transport as transport_module
from patchwork_serving.per_request import CallsPerRequest
from patchwork_serving.release import ComponentSpec
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.scheduling.core import MAX_SITES
from patchwork_serving.sharing import Sharing
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

    def options(self, *, method_name: str, stream: bool, session_id: str, _by_reference: bool) -> Bound:
        assert not _by_reference
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


THREE = ("a", "b", "c")


def ok(payload: bytes = b"answer", report: Report | None = None) -> Answer:
    async def answer(frame: CallFrame) -> bytes:
        return ReplyFrame((payload,), report or Report("replica-1")).to_bytes()

    return answer


def refused(kind: str, status: int, retryable: bool) -> Answer:
    async def answer(frame: CallFrame) -> bytes:
        return ReplyFrame(error=ErrorFrame(kind, "said so", status, retryable)).to_bytes()

    return answer


async def died(frame: CallFrame) -> bytes:
    raise ActorDiedError


async def too_long(frame: CallFrame) -> bytes:
    raise AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), details="larger than max (5 vs. 4)")


async def broke_off(frame: CallFrame) -> bytes:
    raise AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata(), details="the connection was reset")


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
    handle = Handle(died, refused("EngineDied", 503, True), broke_off, ok())
    assert await RayTransport(lambda _: handle).call(call()) == b"answer"
    assert len(handle.frames) == 4
    assert len({frame.id for frame in handle.frames}) == 4


async def test_a_message_that_is_too_long_is_told_and_not_sent_again() -> None:
    handle = Handle(too_long)
    with pytest.raises(ComponentFailed, match="longer than this Ray cluster lets through"):
        await RayTransport(lambda _: handle).call(call())
    assert len(handle.frames) == 1


async def test_a_call_of_a_lost_replica_goes_to_another_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "BACKOFF_S", 1000.0)  # not waited for
    handle = Handle(died, refused("EngineDied", 503, True), ok())
    scheduling = Scheduling(replicas_of=lambda _: THREE)
    assert await RayTransport(lambda _: handle, scheduling=scheduling).call(call()) == b"answer"
    assert sorted(handle.replicas) == ["a", "b", "c"]


async def test_a_call_tells_the_replica_what_is_promised_and_predicted() -> None:
    handle = Handle(ok(report=Report("llm#a", service_s=2.0, prompt_tokens=4, output_tokens=8)), ok())
    transport = RayTransport(lambda _: handle)
    await transport.call(call())
    now = time.monotonic()
    request = RequestContext("r", "run", deadline=now + 9.0, slo_deadline=now + 5.0)
    await transport.call(LeafCall("llm", "leaf", "chat", b"question", request=request))
    first, second = handle.frames
    assert (first.due_s, first.ahead_s) == (None, 0.0)
    assert second.due_s == pytest.approx(5.0, abs=0.5)
    assert (second.ahead_s, second.after_s) == (pytest.approx(2.0), 0.0)
    assert (second.prompt_tokens, second.output_tokens) == (4, 8)


async def test_a_replica_is_told_the_call_site_that_the_call_counts_for() -> None:
    handle = Handle(ok())
    transport = RayTransport(lambda _: handle)
    for n in range(MAX_SITES + 1):
        await transport.call(call()._replace(site=f"site{n}"))
    assert (handle.frames[0].site, handle.frames[-1].site) == ("site0", "llm")


def of(run_id: str, *, stream: bool = False) -> LeafCall:
    return call(stream=stream)._replace(request=RequestContext("r", run_id))


async def test_calls_of_one_request_wait_for_its_places_and_those_of_others_do_not() -> None:
    gates = {name: asyncio.Event() for name in ("one", "two")}
    made: list[str] = []

    async def answers(frame: CallFrame) -> bytes:
        made.append(frame.payload.decode())
        await gates[frame.payload.decode()[:3]].wait()
        return ReplyFrame((b"answer",)).to_bytes()

    places = CallsPerRequest(2)
    transport = RayTransport(lambda _: Handle(answers), per_request=places)

    def begin(run_id: str, number: int) -> asyncio.Task[bytes]:
        made_by = of(run_id)._replace(payload=f"{run_id} {number}".encode())
        return asyncio.create_task(transport.call(made_by))

    tasks = [begin("one", n) for n in range(4)] + [begin("two", 0)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert made == ["one 0", "one 1", "two 0"]
    tasks[2].cancel()  # it waits: its place goes to the next one
    gates["one"].set()
    await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert made == ["one 0", "one 1", "two 0", "one 3"]
    gates["two"].set()
    await tasks[4]
    assert len(places) == 0


async def test_a_stream_that_is_being_read_takes_no_place() -> None:
    async def pieces(frame: CallFrame) -> AsyncIterator[bytes]:
        yield ReplyFrame((b"piece",), last=False).to_bytes()
        yield ReplyFrame((b"end",)).to_bytes()

    streams = Handle(pieces)
    transport = RayTransport({"llm": streams, "other": Handle(ok())}.__getitem__, per_request=CallsPerRequest(1))
    async with contextlib.aclosing(transport.stream(of("one", stream=True))) as frames:  # type: ignore[type-var]
        assert await anext(frames) == b"piece"
        assert await transport.call(of("one")._replace(component="other")) == b"answer"


async def test_the_router_forgets_calls_however_they_end() -> None:
    async def fails(frame: CallFrame) -> bytes:
        raise ValueError("unexpected")

    endings = [ok(), refused("EngineRefused", 400, False), died, fails, never]
    for ending in endings:
        scheduling = Scheduling(replicas_of=lambda _: THREE)
        handles = {"llm": Handle(ending)}
        transport = RayTransport(handles.__getitem__, scheduling=scheduling)
        with contextlib.suppress(Exception, DeadlinePassed):
            await transport.call(call(deadline=time.monotonic() + 0.02))
        router = scheduling._replicas["llm"].router
        assert all(not replica.outstanding for replica in router._replicas.values()), ending
        router.check_invariants()


SHARED = {
    "store": ComponentSpec(id="store", kind="retriever", way="engine", engine="pgvector"),
    "llm": ComponentSpec(id="llm", kind="llm", way="engine", engine="llamacpp"),
    "mine": ComponentSpec(id="mine", kind="retriever", way="own", engine="own"),
}


def search(payload: bytes = b"q", component: str = "store", method: str = "search", left_s: float = 60.0) -> LeafCall:
    now = time.monotonic()
    request = RequestContext("r", "run", deadline=now + left_s, slo_deadline=now + left_s)
    return LeafCall(component, "leaf", method, payload, request=request)


async def at_once(transport: RayTransport, *calls: LeafCall) -> list[Any]:
    return await asyncio.gather(*(transport.call(one) for one in calls), return_exceptions=True)


async def test_equal_searches_in_flight_are_made_once() -> None:
    handle = Handle(ok())
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    assert await at_once(transport, search(), search(), search(b"other"), search()) == [b"answer"] * 4
    assert [frame.payload for frame in handle.frames] == [b"q", b"other"]
    await transport.call(search())  # nothing is in flight any more, and nothing is kept
    assert len(handle.frames) == 3


@pytest.mark.parametrize(
    ("component", "method"),
    [
        ("llm", "chat"),  # sampled: two answers are not one
        ("mine", "search"),  # the user's own object: nothing is known of what it does
        ("store", "add"),  # a write
    ],
)
async def test_other_calls_are_each_made(component: str, method: str) -> None:
    handle = Handle(ok())
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    await at_once(transport, *(search(b"q", component, method) for _ in range(2)))
    assert len(handle.frames) == 2


@pytest.mark.parametrize(
    ("temperature", "allowed", "made"), [(0, True, 1), (0.0, True, 1), (0.5, True, 2), (None, True, 2), (0, False, 2)]
)
async def test_an_llm_call_is_shared_when_it_is_greedy_and_allowed(
    temperature: float | None, allowed: bool, made: int
) -> None:
    handle = Handle(ok())
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED, llm=allowed))
    payload = codec.encode({"body": {"messages": [], "temperature": temperature}})
    await at_once(transport, *(search(payload, "llm", "chat") for _ in range(2)))
    assert len(handle.frames) == made


async def test_shared_work_is_cancelled_when_the_last_who_waits_has_left() -> None:
    handle = Handle(never)
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    tasks = [asyncio.create_task(transport.call(search())) for _ in range(2)]
    while not handle.sent:
        await asyncio.sleep(0)
    tasks[0].cancel()  # the one whose call it is
    await asyncio.wait(tasks[:1])
    assert not handle.sent[0].cancelled
    tasks[1].cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert handle.sent[0].cancelled


async def test_who_has_time_left_asks_again_when_the_one_who_asked_first_had_none() -> None:
    handle = Handle(never, ok())
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    first, second = await at_once(transport, search(left_s=0.02), search())
    assert isinstance(first, DeadlinePassed)
    assert second == b"answer"


async def test_who_needs_it_sooner_does_not_wait_for_work_begun_for_later() -> None:
    handle = Handle(ok())
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    await at_once(transport, search(left_s=60.0), search(left_s=1.0), search(left_s=2.0))
    assert len(handle.frames) == 2


async def test_a_search_after_a_write_is_not_answered_by_one_before_it() -> None:
    started = asyncio.Event()

    async def slow(frame: CallFrame) -> bytes:
        started.set()
        await asyncio.sleep(0.01)
        return ReplyFrame((b"old",), Report("store#a")).to_bytes()

    handle = Handle(slow, ok(b"written"), ok(b"new"))
    transport = RayTransport(lambda _: handle, sharing=Sharing(SHARED))
    before = asyncio.create_task(transport.call(search()))
    await started.wait()
    await transport.call(search(b"row", method="add"))
    assert await transport.call(search()) == b"new"
    assert await before == b"old"


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


async def test_a_stream_that_breaks_off_without_its_last_frame_is_not_sent_again() -> None:
    async def breaks_off(frame: CallFrame) -> AsyncIterator[bytes]:
        yield ReplyFrame((b"a",), last=False).to_bytes()

    handle = Handle(breaks_off)
    seen: list[bytes] = []
    with pytest.raises(ComponentUnavailable, match="broke off"):
        async for frame in RayTransport(lambda _: handle).stream(call(stream=True)):
            seen.append(frame)
    assert (seen, len(handle.frames)) == ([b"a"], 1)


async def test_leaving_a_stream_cancels_it_in_the_replica() -> None:
    async def endless(frame: CallFrame) -> AsyncIterator[bytes]:
        while True:
            yield ReplyFrame((b"t",), last=False).to_bytes()

    handle = Handle(endless)
    frames = RayTransport(lambda _: handle).stream(call(stream=True))
    assert await anext(frames) == b"t"
    await frames.aclose()  # type: ignore[attr-defined]
    assert handle.sent[0].cancelled
