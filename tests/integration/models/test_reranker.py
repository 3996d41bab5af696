"""Cross-encoders, on a tiny one whose scores can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kit.cross_encoder import TinyCrossEncoder
from patchwork_adapters import codec
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.reranker import RerankerEngine
from patchwork_serving.config import ModelConfig, Paths
from patchwork_serving.errors import EngineRefused, MissingExtra, ModelCorrupt
from patchwork_serving.models.registry import ModelFiles, resolve

PAIRS = [("capital france", "paris"), ("capital france", "cheese cheese cheese"), ("berlin", "paris france capital")]


def score(pairs: object) -> EngineCall:
    return EngineCall(id="1", leaf="l", method="score", payload=codec.encode({"pairs": pairs}))


async def started(path: Path, **options: int) -> RerankerEngine:
    engine = RerankerEngine(lambda: ModelFiles(path), name="tiny", **options)
    await engine.start()
    return engine


@pytest.mark.parametrize("labels", [1, 2])
async def test_scores_are_those_of_the_network(labels: int, tmp_path: Path) -> None:
    tiny = TinyCrossEncoder(tmp_path, labels=labels)
    engine = await started(tiny.path, threads=2)
    replies = await engine.run([score(PAIRS[:1]), score(PAIRS[1:]), score([])])
    found = [codec.decode_outcome(reply) for reply in replies if isinstance(reply, bytes)]
    logits = tiny.logits(PAIRS).astype(np.float64)
    positive = (
        1 / (1 + np.exp(-logits[:, 0]))
        if labels == 1
        else (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 1]
    )
    assert [array.shape for array in found] == [(1,), (2,), (0,)]
    np.testing.assert_allclose(np.concatenate(found), positive, rtol=1e-5)
    await engine.close()


async def test_a_call_that_is_at_fault_fails_alone(tmp_path: Path) -> None:
    engine = await started(TinyCrossEncoder(tmp_path).path)
    replies = await engine.run(
        [score(PAIRS), score([("one",)]), EngineCall(id="2", leaf="l", method="chat", payload=b"")]
    )
    assert isinstance(replies[0], bytes)
    assert isinstance(replies[1], EngineRefused)
    assert isinstance(replies[2], EngineRefused)
    await engine.close()


async def test_an_onnx_file_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    tiny = TinyCrossEncoder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json"):
        await started(tiny.path)


def test_a_path_in_the_configuration_resolves_to_a_reranker(tmp_path: Path) -> None:
    tiny = TinyCrossEncoder(tmp_path)
    models = {"judge": ModelConfig(source=str(tmp_path), engine="reranker")}
    model = resolve("judge", models, Paths(tmp_path, tmp_path))
    assert (model.kind, model.engine, model.path) == ("reranker", "reranker", tiny.path)


async def test_a_hugging_face_folder_asks_for_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"patchwork-rag\[hf\]"):
        await started(tmp_path)
