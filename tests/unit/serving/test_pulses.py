"""What a replica says of itself between replies, and how a sender hears it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_profiles import load_profile
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.components.hosting import host_of
from patchwork_serving.errors import EngineDied
from patchwork_serving.pulses import Pulses
from patchwork_serving.release import ComponentSpec
from patchwork_serving.scheduling import Asking, Scheduling
from patchwork_serving.wire import CallFrame, Pulse


class Timed:
    """A batch engine whose batches take ``seconds``; ``dead`` once a test says so."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.seconds, self.dead = 1.0, False
        self._loop = loop

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        if self.dead:
            raise EngineDied("it is gone")

    async def run(self, batch: list[EngineCall]) -> list[bytes]:
        await asyncio.sleep(self.seconds)
        return [b""] * len(batch)


COST = TokenCost.fit(load_profile("llama-3.2-3b-h100", Path(), "test").rows).scaled(
    20.0
)  #: slow enough for its silences to count


def prompt(n: int) -> CallFrame:
    """A thousand tokens in, sixteen out."""
    body = {"model": "m", "messages": [{"role": "user", "content": "four" * 1000}], "max_tokens": 16}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(body)))
    return CallFrame(f"c{n}", "r", "l", "POST /v1/chat/completions", payload, prompt_tokens=1000, output_tokens=16)


def frame(n: int) -> CallFrame:
    return CallFrame(f"c{n}", "r", "l", "m", b"x")


async def batching(loop: VirtualLoop) -> tuple[ComponentHost, Timed]:
    engine = Timed(loop)
    cost = dataclasses.asdict(BatchCost.constant(1.0))
    spec = ComponentSpec(id="c", kind="embedder", way="engine", engine="x", max_batch=1, cost=cost)
    host = host_of(spec, engine, replica="c#a", clock=loop.time)
    await host.start()
    return host, engine


def test_a_batch_that_should_long_be_done_is_told_of_until_it_is() -> None:
    async def story(loop: VirtualLoop) -> None:
        host, engine = await batching(loop)
        await host.call(frame(0))
        engine.seconds = 10.0
        stuck = asyncio.create_task(host.call(frame(1)))
        await asyncio.sleep(1.9)
        assert host.pulse().well
        assert host.pulse().running_s == pytest.approx(0.0)
        await asyncio.sleep(0.3)
        assert not host.pulse().well
        await stuck
        assert host.pulse().well
        assert host.pulse().slowness > 2.0
        await asyncio.sleep(30.0)
        assert host.pulse().slowness == 1.0
        await host.close()

    run_virtually(story)


def test_a_replica_whose_engine_died_or_that_closes_is_not_well() -> None:
    async def story(loop: VirtualLoop) -> None:
        host, engine = await batching(loop)
        assert host.pulse() == Pulse("c#a", True)
        engine.dead = True
        assert not host.pulse().well
        engine.dead = False
        await host.close()
        assert not host.pulse().well

    run_virtually(story)


def test_a_token_engine_is_well_through_its_longest_prefill_and_not_when_it_hangs() -> None:
    async def story(loop: VirtualLoop) -> list[bool]:
        engine = EmulatedLlm(COST, Wish(n_out=16), name="m", profile="p", clock=loop.time)
        spec = ComponentSpec(id="c", kind="llm", way="protocol", engine="emulated", cost=dataclasses.asdict(COST))
        host = host_of(spec, engine, replica="c#a", clock=loop.time)
        await host.start()
        # twelve prompts at once: nothing comes out for seconds, as is expected of it
        calls = [asyncio.create_task(host.call(prompt(n))) for n in range(12)]
        said = []
        while not all(call.done() for call in calls):
            said.append(host.pulse().well)
            await asyncio.sleep(0.1)
        assert all(said)
        hung = asyncio.create_task(host.call(prompt(99)))
        await asyncio.sleep(0.5)
        assert engine._steps is not None
        engine._steps.close()  # it goes on no more, without a word
        await asyncio.sleep(10.0)
        said.append(host.pulse().well)
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)
        await host.close()
        return said

    assert run_virtually(story)[-1] is False


def test_calls_of_the_users_own_code_may_take_as_long_as_they_like() -> None:
    async def story(loop: VirtualLoop) -> None:
        class Own:
            slots = 8
            seconds = 0.01

            async def start(self) -> None: ...

            async def close(self) -> None: ...

            def describe(self) -> dict[str, Any]:
                return {}

            async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
                await asyncio.sleep(self.seconds)
                yield b""

        engine = Own()
        host = host_of(
            ComponentSpec(id="c", kind="tool", way="own", engine="own"), engine, replica="c#a", clock=loop.time
        )
        await host.start()
        for n in range(20):
            await host.call(frame(n))
        engine.seconds = 60.0
        long = asyncio.create_task(host.call(frame(99)))
        await asyncio.sleep(30.0)
        assert host.pulse().well
        await long
        await host.close()

    run_virtually(story)


def test_a_sender_asks_the_silent_one_once_and_sends_nothing_there_until_it_answers() -> None:
    async def story(loop: VirtualLoop) -> None:
        asked: list[str] = []
        goes_on = asyncio.Event()

        async def take(asking: Asking) -> bytes:
            asked.append(asking.hint)
            if asking.hint == "hung":
                await goes_on.wait()
            return Pulse(asking.replica, True).to_bytes()

        names = ("hung", "works")
        scheduling = Scheduling(replicas_of=lambda _: names)
        pulses = Pulses(scheduling, take, loop.time)
        number = itertools.count()

        def send() -> Any:
            step = scheduling.begin(LeafCall("llm", "leaf", "chat", b"?"), loop.time())
            sending = scheduling.send(step, f"c{next(number)}", loop.time())
            pulses.listen()
            return sending

        held = [send(), send()]
        assert {one.hint for one in held} == {"hung", "works"}
        await asyncio.sleep(1.0)
        later = [send() for _ in range(6)]
        assert {one.hint for one in later} == {"works"}
        await asyncio.sleep(5.0)
        assert asked.count("hung") == 1
        assert 10 <= asked.count("works") <= 6.0 / 0.25
        goes_on.set()
        await asyncio.sleep(1.5)
        back = [send() for _ in range(6)]
        assert "hung" in {one.hint for one in back}
        for one in [*held, *later, *back]:
            scheduling.left(one)
        await asyncio.sleep(1.0)

    run_virtually(story)


def test_nobody_listens_when_nothing_is_outstanding() -> None:
    async def story(loop: VirtualLoop) -> int:
        asked = 0

        async def take(asking: Asking) -> bytes:
            nonlocal asked
            asked += 1
            return Pulse(asking.replica, True).to_bytes()

        scheduling = Scheduling(replicas_of=lambda _: ("a", "b"))
        pulses = Pulses(scheduling, take, loop.time)
        step = scheduling.begin(LeafCall("llm", "leaf", "chat", b"?"), loop.time())
        sending = scheduling.send(step, "c", loop.time())
        pulses.listen()
        await asyncio.sleep(2.0)
        scheduling.left(sending)
        await asyncio.sleep(1.0)
        before = asked
        await asyncio.sleep(100.0)
        assert len(asyncio.all_tasks()) == 1
        assert asked == before
        return asked

    assert 6 <= run_virtually(story) <= 9
