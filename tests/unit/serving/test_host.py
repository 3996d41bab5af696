"""The host with engines made of futures: no sleeps, no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from patchwork_serving.components.coalesce import coalesce
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.components.hosting import host_of
from patchwork_serving.errors import ConfigError, EngineDied, EngineRefused
from patchwork_serving.pacing import MAX_S, pause_s
from patchwork_serving.release import ComponentSpec
from patchwork_serving.wire import CallFrame, ReplyFrame, Report


class Gate:
    """A batch engine whose batches end when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.cancelled = 0
        self.closed = 0

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1

    def describe(self) -> Mapping[str, Any]:
        return {}

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        self.batches.append([call.id for call in batch])
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [EngineRefused("too long") if call.payload == b"bad" else call.payload for call in batch]


class Tokens:
    """A continuous engine that streams three frames, each when the test opens the gate."""

    slots = 2

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside: list[str] = []
        self.aborted: list[str] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        return {}

    async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        self.inside.append(call.id)
        ended = False
        try:
            for token in (b"a", b"b", b"c"):
                yield token
                await self.open.wait()
            ended = True
        finally:
            self.inside.remove(call.id)
            if not ended:
                self.aborted.append(call.id)


def frame(name: str, payload: bytes = b"x", **fields: Any) -> CallFrame:
    return CallFrame(id=name, request_id="r", leaf="l", method="m", payload=payload, **fields)


async def host(engine: Any, max_batch: int = 8) -> ComponentHost:
    built = host_of(spec(max_batch=max_batch), engine, replica="replica-1")
    await built.start()
    return built


def spec(**fields: Any) -> ComponentSpec:
    return ComponentSpec(id="c", kind="llm", way="engine", engine="fake", **fields)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


async def test_calls_that_come_while_a_batch_runs_form_the_next_one() -> None:
    engine = Gate()
    served = await host(engine)
    first = asyncio.create_task(served.call(frame("a")))
    await until(lambda: engine.batches == [["a"]])
    others = [asyncio.create_task(served.call(frame(n))) for n in "bcd"]
    await until(lambda: served.load().queued == 3)
    engine.open.set()
    replies = await asyncio.gather(first, *others)
    assert engine.batches == [["a"], ["b", "c", "d"]]
    assert [r.payloads for r in replies] == [(b"x",)] * 4
    assert replies[1].report is not None
    assert replies[1].report.batch == 3
    await served.close()


async def test_a_call_that_fails_alone_does_not_fail_its_batch() -> None:
    engine = Gate()
    engine.open.set()
    served = await host(engine)
    good, bad = await asyncio.gather(served.call(frame("a")), served.call(frame("b", b"bad")))
    assert good.error is None
    assert bad.error is not None
    assert (bad.error.kind, bad.error.status) == ("EngineRefused", 400)
    await served.close()


async def test_a_caller_that_leaves_takes_its_call_out_of_the_queue() -> None:
    engine = Gate()
    served = await host(engine)
    running = asyncio.create_task(served.call(frame("a")))
    await until(lambda: engine.batches == [["a"]])
    leaving = asyncio.create_task(served.call(frame("b")))
    await until(lambda: served.load().queued == 1)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert served.load().queued == 0
    engine.open.set()
    await running
    assert engine.batches == [["a"]]
    await served.close()


async def test_a_caller_that_leaves_a_running_batch_takes_nothing_from_the_others() -> None:
    engine = Gate()
    served = await host(engine)
    leaving, *staying = [asyncio.create_task(served.call(frame(name))) for name in "abc"]
    await until(lambda: engine.batches == [["a", "b", "c"]])
    leaving.cancel()
    await asyncio.wait({leaving})
    engine.open.set()
    assert [reply.payloads for reply in await asyncio.gather(*staying)] == [(b"x",)] * 2
    assert engine.cancelled == 0
    await served.close()


async def test_a_batch_whose_callers_all_left_is_cancelled() -> None:
    engine = Gate()
    served = await host(engine)
    tasks = [asyncio.create_task(served.call(frame("a")))]
    await until(lambda: engine.batches == [["a"]])
    tasks[0].cancel()
    await asyncio.wait(tasks)
    await until(lambda: engine.cancelled == 1)
    assert served.load().running == 0
    await served.close()


async def test_a_call_without_time_left_is_refused_with_the_deadline_error() -> None:
    engine = Gate()
    served = await host(engine)
    reply = await served.call(frame("a", remaining_s=0.0))
    assert reply.error is not None
    assert (reply.error.kind, reply.error.status) == ("DeadlinePassed", 504)
    assert engine.batches == []
    await served.close()


