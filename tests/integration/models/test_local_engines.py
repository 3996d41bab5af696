"""Engines in this process, as the builder uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kit.models import CHAT, EMBED, packaged_files
from patchwork_adapters import codec
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.protocol import HttpRequest, decode_response, encode_request
from patchwork_adapters.transport import LeafCall
from patchwork_serving.config import Config, Paths
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.models.local import LocalEngines

pytestmark = pytest.mark.models


@pytest.fixture
def engines() -> Iterator[LocalEngines]:
    packaged_files(CHAT)
    engines = LocalEngines(Config(), Paths.from_env())
    yield engines
    asyncio.run(engines.close())
    asyncio.run(engines.close())


def post(path: str, **body: object) -> LeafCall:
    payload = encode_request(HttpRequest("POST", path, {}, json.dumps(body).encode()))
    return LeafCall("any", "leaf", f"POST {path}", payload, stream=bool(body.get("stream")))


def test_each_model_starts_when_it_is_asked_from_whichever_loop(engines: LocalEngines) -> None:
    chat = post(
        "/v1/chat/completions",
        model=CHAT,
        temperature=0,
        messages=[{"role": "user", "content": "Name the capital city of France."}],
    )
    assert b"Paris" in decode_response(asyncio.run(engines.call(chat))).body
    call = LeafCall(
        f"embedder-{EMBED}", "leaf", "embed", codec.encode({"texts": ["a", "b"], "normalize": None}), size=2
    )
    first = codec.decode_outcome(asyncio.run(engines.call(call)))
    embed = post("/v1/embeddings", model="sentence-transformers/all-MiniLM-L6-v2", input=["a", "b"])
    second = json.loads(decode_response(asyncio.run(engines.call(embed))).body)
    np.testing.assert_allclose([row["embedding"] for row in second["data"]], first, atol=2e-6)


def test_a_stream_ends_with_done(engines: LocalEngines) -> None:
    async def collect() -> list[bytes]:
        chat = post(
            "/v1/chat/completions", model=CHAT, stream=True, max_tokens=4, messages=[{"role": "user", "content": "Hi"}]
        )
        return [frame async for frame in engines.stream(chat)]

    head, *rest = asyncio.run(collect())
    assert decode_response(head).status == 200
    assert b"".join(rest).rstrip().endswith(b"data: [DONE]")


def test_an_ollama_client_is_answered_by_llama_cpp(engines: LocalEngines) -> None:
    package = pytest.importorskip("langchain_ollama", reason="comes with the next make setup")
    with Bridge(engines) as bridge:
        cut = OpenAICut(bridge, ImportRouter(Config(), Paths.from_env()))
        cut.install()
        llm = package.ChatOllama(model=CHAT, temperature=0, num_predict=24, base_url="http://127.0.0.1:9")
        said = llm.invoke("Name the capital city of France.")
        json_only = llm.bind(format="json").invoke("The capital city of France, as JSON.")
        cut.undo()
    assert "Paris" in said.content
    assert said.usage_metadata["input_tokens"] == 37
    assert said.response_metadata["done_reason"] == "stop"
    assert json_only.content.lstrip().startswith("{")


def test_an_unknown_model_fails_with_the_remedy(engines: LocalEngines) -> None:
    with pytest.raises(ComponentFailed, match=r"patchwork\.yaml"):
        asyncio.run(engines.call(post("/v1/embeddings", model="gpt-9", input="a")))
    with pytest.raises(ComponentFailed, match="no model"):
        asyncio.run(engines.call(LeafCall("llm-nobody", "leaf", "chat", b"")))


def test_nothing_is_answered_after_close(tmp_path: Path) -> None:
    engines = LocalEngines(Config(), Paths(tmp_path, tmp_path))
    asyncio.run(engines.close())
    with pytest.raises(ComponentUnavailable):
        asyncio.run(engines.call(post("/v1/embeddings", model=EMBED, input="a")))
