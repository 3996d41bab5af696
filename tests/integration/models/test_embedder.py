"""The packaged embedder on ONNX Runtime."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from kit.models import EMBED, packaged_files
from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_serving.components.embedder import OnnxEmbedder
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.errors import EngineRefused, ModelCorrupt
from patchwork_serving.models.registry import ModelFiles

pytestmark = pytest.mark.models

TEXTS = [
    "A cat sits on the mat.",
    "The cat is sitting on a rug.",
    "Quarterly revenue rose by nine percent, driven by cloud services and lower costs than were expected a year ago.",
    "x",
]


@pytest_asyncio.fixture
async def embedder() -> AsyncIterator[OnnxEmbedder]:
    engine = OnnxEmbedder(lambda: packaged_files(EMBED), name=EMBED, threads=2)
    await engine.start()
    yield engine
    await engine.close()


def operation(texts: list[str], normalize: bool | None = None) -> EngineCall:
    payload = codec.encode({"texts": texts, "normalize": normalize})
    return EngineCall(id="1", leaf="l", method="embed", payload=payload, size=len(texts))


def post(**body: Any) -> EngineCall:
    request = HttpRequest("POST", "/v1/embeddings", {}, json.dumps({"model": EMBED, **body}).encode())
    return EngineCall(id="1", leaf="l", method="POST /v1/embeddings", payload=encode_request(request))


async def vectors(engine: OnnxEmbedder, texts: list[str], normalize: bool | None = None) -> np.ndarray:
    [reply] = await engine.run([operation(texts, normalize)])
    assert isinstance(reply, bytes)
    return codec.decode_outcome(reply)


async def posted(engine: OnnxEmbedder, **body: Any) -> tuple[int, dict[str, Any]]:
    [reply] = await engine.run([post(**body)])
    assert isinstance(reply, bytes)
    response = decode_response(reply)
    return response.status, json.loads(response.body)


async def test_texts_that_mean_the_same_are_near(embedder: OnnxEmbedder) -> None:
    found = await vectors(embedder, TEXTS)
    assert (found.shape, found.dtype) == ((4, 384), np.float32)
    cosines = found @ found.T
    assert cosines[0, 1] > 0.7
    assert cosines[0, 2] < 0.2
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: OnnxEmbedder) -> None:
    together = await vectors(embedder, TEXTS)
    alone = np.concatenate([await vectors(embedder, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)


async def test_calls_that_run_together_get_their_own_vectors(embedder: OnnxEmbedder) -> None:
    expected = await vectors(embedder, TEXTS)
    replies = await embedder.run([operation(TEXTS[:1]), operation([]), operation(TEXTS[1:]), post(input=TEXTS[0])])
    assert all(isinstance(reply, bytes) for reply in replies)
    parts = [codec.decode_outcome(reply) for reply in replies[:3] if isinstance(reply, bytes)]
    assert [part.shape for part in parts] == [(1, 384), (0, 384), (3, 384)]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=2e-6)


async def test_a_bad_call_fails_alone(embedder: OnnxEmbedder) -> None:
    bad = EngineCall(id="2", leaf="l", method="sing", payload=b"")
    replies = await embedder.run([operation(TEXTS[:1]), bad, post(input=[])])
    assert isinstance(replies[0], bytes)
    assert isinstance(replies[1], EngineRefused)
    assert isinstance(replies[2], bytes)
    assert decode_response(replies[2]).status == 400


async def test_vectors_are_scaled_only_when_asked(embedder: OnnxEmbedder) -> None:
    raw = await vectors(embedder, TEXTS, normalize=False)
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 0.1).all()
    np.testing.assert_allclose(
        raw / np.linalg.norm(raw, axis=1, keepdims=True), await vectors(embedder, TEXTS), atol=1e-6
    )


async def test_the_protocol_gives_floats_base64_and_exact_usage(embedder: OnnxEmbedder) -> None:
    expected = await vectors(embedder, TEXTS[:2])
    status, floats = await posted(embedder, input=TEXTS[:2])
    assert status == 200
    np.testing.assert_allclose([row["embedding"] for row in floats["data"]], expected, atol=2e-6)
    # [CLS] a cat sits on the mat . [SEP]  and  [CLS] the cat is sitting on a rug . [SEP]
    assert floats["usage"] == {"prompt_tokens": 9 + 10, "total_tokens": 9 + 10}
    assert floats["model"] == EMBED
    _, packed = await posted(embedder, input=TEXTS[0], encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(decoded, expected[0], atol=2e-6)


async def test_fewer_dimensions_are_cut_and_scaled_again(embedder: OnnxEmbedder) -> None:
    whole = (await vectors(embedder, TEXTS[:1]))[0]
    _, reply = await posted(embedder, input=TEXTS[0], dimensions=64)
    expected = whole[:64] / np.linalg.norm(whole[:64])
    np.testing.assert_allclose(reply["data"][0]["embedding"], expected, atol=2e-6)


async def test_token_ids_mean_the_text_that_they_spell(embedder: OnnxEmbedder) -> None:
    ids = packaged_tokenizer_ids("a cat sits on the mat.")
    _, by_ids = await posted(embedder, input=[ids, ids])
    _, by_text = await posted(embedder, input="a cat sits on the mat.")
    assert len(by_ids["data"]) == 2
    np.testing.assert_allclose(by_ids["data"][1]["embedding"], by_text["data"][0]["embedding"], atol=2e-6)


def packaged_tokenizer_ids(text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packaged_files(EMBED).tokenizer))
    tokenizer.no_padding()
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize(
    "body",
    [
        {"input": ""} | {"input": None},  # nothing
        {"input": [1, "a"]},  # a mixture
        {"input": [[99_999_999]]},  # ids of another model's vocabulary
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "dimensions": 0},
        {"input": "a", "dimensions": 9_999},
        {"input": {"text": "a"}},
    ],
)
async def test_bad_input_is_a_400_in_the_protocols_words(embedder: OnnxEmbedder, body: dict[str, Any]) -> None:
    status, reply = await posted(embedder, **body)
    assert status == 400
    assert reply["error"]["type"] == "invalid_request_error"


async def test_a_long_text_is_cut_at_the_models_limit(embedder: OnnxEmbedder) -> None:
    _, reply = await posted(embedder, input="word " * 1000)
    assert reply["usage"]["prompt_tokens"] == embedder.describe()["max_tokens"] == 256


async def test_a_file_that_is_no_model_is_corrupt(tmp_path: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    broken = OnnxEmbedder(lambda: ModelFiles(tmp_path / "model.onnx", packaged_files(EMBED).tokenizer), name="broken")
    with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
        await broken.start()
