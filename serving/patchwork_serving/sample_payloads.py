"""Calls to measure an engine with: those of the samples, varied so that no cache answers them, longer, or made from nothing. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpRequest, decode_request, encode_request
from patchwork_adapters.transport import LeafCall
from patchwork_serving.release import Collection, ComponentSpec
from patchwork_serving.telemetry.documents import reply_document
from patchwork_serving.wire import CallFrame

Body = dict[str, Any]


def frame_of(call: LeafCall, number: int) -> bytes:
    """A whole reply is asked for, also of a call that was streamed: the work in the engine is the same."""
    call = _changed(call, _whole)
    own = call.stream and not (call.method.startswith("POST ") or _is_operation(call))
    return CallFrame(
        f"measure-{number}", "profile", call.leaf, call.method, call.payload, size=call.size, stream=own
    ).to_bytes()


def varied(call: LeafCall, number: int) -> LeafCall:
    """The same prompt under a number of its own, so that an engine which keeps prompts computes it again."""
    return _changed(call, lambda body: _with_text(body, lambda text: f"[{number}] {text}"))


def longer(call: LeafCall) -> LeafCall:
    """The same prompt or texts, twice over; the same call where there is no text to see."""
    return _changed(call, lambda body: _with_text(body, lambda text: f"{text}\n{text}"))


def limited(call: LeafCall, tokens: int) -> LeafCall:
    """The same prompt, with an answer of at most so many tokens."""
    return _changed(
        call, lambda body: {**{k: v for k, v in body.items() if k != "max_completion_tokens"}, "max_tokens": tokens}
    )


def tokens_in_out(call: LeafCall, spec: ComponentSpec, reply: bytes) -> tuple[int, int] | None:
    """Prompt and output tokens as the reply counts them; None where it does not."""
    counted = reply_document(reply, call, spec.way).get("usage") or {}
    prompt = counted.get("prompt_tokens")
    return (int(prompt), int(counted.get("completion_tokens") or 0)) if prompt else None


def made_up(spec: ComponentSpec, collections: tuple[Collection, ...]) -> LeafCall | None:
    """A call for a component that no sample reached; None where only the user's own code knows what one looks like."""
    leaf = spec.leaves[0] if spec.leaves else ""
    text = "What does this passage say about the question that was asked, and is it enough for an answer?"
    messages = {"model": spec.model, "messages": [{"role": "user", "content": text}], "max_tokens": 32}
    match spec.way, spec.kind:
        case "protocol", "llm":
            return _protocol(spec, leaf, "/v1/chat/completions", messages)
        case "protocol", "embedder":
            return _protocol(spec, leaf, "/v1/embeddings", {"model": spec.model, "input": [text]})
        case "engine", "llm":
            return LeafCall(spec.id, leaf, "chat", codec.encode({"body": messages}))
        case "engine", "embedder":
            return LeafCall(spec.id, leaf, "embed", codec.encode({"texts": [text], "normalize": None}))
        case "engine", "reranker":
            return LeafCall(spec.id, leaf, "score", codec.encode({"pairs": [(text, text)] * 10}), size=10)
        case "engine", "retriever":
            return _search(spec, collections)
        case _:
            return None


def _search(spec: ComponentSpec, collections: tuple[Collection, ...]) -> LeafCall | None:
    import numpy as np

    mine = [c for c in collections if c.leaf in spec.leaves]
    if not mine:
        return None
    vector = np.full(mine[0].dim, mine[0].dim ** -0.5, dtype=np.float32)
    arguments = {"collection": mine[0].name, "vector": vector, "k": 4, "ids": None, "where": {}, "with_vectors": False}
    return LeafCall(spec.id, mine[0].leaf, "search", codec.encode(arguments))


def _protocol(spec: ComponentSpec, leaf: str, path: str, body: Body) -> LeafCall:
    request = HttpRequest("POST", path, {"content-type": "application/json"}, json.dumps(body).encode())
    return LeafCall(spec.id, leaf, f"POST {path}", encode_request(request))


def _is_operation(call: LeafCall) -> bool:
    return call.method in ("chat", "complete", "embed", "score", "search", "get", "add", "delete")


def _changed(call: LeafCall, change: Callable[[Body], Body]) -> LeafCall:
    """With another body; calls whose payload is the user's own objects are left as they are."""
    if call.method.startswith("POST "):
        request = decode_request(call.payload)
        body = json.dumps(change(request.json())).encode()
        return call._replace(payload=encode_request(request._replace(body=body)))
    if call.method in ("chat", "complete"):
        arguments = codec.decode(call.payload)
        return call._replace(payload=codec.encode({**arguments, "body": change(dict(arguments["body"]))}))
    if call.method == "embed":
        return call._replace(payload=codec.encode(change(dict(codec.decode(call.payload)))))
    return call


def _whole(body: Body) -> Body:
    return {key: value for key, value in body.items() if key not in ("stream", "stream_options")}


def _with_text(body: Body, change: Callable[[str], str]) -> Body:
    if isinstance(body.get("messages"), list) and body["messages"]:
        *before, last = body["messages"]
        if isinstance(last, Mapping) and isinstance(last.get("content"), str):
            return {**body, "messages": [*before, {**last, "content": change(last["content"])}]}
        return body
    for name in ("prompt", "input", "texts"):
        match body.get(name):
            case str() as text:
                return {**body, name: change(text)}
            case list() as texts if texts and all(isinstance(text, str) for text in texts):
                return {**body, name: [change(text) for text in texts]}
    return body
