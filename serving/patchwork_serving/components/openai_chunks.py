"""The chunks of an OpenAI stream, put together to the answer that the same request would have had without a stream.

llama.cpp notices that a caller has left only while it streams to him; so it always streams, and whoever asked for a whole answer gets it
put together here. The same chunks tell how far a call is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from patchwork_serving.components.engine import Progress

DONE = b"[DONE]"
_OBJECTS = {"chat.completion.chunk": "chat.completion"}
#: Deltas that grow by concatenation.
_TEXTS = ("content", "reasoning_content", "refusal")


class StreamError(Exception):
    """The stream ended with an error document; ``args[0]`` is it."""


class EventLines:
    """The data of each server-sent event, from pieces cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Of the events that ``piece`` completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found = (line.partition(b":") for line in lines)
        return [data.strip() for name, _, data in found if name in (b"data", b"error")]


class Tally:
    """Tells a call's progress from its events: about a token each, and the server's own count at the end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def event(self, data: bytes) -> None:
        if data == DONE:
            return
        used = None
        if b'"usage"' in data or b'"timings"' in data:  # quoted so, it is no part of a text
            used = usage_of(orjson.loads(data))
        if used is None:
            self._progress.generated()
        else:
            self._progress.used(*used)


def usage_of(document: Mapping[str, Any]) -> tuple[int, int] | None:
    """(prompt tokens, output tokens) of a chunk or an answer, where it tells them; llama.cpp's ``timings`` do so unasked."""
    response = document.get("response")
    usage = document.get("usage") or (response.get("usage") if isinstance(response, dict) else None)
    if isinstance(usage, dict):
        return (
            int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0),
            int(usage.get("completion_tokens") or usage.get("output_tokens") or 0),
        )
    timings = document.get("timings")
    if isinstance(timings, dict):
        return int(timings.get("prompt_n", 0)) + int(timings.get("cache_n", 0)), int(timings.get("predicted_n", 0))
    return None


class WholeAnswer:
    """Fed with the data of each event, in order; ``document`` is the answer once ``add`` has returned True."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] | None = None

    def add(self, data: bytes) -> bool:
        """Whether this was the last event. Raises StreamError."""
        if data == DONE:
            return True
        chunk = orjson.loads(data)
        if chunk.get("error"):
            raise StreamError(chunk)
        if isinstance(chunk.get("type"), str):  # the Responses API ends with the whole response
            if chunk["type"] == "response.completed":
                self._response = chunk["response"]
            return self._response is not None
        for choice in chunk.pop("choices", ()):
            self._add_choice(choice)
        self._head.update(chunk)
        return False

    def document(self) -> dict[str, Any]:
        if self._response is not None:
            return self._response
        kind = self._head.get("object", "")
        choices = [self._choices[index] for index in sorted(self._choices)]
        return {**self._head, "object": _OBJECTS.get(kind, kind), "choices": choices}

    def _add_choice(self, chunk: Mapping[str, Any]) -> None:
        index = chunk.get("index", 0)
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if chunk.get("finish_reason") is not None:
            choice["finish_reason"] = chunk["finish_reason"]
        if "text" in chunk:
            choice["text"] = choice.get("text", "") + chunk["text"]
            choice.setdefault("logprobs", None)
        if "delta" in chunk:
            _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), chunk["delta"])
        if chunk.get("logprobs"):
            _add_logprobs(choice, chunk["logprobs"])


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    if delta.get("role"):
        message["role"] = delta["role"]
    for name in _TEXTS:
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls") or ():
        _add_tool_call(message.setdefault("tool_calls", []), call)


def _add_tool_call(calls: list[dict[str, Any]], delta: Mapping[str, Any]) -> None:
    """The first delta of a call carries its id and name, the others pieces of its arguments."""
    index = delta.get("index", 0)
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    if delta.get("id"):
        call["id"] = delta["id"]
    function = delta.get("function") or {}
    if function.get("name"):
        call["function"]["name"] = function["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def _add_logprobs(choice: dict[str, Any], logprobs: Mapping[str, Any]) -> None:
    whole = choice.get("logprobs") or {}
    for name, values in logprobs.items():
        whole[name] = [*whole.get(name, ()), *values] if isinstance(values, list) else values
    choice["logprobs"] = whole
