"""The Ollama API told in the OpenAI protocol: requests one way, answers and streams the other. Pure.

Where a request says nothing, Ollama's own sampling defaults hold, so that an answer is drawn as its server would draw it (a model's own
Modelfile apart). What has no counterpart (images, mirostat, thinking) is refused with its name rather than left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: Last part of the URL -> path of the OpenAI protocol.
OPERATIONS = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/chat/completions",
    "/api/embed": "/v1/embeddings",
}
NDJSON = {"content-type": "application/x-ndjson"}

#: docs.ollama.com, "modelfile": what its server takes where nobody says otherwise.
_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1}
_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")
#: How the model is loaded and run, which is the engine's to say.
_RUNNING = frozenset(
    {
        *(
            "numa",
            "num_ctx",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "low_vram",
            "f16_kv",
            "logits_all",
            "vocab_only",
            "use_mmap",
            "use_mlock",
        ),
        *("embedding_only", "num_thread", "num_keep", "penalize_newline"),
    }
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "mirostat_tau": (5.0,),
    "mirostat_eta": (0.1,),
    "tfs_z": (1.0,),
    "typical_p": (1.0,),
    "repeat_last_n": (64,),
}


class Untold(ValueError):
    """A request that the OpenAI protocol cannot tell; the text names what."""


def operation_of(url_path: str) -> str | None:
    """``/api/chat``, ``/api/generate`` or ``/api/embed``; None for any other path."""
    return next((operation for operation in OPERATIONS if url_path.endswith(operation)), None)


def wants_stream(operation: str, document: Mapping[str, Any]) -> bool:
    """Ollama streams unless it is told not to."""
    return operation != "/api/embed" and document.get("stream") is not False


def request(operation: str, document: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(path, body) of the OpenAI protocol. Raises Untold."""
    match operation:
        case "/api/embed":
            body = {
                "model": document.get("model"),
                "input": document.get("input"),
                "dimensions": document.get("dimensions"),
            }
            return OPERATIONS[operation], {name: value for name, value in body.items() if value is not None}
        case "/api/generate" if document.get("raw"):
            return "/v1/completions", {"prompt": document.get("prompt") or "", **_asked(document)}
        case "/api/generate":
            _refuse(document, "suffix", "context", "template", "images")
            roles = (("system", document.get("system")), ("user", document.get("prompt")))
            messages = [{"role": role, "content": text} for role, text in roles if text]
        case _:
            messages = list(_messages(document.get("messages") or ()))
    return OPERATIONS[operation], {"messages": messages, **_asked(document), **_tools(document)}


def _asked(document: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(document, "think", "logprobs", "top_logprobs")
    options = {
        **_DEFAULTS,
        **{name: value for name, value in (document.get("options") or {}).items() if value is not None},
    }
    body: dict[str, Any] = {"model": document.get("model"), "stream": wants_stream("", document)}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    for name in _SAME:
        if name in options:
            body[name] = options.pop(name)
    # the engines have different words for it, and ignore each other's
    body["repeat_penalty"] = body["repetition_penalty"] = options.pop("repeat_penalty")
    limit = options.pop("num_predict", -1)
    if limit > 0:  # -1 and -2: until the model ends
        body["max_tokens"] = limit
    if stop := options.pop("stop", None):
        body["stop"] = [stop] if isinstance(stop, str) else list(stop)
    unknown = sorted(
        name for name, value in options.items() if name not in _RUNNING and value not in _NEUTRAL.get(name, ())
    )
    if unknown:
        raise Untold(f"options: {', '.join(unknown)}")
    if wanted := document.get("format"):
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
        body["response_format"] = {"type": "json_object"} if wanted == "json" else schema
    return body


def _tools(document: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": list(document["tools"])} if document.get("tools") else {}


def _refuse(document: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if document.get(name):
            raise Untold(name)


def _messages(given: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ollama's tool calls have no ids: results follow their calls, in order."""
    waiting: list[str] = []
    for number, message in enumerate(given):
        _refuse(message, "images")
        told: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
        if calls := message.get("tool_calls"):
            told["tool_calls"] = [_tool_call(call, f"call_{number}_{index}") for index, call in enumerate(calls)]
            waiting = [call["id"] for call in told["tool_calls"]]
        if message["role"] == "tool":
            told["tool_call_id"] = waiting.pop(0) if waiting else f"call_{number}"
        yield told


def _tool_call(call: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": text}}


# ---- answers


def answer(operation: str, model: str, status: int, document: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's document of a whole answer, or of an error."""
    if status != 200:
        return {"error": _error_of(document)}
    usage = document.get("usage") or {}
    if operation == "/api/embed":
        vectors = [item["embedding"] for item in document["data"]]
        return {"model": model, "embeddings": vectors, "prompt_eval_count": usage.get("prompt_tokens", 0)}
    choice = document["choices"][0]
    message = choice.get("message") or {"content": choice.get("text")}
    return {
        **_head(model, document.get("created")),
        **_said(operation, message.get("content") or "", message.get("tool_calls") or ()),
        **_end(choice.get("finish_reason"), usage),
    }


@dataclass(slots=True)
class Stream:
    """Fed with the bytes of an OpenAI event stream, cut anywhere; gives the lines of Ollama's."""

    operation: str
    model: str
    _rest: bytes = b""
    _reason: str | None = None
    _usage: Mapping[str, Any] = field(default_factory=dict)
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    def feed(self, piece: bytes) -> bytes:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return b"".join(self._event(line.removeprefix(b"data:").strip()) for line in lines if line.startswith(b"data:"))

    def _event(self, data: bytes) -> bytes:
        if data == b"[DONE]":
            calls = [self._calls[index] for index in sorted(self._calls)]
            said = _said(self.operation, "", calls)
            return _line({**_head(self.model, None), **said, **_end(self._reason, self._usage)})
        chunk = json.loads(data)
        if chunk.get("error"):
            return _line({"error": _error_of(chunk)})
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or ():
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta") or {}
            text += delta.get("content") or choice.get("text") or ""
            for call in delta.get("tool_calls") or ():
                self._add(call)
        if not text:
            return b""
        return _line({**_head(self.model, chunk.get("created")), **_said(self.operation, text, ()), "done": False})

    def _add(self, delta: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(delta.get("index", 0), {"function": {"name": "", "arguments": ""}})
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _said(operation: str, text: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if operation == "/api/generate":
        return {"response": text}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.loads(call["function"]["arguments"] or "{}"),
                }
            }
            for call in calls
        ]
    return {"message": message}


def _head(model: str, created: float | None) -> dict[str, Any]:
    at = datetime.fromtimestamp(created or 0, UTC)
    return {"model": model, "created_at": at.isoformat().replace("+00:00", "Z")}


def _end(reason: str | None, usage: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"prompt_eval_count": usage.get("prompt_tokens", 0), "eval_count": usage.get("completion_tokens", 0)}
    return {"done": True, "done_reason": "length" if reason == "length" else "stop", **counts}


def _error_of(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    return str(error.get("message") if isinstance(error, dict) else error or "the request failed")


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"
