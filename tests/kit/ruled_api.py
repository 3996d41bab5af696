"""An OpenAI-compatible server with rules instead of models: what is asked decides the answer, so that ways can be counted.

Embeddings are counts of hashed words, so that texts with common words are near each other. Chat answers come from ``rules``: the first
whose words occur in the last message; without one, the answer names the size of the prompt.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from kit.hosted import serving

DIM = 64


class RuledApi:
    """``rules``: words in the prompt to the answer; ``asked`` counts chats by model, ``embedded`` texts."""

    def __init__(self, rules: dict[str, str] | None = None) -> None:
        self.rules = rules or {}
        self.asked: Counter[str] = Counter()
        self.embedded = 0
        self.url = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/embeddings", self._embed, methods=["POST"], response_model=None)
        return app

    def answer(self, prompt: str) -> str:
        return next((text for words, text in self.rules.items() if words in prompt), f"{len(prompt)} characters")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked[body["model"]] += 1
        prompt = body["messages"][-1]["content"]
        prompt = prompt if isinstance(prompt, str) else "".join(part.get("text", "") for part in prompt)
        text = self.answer(prompt)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        usage["total_tokens"] = sum(usage.values())
        head = {"id": "r1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return _json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        chunks = [{"role": "assistant", "content": ""}, *({"content": word} for word in re.findall(r"\s*\S+", text))]
        events = [
            {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": c, "finish_reason": None}]}
            for c in chunks
        ]
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        events.append({**head, "object": "chat.completion.chunk", "choices": [last], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    async def _embed(self, request: Request) -> Response:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        self.embedded += len(texts)
        rows = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return _json({"object": "list", "model": body["model"], "data": rows, "usage": usage})


def vector(text: str) -> list[float]:
    counts = [0.0] * DIM
    for word in re.findall(r"\w+", text.lower()):
        counts[zlib.crc32(word.encode()) % DIM] += 1.0
    length = math.sqrt(sum(c * c for c in counts)) or 1.0
    return [c / length for c in counts]


def _json(document: Any) -> Response:
    return Response(json.dumps(document), media_type="application/json")


@contextmanager
def ruled_api(rules: dict[str, str] | None = None) -> Iterator[RuledApi]:
    api = RuledApi(rules)
    with serving(api.app()) as root:
        api.url = f"{root}/v1"
        yield api
