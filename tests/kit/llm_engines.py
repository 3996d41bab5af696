"""Real engines of LLMs over the packaged model, for tests: each with the same weights. And how tests ask them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kit.models import CHAT, packaged_files
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_serving.components.engine import SILENT, ContinuousEngine, EngineCall, Progress
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions
from patchwork_serving.components.openvino_engine import OpenVinoEngine, OpenVinoOptions
from patchwork_serving.components.vllm_engine import VllmEngine
from patchwork_serving.models.convert import gguf_to_hf
from patchwork_serving.models.registry import ModelFiles

LlmEngine = LlamaCppEngine | OpenVinoEngine | VllmEngine

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
ENGINES = ["llamacpp", "openvino", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, needs_vllm])]
#: A CPU computes nothing else well, compiling takes minutes, and a small cache is room enough.
ON_A_CPU = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 256 * 1024 * 1024}

CAPITAL = [{"role": "user", "content": "Name the capital city of France."}]
STORY = [{"role": "user", "content": "Tell a very long story about a ship."}]


def hugging_face_folder(factory: pytest.TempPathFactory) -> Path:
    """The packaged GGUF, converted once per session."""
    return gguf_to_hf(packaged_files(CHAT).path, factory.getbasetemp() / "smollm2-hf")


def vllm_engine(folder: Path, *, slots: int, **arguments: Any) -> VllmEngine:
    # both cores: by itself it would leave one of them to whoever calls it
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return VllmEngine(lambda: ModelFiles(folder), name=CHAT, arguments={**ON_A_CPU, **arguments}, slots=slots)


@contextlib.asynccontextmanager
async def started(kind: str, factory: pytest.TempPathFactory, *, slots: int, context: int) -> AsyncIterator[LlmEngine]:
    engine: LlmEngine
    if kind == "llamacpp":
        options = LlamaCppOptions(slots=slots, n_ctx=context)
        engine = LlamaCppEngine(lambda: packaged_files(CHAT), name=CHAT, options=options)
    elif kind == "openvino":
        openvino = OpenVinoOptions(slots=slots, n_ctx=context)
        engine = OpenVinoEngine(lambda: packaged_files(CHAT), name=CHAT, options=openvino)
    else:
        engine = vllm_engine(
            hugging_face_folder(factory), slots=slots, max_model_len=context, tool_call_parser="hermes"
        )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def post(
    stream: bool = False, path: str = "/v1/chat/completions", progress: Progress = SILENT, **body: Any
) -> EngineCall:
    """A call of the protocol way; it asks for ``CAPITAL`` unless it says otherwise."""
    document = {"model": CHAT, "temperature": 0, "max_tokens": 32, "stream": stream, **body}
    if path == "/v1/chat/completions":
        document.setdefault("messages", CAPITAL)
    request = HttpRequest("POST", path, {}, orjson.dumps(document))
    return EngineCall("1", "l", f"POST {path}", encode_request(request), stream=stream, progress=progress)


async def frames(engine: ContinuousEngine, call: EngineCall) -> list[bytes]:
    return [frame async for frame in engine.generate(call)]


async def idle(engine: LlmEngine, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while engine.processing() > 0:
            await asyncio.sleep(0.02)


async def left(engine: LlmEngine, call: EngineCall) -> None:
    """``call`` is begun and left: a stream after its first frame, a whole answer while the engine works on it."""
    if call.stream:
        leaving = engine.generate(call)
        await anext(leaving)
        await leaving.aclose()  # type: ignore[attr-defined]
        return
    task = asyncio.create_task(frames(engine, call))
    while engine.processing() == 0:
        await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
