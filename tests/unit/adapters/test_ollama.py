"""Ollama's API told in the OpenAI protocol: the words, and the real clients and classes over a component."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from patchwork_adapters import ollama
from patchwork_adapters.leaves.spec import spec_for
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.protocol import decode_request
from patchwork_adapters.swap import leaf_router
from patchwork_adapters.walk import find_leaves

from .fakes import FakeCluster, vector

URL = "http://127.0.0.1:9"
WEATHER = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}


def asked(cluster: FakeCluster) -> dict[str, Any]:
    return decode_request(cluster.calls[-1].payload).json()


# -- the words


def test_what_nobody_says_is_what_ollamas_server_takes() -> None:
    path, body = ollama.request(
        "/api/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    )
    assert path == "/v1/chat/completions"
    assert body == {
        "messages": [{"role": "user", "content": "hi"}], "model": "m", "stream": False, "temperature": 0.8, "top_k": 40, "top_p": 0.9,
        "repeat_penalty": 1.1, "repetition_penalty": 1.1,
    }  # fmt: skip


def test_options_formats_and_tools_have_their_counterparts() -> None:
    schema = {"type": "object"}
    options = {
        "num_predict": 5,
        "stop": "END",
        "seed": 3,
        "temperature": 0,
        "num_ctx": 4096,
        "mirostat": 0,
        "top_k": None,
    }
    document = {"model": "m", "messages": [], "options": options, "format": schema, "tools": [{"type": "function"}]}
    _, body = ollama.request("/api/chat", document)
    assert (body["max_tokens"], body["stop"], body["seed"], body["temperature"], body["top_k"]) == (
        5,
        ["END"],
        3,
        0,
        40,
    )
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert (body["tools"], body["stream"], body["stream_options"]) == (
        [{"type": "function"}],
        True,
        {"include_usage": True},
    )
    assert "num_ctx" not in body
    _, loose = ollama.request(
        "/api/chat", {"model": "m", "messages": [], "format": "json", "options": {"num_predict": -1}}
    )
    assert loose["response_format"] == {"type": "json_object"}
    assert "max_tokens" not in loose


def test_results_of_tools_find_their_calls() -> None:
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [WEATHER, WEATHER]},
        {"role": "tool", "content": "sun"},
        {"role": "tool", "content": "rain"},
    ]
    _, body = ollama.request("/api/chat", {"model": "m", "messages": messages})
    call, first, second = body["messages"]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    assert [first["tool_call_id"], second["tool_call_id"]] == [made["id"] for made in call["tool_calls"]]


def test_a_prompt_goes_through_the_template_unless_it_is_raw() -> None:
    path, body = ollama.request("/api/generate", {"model": "m", "prompt": "hi", "system": "be brief"})
    assert path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    path, body = ollama.request("/api/generate", {"model": "m", "prompt": "hi", "raw": True})
    assert (path, body["prompt"]) == ("/v1/completions", "hi")


@pytest.mark.parametrize(
    ("operation", "document", "what"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "", "images": ["x"]}]}, "images"),
        ("/api/chat", {"messages": [], "options": {"mirostat": 2}}, "options: mirostat"),
        ("/api/chat", {"messages": [], "think": True}, "think"),
        ("/api/generate", {"prompt": "x", "context": [1]}, "context"),
    ],
)
def test_what_has_no_counterpart_is_named(operation: str, document: dict[str, Any], what: str) -> None:
    with pytest.raises(ollama.Untold, match=what):
        ollama.request(operation, {"model": "m", **document})


def test_a_stream_cut_anywhere_has_the_same_lines() -> None:
    deltas: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": "He"}}]},
        {"choices": [{"delta": {"content": "llo"}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": '{"ci'}}]}}]},
        {
            "choices": [
                {
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "Paris"}'}}]},
                    "finish_reason": "tool_calls",
                }
            ]
        },
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
    ]
    events = b"".join(b"data: " + json.dumps(delta).encode() + b"\n\n" for delta in deltas) + b"data: [DONE]\n\n"
    for size in (1, 7, 10_000):
        stream = ollama.Stream("/api/chat", "m")
        told = b"".join(stream.feed(events[i : i + size]) for i in range(0, len(events), size))
        first, second, last = [json.loads(line) for line in told.splitlines()]
        assert [first["message"]["content"], second["message"]["content"], first["done"]] == ["He", "llo", False]
        assert last["message"]["tool_calls"] == [WEATHER]
        assert (last["done"], last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == (
            True,
            "stop",
            4,
            2,
        )


def test_an_error_in_a_stream_is_an_error_there() -> None:
    told = ollama.Stream("/api/chat", "m").feed(b'data: {"error": {"message": "it died"}}\n\n')
    assert json.loads(told) == {"error": "it died"}


# -- over a component, by any HTTP client


class Client:
    """What is known of an ``ollama.Client``: its HTTP client."""

    def __init__(self) -> None:
        self._client = httpx.Client(base_url=URL)


def test_requests_of_the_api_go_to_the_component(cut: OpenAICut, cluster: FakeCluster) -> None:
    client = Client()
    assert cut.attach(client, "leaf", "llm-small")
    body: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    answer = client._client.post("/api/chat", json=body).json()
    assert (answer["message"]["content"], answer["done"]) == ("echo of 1: hi", True)
    assert answer["prompt_eval_count"] + answer["eval_count"] == 7
    streamed = client._client.post("/api/chat", json={**body, "stream": True})
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines).strip() == "echo of 1: hi"
    assert (lines[-1]["done"], streamed.headers["content-type"]) == (True, "application/x-ndjson")
    vectors = client._client.post("/api/embed", json={"model": "embed", "input": ["a", "b"]}).json()["embeddings"]
    assert vectors[0] == pytest.approx(vector("a").tolist())
    refused = client._client.post("/api/chat", json={**body, "think": True})
    assert (refused.status_code, refused.json()) == (400, {"error": "the model's component cannot be asked for think"})
    assert [call.component for call in cluster.calls] == ["llm-small", "llm-small", "embedder-embed"]
    assert {call.leaf for call in cluster.calls[:2]} == {"leaf"}


def test_other_models_and_other_paths_go_where_they_went(cut: OpenAICut, cluster: FakeCluster) -> None:
    client = Client()
    cut.attach(client)
    for path, model in (("/api/chat", "theirs"), ("/api/pull", "small")):
        with pytest.raises(httpx.ConnectError):
            client._client.post(path, json={"model": model})
    assert not cluster.calls


# -- the real classes


async def test_the_real_client_is_cut_when_it_is_made(cut: OpenAICut, cluster: FakeCluster) -> None:
    package = pytest.importorskip("ollama")
    messages = [{"role": "user", "content": "hi"}]
    assert package.Client(host=URL).chat("small", messages).message.content == "echo of 1: hi"
    assert (await package.AsyncClient(host=URL).chat("small", messages)).message.content == "echo of 1: hi"
    pieces = [
        part.message.content async for part in await package.AsyncClient(host=URL).chat("small", messages, stream=True)
    ]
    assert "".join(pieces).strip() == "echo of 1: hi"
    with pytest.raises(package.ResponseError, match="cannot be asked for think"):
        package.Client(host=URL).chat("small", messages, think=True)


async def test_langchains_classes_answer_in_every_mode(cut: OpenAICut, cluster: FakeCluster) -> None:
    package = pytest.importorskip("langchain_ollama")
    chat = package.ChatOllama(model="small", base_url=URL, temperature=0, num_predict=9)
    assert chat.invoke("hi").content.strip() == "echo of 1: hi"
    assert (asked(cluster)["max_tokens"], asked(cluster)["temperature"]) == (9, 0)
    assert (await chat.ainvoke("hi")).content.strip() == "echo of 1: hi"
    assert "".join(chunk.content for chunk in chat.stream("hi")).strip() == "echo of 1: hi"
    llm = package.OllamaLLM(model="small", base_url=URL)
    assert llm.invoke("hi").strip() == "echo of 1: hi"
    embedder = package.OllamaEmbeddings(model="embed", base_url=URL)
    assert embedder.embed_query("a") == pytest.approx(vector("a").tolist())
    assert len(await embedder.aembed_documents(["a", "b"])) == 2


async def test_llamaindexs_class_answers_too(cut: OpenAICut, cluster: FakeCluster) -> None:
    package = pytest.importorskip("llama_index.llms.ollama")
    from llama_index.core.llms import ChatMessage

    llm = package.Ollama(model="small", base_url=URL, context_window=512)
    assert llm.complete("hi").text.strip() == "echo of 1: hi"
    assert (await llm.achat([ChatMessage("hi")])).message.content.strip() == "echo of 1: hi"
    assert "".join(part.delta or "" for part in llm.stream_chat([ChatMessage("hi")])).strip() == "echo of 1: hi"


async def test_llamaindexs_embeddings_do_too(cut: OpenAICut, cluster: FakeCluster) -> None:
    package = pytest.importorskip("llama_index.embeddings.ollama")
    leaf = package.OllamaEmbedding(model_name="embed", base_url=URL, query_instruction="Find:")
    assert leaf.get_text_embedding(" a ") == pytest.approx(vector("a").tolist())
    assert leaf.get_query_embedding("a") == pytest.approx(vector("Find: a").tolist())
    first, second = await leaf.aget_text_embedding_batch(["a", "b"])
    assert (first, second) == (pytest.approx(vector("a").tolist()), pytest.approx(vector("b").tolist()))
    assert {call.component for call in cluster.calls} == {"embedder-embed"}
    spec = spec_for(type(leaf))
    assert spec is not None
    assert (spec.facts(leaf).model, spec.facts(leaf).base_url, spec.speaks_openai) == ("embed", URL, True)


def test_a_leaf_is_told_by_its_model_and_its_server() -> None:
    package = pytest.importorskip("langchain_ollama")
    leaf = package.ChatOllama(model="small", base_url=f"{URL}/")
    spec = spec_for(type(leaf))
    assert spec is not None
    assert (spec.facts(leaf).model, spec.facts(leaf).base_url, spec.speaks_openai) == ("small", URL, True)
    assert len(list(spec.openai_clients(leaf))) == 2
    assert [found.cls for found in find_leaves(leaf, root="leaf").leaves] == ["langchain_ollama.chat_models.ChatOllama"]
    assert leaf_router([], {})(URL, "/v1/chat/completions", "small") is None
