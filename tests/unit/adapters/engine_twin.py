"""An in-memory component of the ``engine`` way for LLM classes, and a leaf swapped for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.swap import swap
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves


class EchoEngine:
    """Answers each prompt, or last message, with its length and the word ``characters``, in OpenAI's shapes; remembers the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def call(self, call: LeafCall) -> bytes:
        words = self._words(call)
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        text = "".join(words)
        if call.method == "chat":
            choice: dict[str, Any] = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        else:
            choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return codec.encode_outcome({"choices": [choice], "usage": usage})

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        words = self._words(call)
        if call.method == "chat":
            yield codec.encode_outcome({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        for word in words:
            piece: dict[str, Any] = {"delta": {"content": word}} if call.method == "chat" else {"text": word}
            yield codec.encode_outcome({"choices": [{"index": 0, "finish_reason": None, **piece}]})
        if call.method == "chat":
            yield codec.encode_outcome({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield codec.encode_outcome({"choices": [], "usage": {"prompt_tokens": 3}})

    def _words(self, call: LeafCall) -> tuple[str, str]:
        body = codec.decode(call.payload)["body"]
        assert bool(body.get("stream")) == call.stream
        self.asked.append((call.method, body))
        text = body["messages"][-1]["content"] if call.method == "chat" else body["prompt"]
        return f"{len(text)}", " characters"


@contextmanager
def swapped(leaf: Any) -> Iterator[EchoEngine]:
    engine = EchoEngine()
    walk = find_leaves(leaf, root="leaf")
    assert walk.leaves
    with Bridge(engine) as bridge:
        in_force = swap(walk.leaves, {found.path: Assignment("llm", "engine") for found in walk.leaves}, bridge)
        yield engine
        in_force.undo()
