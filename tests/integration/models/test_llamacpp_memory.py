"""Nothing stays in memory: not after an engine was closed, and not after calls that failed or were left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import orjson
import psutil
import pytest

from kit.models import CHAT, packaged_files
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions

pytestmark = [pytest.mark.models, pytest.mark.alone, pytest.mark.asyncio(loop_scope="function")]

MIB = 1 << 20
#: The allocator keeps some of what is freed; the smallest thing that could be left behind (a model: 138 MiB) is far above it.
SLACK = 48 * MIB


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[LlamaCppEngine]:
    options = LlamaCppOptions(slots=2, n_ctx=1024, shards=1, threads=1, cache_ram_mib=0)
    made = LlamaCppEngine(lambda: packaged_files(CHAT), name=CHAT, options=options)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def call(number: int, stream: bool, **body: Any) -> EngineCall:
    messages = [{"role": "user", "content": f"Count from {number}."}]
    document = {"model": CHAT, "messages": messages, "stream": stream, "max_tokens": 16, **body}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(document)))
    return EngineCall(str(number), "l", "POST /v1/chat/completions", payload, stream=stream)


def in_use() -> int:
    """Bytes of this process's own; files that it maps (the model) are not its own until it changes them."""
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


async def one_round(running: LlamaCppEngine, number: int) -> None:
    """An answer, two refusals and two callers that leave."""
    [_ async for _ in running.generate(call(number, False))]
    [_ async for _ in running.generate(call(number, True, temperature="hot"))]
    [_ async for _ in running.generate(call(number, False, messages=[{"role": "user", "content": "word " * 3000}]))]
    left = running.generate(call(number, True, max_tokens=400, ignore_eos=True))
    await anext(left)
    await left.aclose()  # type: ignore[attr-defined]
    task = asyncio.create_task(anext(running.generate(call(number, False, max_tokens=400, ignore_eos=True))))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})


async def test_an_engine_that_was_closed_gives_its_memory_back() -> None:
    async with engine() as first:  # what libraries load once stays
        await one_round(first, 0)
    before = in_use()
    for number in range(2):
        async with engine() as again:
            await one_round(again, number)
            assert in_use() > before + SLACK, "the measure sees an engine"
    assert in_use() < before + SLACK


async def test_calls_that_fail_or_are_left_leave_nothing() -> None:
    async with engine() as running:
        for number in range(3):
            await one_round(running, number)
        before = in_use()
        for number in range(12):
            await one_round(running, number)
        assert in_use() < before + SLACK
        assert running.processing() == 0
