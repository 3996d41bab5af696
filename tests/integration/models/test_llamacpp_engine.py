"""llama.cpp beyond the suite of all engines (``tests/contracts/test_llm_engines.py``)."""

from __future__ import annotations

from typing import Any

import pytest

from kit.llm_engines import STORY, frames, idle, left, post
from kit.models import CHAT, packaged_files
from patchwork_adapters.protocol import decode_response
from patchwork_serving.components.llamacpp_engine import LlamaCppEngine, LlamaCppOptions
from patchwork_serving.errors import ModelCorrupt
from patchwork_serving.models.registry import ModelFiles

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_sequence(stream: bool) -> None:
    """With one slot, an answer of 4,000 tokens that went on would hold the next call for half a minute and more."""
    engine = LlamaCppEngine(lambda: packaged_files(CHAT), name=CHAT, options=LlamaCppOptions(slots=1, n_ctx=8192))
    await engine.start()
    try:
        long = post(stream=stream, messages=STORY, max_tokens=4000, ignore_eos=True)
        await left(engine, long)
        await idle(engine)
        [frame] = await frames(engine, post())
        assert b"Paris" in decode_response(frame).body
    finally:
        await engine.close()


async def test_a_file_that_is_no_model_is_corrupt(tmp_path: Any) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    engine = LlamaCppEngine(lambda: ModelFiles(tmp_path / "bad.gguf"), name="bad")
    with pytest.raises(ModelCorrupt, match="pull --force"):
        await engine.start()
