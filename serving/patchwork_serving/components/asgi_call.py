"""A request to an ASGI application in this process, answered as it comes.

httpx's own ASGI transport gathers a stream before it gives any of it. The application sees a client like any other: one that stops
reading holds it up, and one that leaves is a disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from patchwork_serving.asgi import Client, Message

AsgiApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

#: Pieces that may wait for their reader. Few: a server that is held up can put its next pieces together.
PIECES = 8
#: How long an application may take to notice that its client has left, before its task is cancelled.
LEAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class AsgiAnswer:
    status: int
    headers: Mapping[str, str]  #: lower-case names
    body: AsyncIterator[bytes] = field(repr=False)

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.body])


@contextlib.asynccontextmanager
async def asgi_post(
    app: AsgiApp, path: str, body: bytes, within: Callable[[], object] | None = None
) -> AsyncIterator[AsgiAnswer]:
    """The head of the answer; its body is read inside. Leaving the block early is leaving the request. ``within`` is called first in the
    application's own context (a place for context variables). Raises what the application raises before it has answered."""
    exchange = _Exchange(body)
    task = asyncio.create_task(_run(app, _scope(path, body), exchange, within))
    task.add_done_callback(exchange.end)
    try:
        yield await exchange.head(task)
    finally:
        await exchange.leave(task)


async def _run(app: AsgiApp, scope: dict[str, Any], exchange: _Exchange, within: Callable[[], object] | None) -> None:
    if within is not None:
        within()
    await app(scope, exchange.receive, exchange.send)


def _scope(path: str, body: bytes) -> dict[str, Any]:
    headers = {"content-type": "application/json", "content-length": str(len(body)), "host": "replica"}
    return {
        # of a version in which a streaming response listens for a disconnect while it sends
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None, "state": {},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip


class _Exchange:
    """What goes to and fro between an application and its one client."""

    def __init__(self, body: bytes) -> None:
        self._client = Client(body)
        self.receive = self._client.receive
        self._head: Message | None = None
        self._pieces: deque[bytes] = deque()
        self._whole = False  # all of the answer has been sent, or nothing more will be
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    # -- the application's side

    async def send(self, message: Message) -> None:
        """OSError once nobody reads any more, as servers raise it."""
        if message["type"] == "http.response.start":
            self._head = message
        else:
            while len(self._pieces) >= PIECES and not self._client.has_left:
                self._room.clear()
                await self._room.wait()
            if self._client.has_left:
                raise OSError("the client has left")
            if piece := message.get("body", b""):
                self._pieces.append(bytes(piece))
            self._whole = not message.get("more_body", False)
        self._news.set()

    def end(self, _: asyncio.Task[None]) -> None:
        self._whole = True
        self._news.set()

    # -- the client's side

    async def head(self, task: asyncio.Task[None]) -> AsgiAnswer:
        while self._head is None and not task.done():
            self._news.clear()
            await self._news.wait()
        if self._head is None:
            task.result()  # raises what the application raised
            raise RuntimeError("the application ended without an answer")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._head["headers"]}
        return AsgiAnswer(self._head["status"], headers, self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._room.set()
                yield piece
            if self._whole:
                return
            self._news.clear()
            await self._news.wait()

    async def leave(self, task: asyncio.Task[None]) -> None:
        """The application has ended afterwards, whatever it was doing."""
        self._client.leave()
        self._room.set()
        if not task.done():
            await asyncio.wait({task}, timeout=LEAVE_S)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it was answered with an error already; asyncio would complain of it otherwise
