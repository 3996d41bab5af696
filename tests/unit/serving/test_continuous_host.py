"""Calls inside a continuous engine: an emulated 3B model on an H100, its host and its queue, in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_scheduler.cost import TokenCost
from patchwork_serving.components.continuous_host import ContinuousHost
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_profiles import load_profile
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.hosting import host_of
from patchwork_serving.components.tokens import token_limit
from patchwork_serving.release import ComponentSpec
from patchwork_serving.wire import CallFrame, ReplyFrame

COST = TokenCost.fit(load_profile("llama-3.2-3b-h100", Path(), "test").rows)
PROMPT, OUTPUTS, SLO_S = 1000, (16, 48, 64, 128), 1.2
CAPACITY = 1.0 / COST.occupied_s(PROMPT, 64)  #: calls per second, as good as it gets


def frame(n: int, output: int, **fields: Any) -> CallFrame:
    body = {"model": "m", "messages": [{"role": "user", "content": "four" * PROMPT}], "max_tokens": output}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(body)))
    return CallFrame(f"c{n}", "r", "l", "POST /v1/chat/completions", payload, site=f"site-{output}", **fields)


class TwoEngines(EmulatedLlm):
    """As llama.cpp on two cores."""

    shards = 2


async def begun(loop: VirtualLoop, kind: type[EmulatedLlm] = EmulatedLlm, **fields: Any) -> ContinuousHost:
    engine = kind(COST, Wish(n_out=max(OUTPUTS)), name="m", profile="p", clock=loop.time)
    spec = ComponentSpec(id="c", kind="llm", way="protocol", engine="emulated", **fields)
    host = host_of(spec, engine, replica="r", clock=loop.time)
    assert isinstance(host, ContinuousHost)
    await host.start()
    return host


def attained(load: float, calls: int = 400, **fields: Any) -> float:
    """Share of calls that end within the SLO, at a multiple of the capacity; nobody is refused at a door here."""

    async def story(loop: VirtualLoop) -> float:
        host, rng = await begun(loop, **fields), random.Random(3)
        in_time: list[bool] = []

        async def one(n: int) -> None:
            began = loop.time()
            reply = await host.call(frame(n, rng.choice(OUTPUTS), remaining_s=60.0, due_s=SLO_S))
            assert reply.error is None
            in_time.append(loop.time() - began <= SLO_S)

        tasks = []
        for n in range(calls):
            await asyncio.sleep(rng.expovariate(load * CAPACITY))
            tasks.append(asyncio.create_task(one(n)))
        await asyncio.gather(*tasks)
        if host._bound is not None:
            host._bound.check_invariants()
        assert host.load() == type(host.load())(0, 0, 0.0, 0.0)
        await host.close()
        return sum(in_time) / calls

    return run_virtually(story)


def test_bounding_what_runs_costs_nothing_below_capacity_and_keeps_many_in_time_above_it() -> None:
    profiled = {"cost": dataclasses.asdict(COST)}
    assert attained(0.7, **profiled) >= 0.99
    first_come = attained(1.4, policy="fifo")
    assert attained(1.4, **profiled) >= first_come + 0.15
    assert attained(1.4) >= first_come + 0.05  # has to learn the cost first


def test_an_engine_of_several_prefills_on_each_of_them_while_deadlines_are_near() -> None:
    async def inside(loop: VirtualLoop, kind: type[EmulatedLlm]) -> int:
        """How many calls are, of one that runs and bears one prompt and three that came since."""
        host = await begun(loop, kind, cost=dataclasses.asdict(COST))
        tasks = [asyncio.create_task(host.call(frame(0, 128, remaining_s=60.0, due_s=2.0)))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(host.call(frame(n, 16, remaining_s=60.0))) for n in (1, 2, 3)]
        await asyncio.sleep(0.001)
        found = host.load().running
        await asyncio.gather(*tasks)
        await host.close()
        return found

    assert run_virtually(lambda loop: inside(loop, EmulatedLlm)) == 2
    assert run_virtually(lambda loop: inside(loop, TwoEngines)) == 3


def test_calls_that_stream_report_what_they_really_had_and_how_busy_the_replica_is() -> None:
    async def story(loop: VirtualLoop) -> list[ReplyFrame]:
        host = await begun(loop, cost=dataclasses.asdict(COST))
        long = asyncio.create_task(host.call(frame(0, 128)))
        await asyncio.sleep(0.1)
        reply = await host.call(frame(1, 16, prompt_tokens=PROMPT, output_tokens=16))
        frames = [await long, reply]
        await host.close()
        return frames

    long, short = run_virtually(story)
    assert short.report is not None
    assert long.report is not None
    assert (short.report.prompt_tokens, short.report.output_tokens) == (PROMPT, 16)
    assert 0.0 < short.report.running_s < COST.occupied_s(PROMPT, 128)
    assert (long.report.output_tokens, long.report.running, long.report.running_s) == (128, 0, 0.0)


@pytest.mark.parametrize(
    ("method", "payload", "limit"),
    [
        ("chat", codec.encode({"body": {"max_tokens": 32, "max_completion_tokens": 16}}), 16),
        ("chat", codec.encode({"body": {"messages": []}}), None),
        ("chat", b"\xff", None),  # the engine says what is wrong with it
        (
            "POST /v1/completions",
            encode_request(HttpRequest("POST", "/v1/completions", {}, b'{"max_tokens": -1}')),
            None,
        ),
    ],
)
def test_a_request_says_how_many_tokens_it_lets_out(method: str, payload: bytes, limit: int | None) -> None:
    assert token_limit(CallFrame("c", "r", "l", method, payload)) == limit