async def test_a_deadline_that_passes_while_waiting_takes_the_call_out() -> None:
    engine = Gate()
    served = await host(engine)
    running = asyncio.create_task(served.call(frame("a")))
    await until(lambda: engine.batches == [["a"]])
    reply = await served.call(frame("b", remaining_s=0.01))
    assert reply.error is not None
    assert reply.error.kind == "DeadlinePassed"
    assert served.load().queued == 0
    engine.open.set()
    await running
    await served.close()


async def test_closing_ends_waiting_calls_with_a_retryable_error_and_closes_the_engine_once() -> None:
    engine = Gate()
    served = await host(engine)
    tasks = [asyncio.create_task(served.call(frame(n))) for n in "ab"]
    await until(lambda: engine.batches == [["a", "b"]] or len(engine.batches) == 1)
    await served.close()
    await served.close()
    replies = await asyncio.gather(*tasks)
    assert {r.error.kind for r in replies if r.error} == {EngineDied.__name__}
    assert all(r.error and r.error.retryable for r in replies)
    assert engine.closed == 1


async def test_a_continuous_engine_holds_no_more_calls_than_its_slots() -> None:
    engine = Tokens()
    served = await host(engine, max_batch=1)
    tasks = [asyncio.create_task(served.call(frame(n))) for n in "abc"]
    await until(lambda: len(engine.inside) == 2)
    assert served.load().queued == 1
    engine.open.set()
    replies = await asyncio.gather(*tasks)
    assert [r.payloads for r in replies] == [(b"a", b"b", b"c")] * 3
    assert served.load() == served.load().__class__(0, 0, 0.0)
    await served.close()


async def test_a_caller_that_gives_up_in_the_moment_of_its_turn_does_not_stop_the_queue() -> None:
    engine = Tokens()
    served = await host(engine, max_batch=1)
    tasks = [asyncio.create_task(served.call(frame(n))) for n in "abcd"]
    await until(lambda: len(engine.inside) == 2)
    tasks[2].cancel()  # not gone yet, while the queue gives places away
    served._out("a")  # type: ignore[attr-defined]
    served._advance(0.0)  # type: ignore[attr-defined]
    engine.open.set()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(reply, ReplyFrame) for reply in replies] == [True, True, False, True]
    await served.close()


async def test_a_stream_sends_its_first_frame_at_once_and_its_report_last() -> None:
    engine = Tokens()
    served = await host(engine, max_batch=1)
    frames = served.stream(frame("a", stream=True))
    first = await anext(frames)
    assert first == ReplyFrame((b"a",), last=False)
    engine.open.set()
    rest = [f async for f in frames]
    assert b"".join(p for f in rest for p in f.payloads) == b"bc"
    assert rest[-1].last
    assert isinstance(rest[-1].report, Report)
    assert rest[-1].report.first_frame_s is not None
    await served.close()


async def test_leaving_a_stream_aborts_the_engine_and_frees_the_slot() -> None:
    engine = Tokens()
    served = await host(engine, max_batch=1)
    frames = served.stream(frame("a", stream=True))
    await anext(frames)
    await frames.aclose()  # type: ignore[attr-defined]
    assert engine.aborted == ["a"]
    assert served.load().running == 0
    await served.close()


async def test_the_promised_end_orders_calls_and_not_the_time_at_which_they_are_given_up() -> None:
    engine = Gate()
    served = await host(engine, max_batch=1)
    running = asyncio.create_task(served.call(frame("running")))
    await until(lambda: engine.batches == [["running"]])
    late, soon = frame("late", remaining_s=50.0, due_s=40.0), frame("soon", remaining_s=90.0, due_s=30.0)
    others = [asyncio.create_task(served.call(one)) for one in (late, soon)]
    await until(lambda: served.load().queued == 2)
    engine.open.set()
    await asyncio.gather(running, *others)
    assert engine.batches == [["running"], ["soon"], ["late"]]
    await served.close()


async def test_a_call_whose_request_has_much_before_it_goes_first_among_those_due_at_the_same_time() -> None:
    engine = Gate()
    served = await host(engine, max_batch=1)
    running = asyncio.create_task(served.call(frame("running")))
    await until(lambda: engine.batches == [["running"]])
    last, first = frame("last", due_s=40.0, ahead_s=1.0), frame("first", due_s=40.0, ahead_s=9.0, after_s=8.0)
    others = [asyncio.create_task(served.call(one)) for one in (last, first)]
    await until(lambda: served.load().queued == 2)
    engine.open.set()
    await asyncio.gather(running, *others)
    assert engine.batches == [["running"], ["first"], ["last"]]
    await served.close()


async def test_a_request_that_is_late_but_not_given_up_is_served() -> None:
    engine = Gate()
    engine.open.set()
    served = await host(engine)
    assert (await served.call(frame("a", remaining_s=30.0, due_s=-1.0))).error is None
    await served.close()


