"""llama.cpp beyond the suite of all engines (``tests/contracts/test_llm_engines.py``)."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from kit.models import CHAT, packaged_files
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions
from patchwork_serving.errors import ModelCorrupt
from patchwork_serving.models.registry import ModelFiles

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

CAPITAL = [{"role": "user", "content": "Name the capital city of France."}]
STORY = [{"role": "user", "content": "Tell a very long story about a ship."}]


def post(stream: bool = False, **body: Any) -> EngineCall:
    document = {"model": CHAT, "messages": CAPITAL, "temperature": 0, "max_tokens": 32, "stream": stream, **body}
    payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {}, orjson.dumps(document)))
    return EngineCall(id="1", leaf="l", method="POST /v1/chat/completions", payload=payload, stream=stream)


async def frames(engine: LlamaCppEngine, call: EngineCall) -> list[bytes]:
    return [frame async for frame in engine.generate(call)]


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_sequence(stream: bool) -> None:
    """With one slot, an answer of 4,000 tokens that went on would hold the next call for half a minute and more."""
    engine = LlamaCppEngine(lambda: packaged_files(CHAT), name=CHAT, options=LlamaCppOptions(slots=1, n_ctx=8192))
    await engine.start()
    try:
        long = post(stream=stream, messages=STORY, max_tokens=4000, ignore_eos=True)
        if stream:
            leaving = engine.generate(long)
            await anext(leaving)
            await leaving.aclose()  # type: ignore[attr-defined]
        else:
            task = asyncio.create_task(frames(engine, long))
            while engine.processing() == 0:
                await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait({task})
        async with asyncio.timeout(20):
            while engine.processing() > 0:
                await asyncio.sleep(0.05)
        [frame] = await frames(engine, post())
        assert b"Paris" in decode_response(frame).body
    finally:
        await engine.close()


async def test_a_file_that_is_no_model_is_corrupt(tmp_path: Any) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    engine = LlamaCppEngine(lambda: ModelFiles(tmp_path / "bad.gguf"), name="bad")
    with pytest.raises(ModelCorrupt, match="pull --force"):
        await engine.start()
