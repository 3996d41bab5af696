"""A server that plays a hosted API: it speaks the OpenAI protocol on a real socket, and counts who is inside at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


class HostedApi:
    """``most`` is the largest number of requests that were inside at once. A model named ``busy`` answers 429, ``slow`` takes long."""

    def __init__(self) -> None:
        self.url = ""
        self.inside = 0
        self.most = 0
        self.keys: list[str | None] = []
        self.delay_s = 0.05

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/chat/completions", self._answer, methods=["POST"], response_model=None)
        return app

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.keys.append(request.headers.get("authorization"))
        if body["model"] == "busy":
            return Response(json.dumps({"error": {"type": "rate_limit", "message": "later"}}), 429)
        if body.get("stream"):
            return StreamingResponse(self._stream(body), media_type="text/event-stream")
        self._enter()
        try:
            await asyncio.sleep(30.0 if body["model"] == "slow" else self.delay_s)
        finally:
            self.inside -= 1
        message = {"role": "assistant", "content": f"hosted: {body['messages'][-1]['content']}"}
        document = {
            "id": "h1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        return Response(json.dumps(document), media_type="application/json")

    async def _stream(self, body: dict[str, object]) -> AsyncIterator[bytes]:
        self._enter()
        try:
            for word in ("hosted", " ", "stream"):
                await asyncio.sleep(self.delay_s)
                yield _event(body, {"role": "assistant", "content": word})
            last = {**json.loads(_event(body, {}, "stop")[6:]), "usage": USAGE}
            yield f"data: {json.dumps(last)}\n\n".encode()
            yield b"data: [DONE]\n\n"
        finally:
            self.inside -= 1

    def _enter(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)


def _event(body: dict[str, object], delta: dict[str, str], finish: str | None = None) -> bytes:
    chunk = {
        "id": "h1", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip
    return f"data: {json.dumps(chunk)}\n\n".encode()


@contextmanager
def hosted_api() -> Iterator[HostedApi]:
    api = HostedApi()
    with serving(api.app()) as root:
        api.url = f"{root}/v1"
        yield api


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """An application on a socket of its own, in a thread; the URL of its root."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    started = threading.Event()
    startup = server.startup

    async def noted(sockets: list[object] | None = None) -> None:
        await startup(sockets)  # type: ignore[arg-type]
        started.set()

    server.startup = noted  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
