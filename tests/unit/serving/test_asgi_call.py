"""Requests to ASGI applications in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, StreamingResponse

from patchwork_serving.components.asgi_call import PIECES, AsgiApp, asgi_post

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Server:
    """An application that counts what it made, and notes who left."""

    def __init__(self) -> None:
        self.made = 0
        self.left = 0
        app = FastAPI()
        app.post("/echo")(self._echo)
        app.post("/count")(self._count)
        app.post("/wait")(self._wait)
        app.post("/fail")(self._fail)
        self.app: AsgiApp = app  # type: ignore[assignment]

    async def _echo(self, request: Request) -> JSONResponse:
        return JSONResponse({"got": await request.json(), "who": WHO.get()}, 201, {"x-more": "yes"})

    async def _count(self) -> StreamingResponse:
        return StreamingResponse(self._numbers(), media_type="text/event-stream")

    async def _numbers(self) -> AsyncIterator[bytes]:
        try:
            for self.made in range(1, 1001):
                yield b"%d " % self.made
        except asyncio.CancelledError:
            self.left += 1
            raise

    async def _wait(self, request: Request) -> None:
        await request.body()
        assert (await request.receive())["type"] == "http.disconnect"
        self.left += 1

    async def _fail(self) -> None:
        raise ZeroDivisionError


async def read(server: Server, path: str, body: bytes = b"{}", **options: Any) -> tuple[int, dict[str, str], bytes]:
    async with asgi_post(server.app, path, body, **options) as answer:
        return answer.status, dict(answer.headers), await answer.read()


async def test_a_whole_answer_has_status_headers_and_body() -> None:
    status, headers, body = await read(Server(), "/echo", b'{"a": 1}')
    assert (status, headers["x-more"], body) == (201, "yes", b'{"got":{"a":1},"who":"nobody"}')


async def test_the_application_runs_in_a_context_of_its_own() -> None:
    _, _, body = await read(Server(), "/echo", within=lambda: WHO.set("call 7"))
    assert b'"who":"call 7"' in body
    assert WHO.get() == "nobody"


async def test_a_stream_is_read_as_it_comes() -> None:
    server = Server()
    async with asgi_post(server.app, "/count", b"{}") as answer:
        first = await anext(answer.body)
        assert (first, server.made < 100) == (b"1 ", True)
        rest = await answer.read()
    assert rest.split()[-1] == b"1000"
    assert server.left == 0


async def test_who_does_not_read_holds_the_stream_up() -> None:
    server = Server()
    async with asgi_post(server.app, "/count", b"{}"):
        await asyncio.sleep(0.05)
        assert server.made <= PIECES + 2
    made = server.made
    await asyncio.sleep(0.05)
    assert server.made == made < 1000  # and what nobody reads is made no further


async def test_leaving_before_the_answer_is_a_disconnect() -> None:
    server = Server()
    task = asyncio.create_task(read(server, "/wait"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert (task.cancelled(), server.left) == (True, 1)


async def test_a_failure_after_the_answer_is_the_answer() -> None:
    status, _, _ = await read(Server(), "/fail")
    assert status == 500


async def test_an_application_that_ends_without_an_answer_raises() -> None:
    async def mute(scope: Any, receive: Any, send: Any) -> None: ...

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="without an answer"):
        async with asgi_post(mute, "/", b""):
            pass
    with pytest.raises(ZeroDivisionError):
        async with asgi_post(broken, "/", b""):
            pass
