"""Parts that ASGI applications and those who call them share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


async def until_left(receive: Callable[[], Awaitable[Message]]) -> None:
    """Returns when the client leaves. The body must have been read, or is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Client:
    """Of one request, whose body is whole; stays until it leaves."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = asyncio.Event()

    @property
    def has_left(self) -> bool:
        return self._left.is_set()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        """For the application."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
