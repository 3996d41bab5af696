"""Transports for tests: small servers of the protocol and of the store operations, on bytes only."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchwork_adapters import codec
from patchwork_adapters.operations import Hit
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_adapters.transport import LeafCall

DIM = 8


def vector(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def route(base_url: str, path: str, model: str | None) -> str | None:
    """Where the cut sends a request: two models are components, all others stay where they are."""
    return {"small": "llm-small", "embed": "embedder-embed"}.get(model or "")


def answer(body: dict[str, Any]) -> str:
    return f"echo of {len(body['messages'])}: {body['messages'][-1]['content']}"


class FakeCluster:
    """Answers protocol requests and store operations; remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[LeafCall] = []
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.cancelled: list[str] = []
        self.delay_s = 0.0
        self.fail_with: list[BaseException] = []

    async def call(self, call: LeafCall) -> bytes:
        self.calls.append(call)
        if self.fail_with:
            raise self.fail_with.pop(0)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(call.method)
            raise
        if call.method.startswith("POST "):
            return self._protocol(call)
        return codec.encode_outcome(getattr(self, f"_{call.method}")(codec.decode(call.payload)))

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.calls.append(call)
        body = decode_request(call.payload).json()
        try:
            yield encode_response(HttpResponse(200, {"content-type": "text/event-stream"}))
            for word in (answer(body) if "messages" in body else _echo(body)).split(" "):
                await asyncio.sleep(self.delay_s)
                yield f"data: {json.dumps(_piece(call.method, body, word + ' '))}\n\n".encode()
            if "messages" in body:
                yield f"data: {json.dumps(_chunk(body, {}, 'stop'))}\n\n".encode()
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(call.method)
            raise

    def _protocol(self, call: LeafCall) -> bytes:
        body = decode_request(call.payload).json()
        match call.method:
            case "POST /v1/embeddings":
                reply = _embeddings(body)
            case "POST /v1/chat/completions":
                message = {"role": "assistant", "content": answer(body)}
                reply = _completion(body, message)
            case "POST /v1/completions":
                choice = {"index": 0, "text": _echo(body), "finish_reason": "stop", "logprobs": None}
                reply = {
                    "id": "c1",
                    "object": "text_completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [choice],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
                }
            case "POST /v1/responses":
                reply = _response(body)
            case other:
                raise AssertionError(other)
        return encode_response(HttpResponse(200, {"content-type": "application/json"}, json.dumps(reply).encode()))

    def _search(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        rows = self.rows[arguments["collection"]].values()
        wanted, where = arguments["ids"], arguments["where"]
        hits = [
            Hit(row["id"], row["text"], row["metadata"], _cosine(arguments["vector"], row["vector"]), row["vector"])
            for row in rows
            if (wanted is None or row["id"] in wanted) and all(row["metadata"].get(k) == v for k, v in where.items())
        ]
        best = sorted(hits, key=lambda hit: -hit.score)[: arguments["k"]]
        return [hit.to_dict() for hit in best]

    def _get(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        rows = self.rows[arguments["collection"]]
        found = [rows[id_] for id_ in arguments["ids"] if id_ in rows]
        return [Hit(r["id"], r["text"], r["metadata"], 0.0, r["vector"]).to_dict() for r in found]

    def _add(self, arguments: dict[str, Any]) -> int:
        self.rows.setdefault(arguments["collection"], {}).update({row["id"]: row for row in arguments["rows"]})
        return len(arguments["rows"])

    def _delete(self, arguments: dict[str, Any]) -> int:
        rows = self.rows[arguments["collection"]]
        ids = list(rows) if arguments["ids"] is None else arguments["ids"]
        return sum(rows.pop(id_, None) is not None for id_ in ids)


def _cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors = [vector(str(text)) for text in texts]
    as_base64 = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(v.tobytes()).decode() if as_base64 else v.tolist(),
        }
        for i, v in enumerate(vectors)
    ]
    return {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def _completion(body: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def _chunk(body: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}


def _echo(body: dict[str, Any]) -> str:
    return f"echo: {body.get('prompt') or body.get('input')}"


def _piece(method: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    """One event of a stream, as each of the three operations has them."""
    match method:
        case "POST /v1/completions":
            choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
            return {"id": "c1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}
        case "POST /v1/responses":
            place = {"item_id": "m1", "output_index": 0, "content_index": 0, "sequence_number": 0, "logprobs": []}
            return {"type": "response.output_text.delta", "delta": text, **place}
        case _:
            return _chunk(body, {"role": "assistant", "content": text})


def _response(body: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": _echo(body), "annotations": []}]
    message = {"id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": "r1",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
