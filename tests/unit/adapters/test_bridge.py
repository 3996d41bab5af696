"""Calls reach the one I/O loop from threads, from other loops and from synchronous code on a loop, and are cancelled from both sides."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypedDict

import pytest

from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.context import RequestContext
from patchwork_adapters.errors import ComponentUnavailable, DeadlinePassed, RequestCancelled
from patchwork_adapters.transport import LeafCall


class Echo:
    """Replies with the payload; ``hold`` keeps calls waiting until it is set."""

    def __init__(self) -> None:
        self.hold = False
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.threads: set[int] = set()

    async def call(self, call: LeafCall) -> bytes:
        self.threads.add(threading.get_ident())
        await self._maybe_hold()
        if call.method == "fail":
            raise ComponentUnavailable("nobody there")
        return call.payload

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.threads.add(threading.get_ident())
        for byte in call.payload:
            yield bytes([byte])
        await self._maybe_hold()
        if call.method == "fail":
            raise ComponentUnavailable("lost on the way")

    async def _maybe_hold(self) -> None:
        self.entered.set()
        if self.hold:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def bridge(echo: Echo) -> Iterator[Bridge]:
    with Bridge(echo) as bridge:
        yield bridge


def call(payload: bytes = b"abc", method: str = "m", request: RequestContext | None = None) -> LeafCall:
    return LeafCall("c", "leaf", method, payload, request=request)


def request_with(seconds: float) -> RequestContext:
    return RequestContext("r", "r", deadline=time.monotonic() + seconds)


async def test_every_kind_of_caller_gets_the_reply_from_one_loop(bridge: Bridge, echo: Echo) -> None:
    assert bridge.call(call()) == b"abc"
    assert await bridge.acall(call()) == b"abc"
    assert list(bridge.stream(call())) == [b"a", b"b", b"c"]
    assert [frame async for frame in bridge.astream(call())] == [b"a", b"b", b"c"]
    assert await asyncio.to_thread(bridge.call, call()) == b"abc"
    assert len(echo.threads) == 1
    assert threading.get_ident() not in echo.threads


async def test_errors_arrive_after_the_frames_before_them(bridge: Bridge) -> None:
    with pytest.raises(ComponentUnavailable):
        bridge.call(call(method="fail"))
    with pytest.raises(ComponentUnavailable):
        await bridge.acall(call(method="fail"))
    frames = bridge.stream(call(method="fail"))
    assert [next(frames) for _ in range(3)] == [b"a", b"b", b"c"]
    with pytest.raises(ComponentUnavailable):
        next(frames)
    got = []
    with pytest.raises(ComponentUnavailable):
        async for frame in bridge.astream(call(method="fail")):
            got.append(frame)
    assert got == [b"a", b"b", b"c"]


async def test_cancelling_the_waiter_cancels_the_work(bridge: Bridge, echo: Echo) -> None:
    echo.hold = True
    task = asyncio.create_task(bridge.acall(call()))
    await asyncio.to_thread(echo.entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(echo.cancelled.wait, 10)


@pytest.mark.parametrize("is_async", [True, False])
async def test_closing_a_stream_early_cancels_the_work(bridge: Bridge, echo: Echo, is_async: bool) -> None:
    echo.hold = True
    if is_async:
        frames = bridge.astream(call())
        assert await anext(frames) == b"a"
        await frames.aclose()  # type: ignore[attr-defined]
    else:
        chunks = bridge.stream(call())
        assert next(chunks) == b"a"
        assert await asyncio.to_thread(echo.entered.wait, 10)
        chunks.close()  # type: ignore[attr-defined]
    if echo.entered.is_set():
        assert await asyncio.to_thread(echo.cancelled.wait, 10)


async def test_cancelling_a_request_frees_all_its_waiters(bridge: Bridge, echo: Echo) -> None:
    echo.hold = True
    request = RequestContext("r7", "run")
    waiting = [
        asyncio.create_task(bridge.acall(call(request=request))),
        asyncio.create_task(asyncio.to_thread(bridge.call, call(request=request))),
        asyncio.create_task(asyncio.to_thread(lambda: list(bridge.stream(call(request=request))))),
    ]
    while len(bridge._inflight.get("r7", ())) < 3:
        await asyncio.sleep(0.001)
    assert bridge.cancel("r7") == 3
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, RequestCancelled)
    assert bridge.cancel("r7") == 0
    assert bridge.cancel("unknown") == 0


async def test_a_deadline_ends_the_wait_and_the_work(bridge: Bridge, echo: Echo) -> None:
    echo.hold = True
    with pytest.raises(DeadlinePassed):
        await asyncio.to_thread(bridge.call, call(request=request_with(0.5)))  # on a busy machine the work begins late
    assert await asyncio.to_thread(echo.cancelled.wait, 10)
    with pytest.raises(DeadlinePassed):
        await bridge.acall(call(request=request_with(0.02)))
    with pytest.raises(DeadlinePassed):
        async for _ in bridge.astream(call(request=request_with(0.02))):
            pass


class Reluctant(Echo):
    """Goes on for a while when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.ended = threading.Event()

    async def call(self, call: LeafCall) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.entered.set()
            await self.let_go.wait()
            self.ended.set()
        return b""

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        yield await self.call(call)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_deadline_does_not_wait_for_the_work_to_end(is_stream: bool) -> None:
    reluctant, late = Reluctant(), call(request=request_with(0.02))
    with Bridge(reluctant) as bridge:
        with pytest.raises(DeadlinePassed):
            await asyncio.wait_for(_read(bridge.astream(late)) if is_stream else bridge.acall(late), 10)
        assert await asyncio.to_thread(reluctant.entered.wait, 10)
        assert not reluctant.ended.is_set()
        assert not bridge._inflight
        assert bridge._loop is not None
        bridge._loop.call_soon_threadsafe(reluctant.let_go.set)
        assert await asyncio.to_thread(reluctant.ended.wait, 10)