async def test_a_batch_that_is_cancelled_before_it_ran_leaves_its_place() -> None:
    engine = Gate()
    served = await host(engine)
    task = asyncio.create_task(served.call(frame("a")))
    await until(lambda: served.load().running == 1)
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: served.load().running == 0)
    engine.open.set()
    assert (await served.call(frame("b"))).error is None
    assert engine.batches[-1] == ["b"]
    await served.close()


class Ordered(Tokens):
    """An engine with a queue of its own, which goes by arrival unless told otherwise."""

    def __init__(self, scheduling_policy: str) -> None:
        super().__init__()
        self.scheduling_policy = scheduling_policy
        self.priorities: dict[str, int] = {}
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1

    async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        self.priorities[call.id] = call.priority
        yield b"x"


async def test_an_engine_that_would_undo_the_order_is_refused_at_start() -> None:
    engine = Ordered("fcfs")
    with pytest.raises(ConfigError, match="scheduling policy 'fcfs'"):
        await host(engine)
    assert engine.closed == 1


async def test_an_engine_with_priorities_gets_the_order_of_the_queue_with_lower_as_earlier() -> None:
    engine = Ordered("priority")
    served = await host(engine)
    frames = [frame("soon", due_s=10.0), frame("late", due_s=20.0), frame("lost", due_s=10.0, ahead_s=30.0)]
    await asyncio.gather(*(served.call(one) for one in frames))
    assert sorted(engine.priorities, key=engine.priorities.__getitem__) == ["soon", "late", "lost"]
    await served.close()


async def test_coalescing_keeps_order_and_raises_what_the_source_raised() -> None:
    async def source() -> AsyncIterator[bytes]:
        for i in range(5):
            yield bytes([i])
        raise EngineDied("gone")

    groups: list[tuple[bytes, ...]] = []
    with pytest.raises(EngineDied):
        async for group in coalesce(source(), lambda _: 0.0):
            groups.append(group)
    assert b"".join(p for g in groups for p in g) == bytes(range(5))


async def test_frames_gather_from_the_second_group_on_and_the_end_does_not_wait() -> None:
    begun = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"a"
        await begun.wait()
        for token in (b"b", b"c", b"d"):
            yield token
            await asyncio.sleep(0)

    groups = []
    async for group in coalesce(source(), lambda sent: 3600.0):
        groups.append(group)
        begun.set()
    assert groups == [(b"a",), (b"b", b"c", b"d")]


async def test_a_frame_that_comes_after_the_pause_leaves_at_once() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for token in (b"a", b"b"):
            yield token
            await more.wait()
            more.clear()

    pauses: list[int] = []
    groups = coalesce(source(), lambda sent: pauses.append(sent) or 0.0)  # type: ignore[func-returns-value]
    assert await anext(groups) == (b"a",)
    more.set()
    assert await anext(groups) == (b"b",)  # the stream has not ended
    assert pauses == [1]
    await groups.aclose()  # type: ignore[attr-defined]


def test_a_stream_begins_without_a_pause_and_then_waits_by_how_many_there_are() -> None:
    assert [pause_s(1000, sent) for sent in (1, 2, 3)] == [0.0, 0.0, MAX_S]
    assert pause_s(1, 10) < pause_s(20, 10) < MAX_S


def test_frames_survive_the_wire() -> None:
    call = CallFrame("i", "r", "l", "m", b"\x00p", "s", 3, True, 1.5, "00-a-b-01")
    assert CallFrame.from_bytes(call.to_bytes()) == call
    reply = ReplyFrame((b"a", b"b"), Report("x", 0.1, 0.2, None, 4), None, True)
    assert ReplyFrame.from_bytes(reply.to_bytes()) == reply


async def test_a_replica_counts_calls_and_the_seconds_of_each_batch_size_but_not_those_that_failed() -> None:
    engine, now = Gate(), [10.0]
    counting = host_of(spec(max_batch=4), engine, replica="x#1", clock=lambda: now[0])
    await counting.start()
    first = asyncio.create_task(counting.call(frame("a")))
    while not engine.batches:
        await asyncio.sleep(0)
    others = [asyncio.create_task(counting.call(frame(name))) for name in ("b", "c")]
    await asyncio.sleep(0)
    now[0] = 10.5
    engine.open.set()
    await asyncio.gather(first, *others)
    await counting.call(frame("d", b"bad"))
    await counting.close()
    assert counting.counts.report() == {"arrived": 4, "served": 3, "served_by_batch": {"1": [1, 0.5], "2": [1, 0.0]}}


class Mortal(Tokens):
    dead = False

    def check(self) -> None:
        if self.dead:
            raise EngineDied("its process ended")


async def test_a_replica_whose_engine_died_is_unhealthy() -> None:
    engine = Mortal()
    served = await host(engine)
    served.check()
    engine.dead = True
    with pytest.raises(EngineDied, match="its process ended"):
        served.check()
    await served.close()
    served.check()  # what is closed is not asked any more
