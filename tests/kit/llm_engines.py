"""Real engines of LLMs over the packaged model, for tests: each with the same weights."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.models import CHAT, packaged_files
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions
from patchwork_serving.components.vllm_engine import VllmEngine
from patchwork_serving.models.convert import gguf_to_hf
from patchwork_serving.models.registry import ModelFiles

LlmEngine = LlamaCppEngine | VllmEngine

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
ENGINES = ["llamacpp", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, needs_vllm])]
#: A CPU computes nothing else well, compiling takes minutes, and a small cache is room enough.
ON_A_CPU = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 256 * 1024 * 1024}


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
    else:
        engine = vllm_engine(
            hugging_face_folder(factory), slots=slots, max_model_len=context, tool_call_parser="hermes"
        )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