async def test_a_deadline_that_has_passed_starts_nothing(bridge: Bridge, echo: Echo) -> None:
    with pytest.raises(DeadlinePassed):
        await bridge.acall(call(request=request_with(-1)))
    assert not echo.entered.is_set()


async def test_a_timeout_of_the_caller_is_a_timeout_error(bridge: Bridge, echo: Echo) -> None:
    echo.hold = True
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(bridge.call, call(), 0.02)
    with pytest.raises(TimeoutError):
        await bridge.acall(call(request=request_with(60)), 0.02)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(lambda: list(bridge.stream(call(), 0.02)))
    with pytest.raises(TimeoutError):
        async for _ in bridge.astream(call(), 0.02):
            pass


def test_synchronous_calls_and_streams_on_a_loop_with_portals_interleave(bridge: Bridge) -> None:
    async def one() -> tuple[bytes, list[bytes]]:
        return bridge.call(call()), list(bridge.stream(call()))

    async def main() -> list[tuple[bytes, list[bytes]]]:
        install_portal(asyncio.get_running_loop())
        return list(await asyncio.gather(*(asyncio.create_task(one()) for _ in range(20))))

    assert asyncio.run(main()) == [(b"abc", [b"a", b"b", b"c"])] * 20


def parallel_stream(meet: Callable[[Any], Any]) -> Any:
    from langchain_core.runnables import RunnableLambda, RunnableParallel

    parallel = RunnableParallel(a=RunnableLambda(meet), b=RunnableLambda(meet))
    return sorted(map(str, parallel.stream("x")))


class Both(TypedDict, total=False):
    a: str
    b: str


def graph_invoke(meet: Callable[[Any], Any]) -> Any:
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(Both)
    for name in ("a", "b"):
        builder.add_node(name, lambda state, name=name: {name: meet("x")})  # type: ignore[misc]
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    return builder.compile().invoke({})


@pytest.mark.parametrize("work", [parallel_stream, graph_invoke])  # both wait with concurrent.futures.wait
def test_synchronous_work_in_threads_of_two_requests_on_one_loop_goes_on_side_by_side(
    work: Callable[[Any], Any],
) -> None:
    """Each thread waits for those of the other request, which a loop that stands still would never start."""
    barrier = threading.Barrier(4)  # two of each request

    def meet(value: Any) -> Any:
        barrier.wait(10)
        return value

    async def one() -> Any:
        return work(meet)

    async def main() -> list[Any]:
        install_portal(asyncio.get_running_loop())
        return list(await asyncio.gather(*(asyncio.create_task(one()) for _ in range(2))))

    first, second = asyncio.run(main())
    assert first == second
    assert first is not None


def test_a_users_own_waiting_is_left_as_it_is() -> None:
    """It may hold a lock; the loop stands still, as it would without us."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> None:
        install_portal(asyncio.get_running_loop())
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        before = ticks
        with ThreadPoolExecutor(1) as pool:
            wait([pool.submit(time.sleep, 0.02)])
        assert ticks == before
        ticking.cancel()

    asyncio.run(main())


def test_cancelling_a_task_that_waits_synchronously_cancels_the_work(bridge: Bridge, echo: Echo) -> None:
    echo.hold = True

    async def one() -> bytes:
        return bridge.call(call())

    async def main() -> None:
        install_portal(asyncio.get_running_loop())
        task = asyncio.create_task(one())
        await asyncio.to_thread(echo.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert echo.cancelled.wait(10)


def test_closing_is_repeatable_cancels_what_runs_and_refuses_more(echo: Echo) -> None:
    bridge = Bridge(echo)
    echo.hold = True
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            bridge.call(call())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert echo.entered.wait(10)
    bridge.close()
    bridge.close()
    thread.join(10)
    assert isinstance(outcome[0], RequestCancelled)
    with pytest.raises(ComponentUnavailable, match="closed"):
        bridge.call(call())


def test_a_bridge_that_was_never_used_closes_without_a_thread(echo: Echo) -> None:
    before = threading.active_count()
    Bridge(echo).close()
    assert threading.active_count() == before


def test_a_test_leaves_waiting_for_futures_as_it_was() -> None:
    """Those above have installed portals; ``waiting_as_before`` of conftest has taken the change back."""
    assert not hasattr(Future.result, "__wrapped__")


class Stuck(Echo):
    """Holds its whole loop, not only the call."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    async def call(self, call: LeafCall) -> bytes:
        self.entered.set()
        self.go_on.wait(10)
        return b""


async def test_a_stream_that_is_cancelled_before_it_began_ends_for_its_reader() -> None:
    stuck, request = Stuck(), RequestContext("r8", "run")
    with Bridge(stuck) as bridge:
        holding = asyncio.create_task(asyncio.to_thread(bridge.call, call()))
        await asyncio.to_thread(stuck.entered.wait, 10)
        reading = [
            asyncio.create_task(asyncio.to_thread(lambda: list(bridge.stream(call(request=request))))),
            asyncio.create_task(_read(bridge.astream(call(request=request)))),
            asyncio.create_task(bridge.acall(call(request=request))),
        ]
        while len(bridge._inflight.get("r8", ())) < 3:
            await asyncio.sleep(0.001)
        assert bridge.cancel("r8") == 3
        try:
            outcomes = await asyncio.wait_for(asyncio.gather(*reading, return_exceptions=True), 5)
        finally:
            stuck.go_on.set()
            await holding
        assert [type(outcome) for outcome in outcomes] == [RequestCancelled] * 3


async def _read(frames: AsyncIterator[bytes]) -> list[bytes]:
    return [frame async for frame in frames]


def test_a_stream_may_be_read_on_elsewhere_than_where_it_began(bridge: Bridge) -> None:
    """LlamaIndex reads an answer's stream in a thread of its own."""

    async def begin() -> list[bytes]:
        frames = bridge.stream(call())
        return [next(frames), *await asyncio.to_thread(list, frames)]

    async def main() -> list[bytes]:
        install_portal(asyncio.get_running_loop())
        return await asyncio.create_task(begin())

    assert asyncio.run(main()) == [b"a", b"b", b"c"]


def test_an_error_leaves_no_cycle_behind(bridge: Bridge) -> None:
    """The traceback of what a call raised holds its frames, and those the call's payload and the user's objects."""

    def failed() -> weakref.ref[BaseException]:
        try:
            bridge.call(call(method="fail"))
        except ComponentUnavailable as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        gone = failed()
        until = time.monotonic() + 5
        while gone() is not None and time.monotonic() < until:  # the I/O thread lets go of its own frames
            time.sleep(0.001)
        assert gone() is None
    finally:
        gc.enable()


class Knowing(Echo):
    """Knows some answers already."""

    def __init__(self, *known: bytes) -> None:
        super().__init__()
        self.known = known
        self.asked: list[int] = []

    def answer_now(self, call: LeafCall) -> list[bytes] | None:
        self.asked.append(threading.get_ident())
        return list(self.known) if call.method == "known" else None


@pytest.fixture
def knowing() -> Iterator[tuple[Bridge, Knowing]]:
    transport = Knowing(b"a", b"b")
    with Bridge(transport) as bridge:
        yield bridge, transport


def test_what_the_transport_knows_is_answered_in_the_thread_that_asks(knowing: tuple[Bridge, Knowing]) -> None:
    bridge, transport = knowing
    known = call(method="known", request=request_with(60))

    async def asynchronously() -> None:
        assert bridge.call(known) == await bridge.acall(known) == b"a"
        assert list(bridge.stream(known)) == [frame async for frame in bridge.astream(known)] == [b"a", b"b"]

    async def by_portal() -> None:
        install_portal(asyncio.get_running_loop())
        await asyncio.create_task(asynchronously())

    before = threading.active_count()
    assert bridge.call(known) == b"a"
    assert list(bridge.stream(known)) == [b"a", b"b"]
    asyncio.run(asynchronously())
    asyncio.run(by_portal())
    assert threading.active_count() == before  # nothing has been waited for, on any loop
    assert set(transport.asked) == {threading.get_ident()}
    assert not transport.threads
    assert not bridge.blocking


async def test_what_the_transport_does_not_know_is_asked_on_the_io_loop(knowing: tuple[Bridge, Knowing]) -> None:
    bridge, transport = knowing
    assert await bridge.acall(call()) == await asyncio.to_thread(bridge.call, call()) == b"abc"
    assert [frame async for frame in bridge.astream(call())] == list(bridge.stream(call())) == [b"a", b"b", b"c"]
    assert threading.get_ident() not in transport.threads


@pytest.mark.parametrize("ask", [Bridge.call, lambda bridge, call: next(bridge.stream(call))])
def test_a_late_request_and_a_closed_bridge_get_no_known_answer(
    knowing: tuple[Bridge, Knowing], ask: Callable[[Bridge, LeafCall], bytes]
) -> None:
    bridge, transport = knowing
    with pytest.raises(DeadlinePassed):
        ask(bridge, call(method="known", request=request_with(-1)))
    bridge.close()
    with pytest.raises(ComponentUnavailable, match="closed"):
        ask(bridge, call(method="known"))
    assert not transport.asked
