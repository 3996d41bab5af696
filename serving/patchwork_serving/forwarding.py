"""Between the ingress replicas of a chain that keeps state: a request goes on to the replica that has what it is about.

Serve's proxy chooses a replica before anybody has read the body. The replica that gets a request of a call route reads it, and passes it
on as it came: its owner serves it as if it had come from the proxy, and the answer comes back message by message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchwork_serving.asgi import Client, until_left
from patchwork_serving.conversations import Place, keys_of, owner_of
from patchwork_serving.gateway.app import CALL_PATHS
from patchwork_serving.gateway.faults import GatewayError, InvalidRequest, NotReady, fault_of
from patchwork_serving.gateway.responses import fault_response

log = logging.getLogger(__name__)

#: How long a list of replicas is believed.
KNOWN_S = 1.0
_SENT = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client", "server",
)  # fmt: skip
#: First message of an answer: whether the replica is the one that was asked.
HERE, NOT_HERE = {"type": "patchwork.here"}, {"type": "patchwork.not_here"}

#: ``places()``: the ingress replicas now. ``send(name, scope, body)``: the messages of ``serve_here`` of that replica.
Places = Callable[[], Awaitable[Sequence[Place]]]
SendTo = Callable[[str, Scope, bytes], AsyncGenerator[Message, None]]


class ConversationUnavailable(NotReady):
    title = "the replica that keeps this conversation cannot be reached"


class Forwarding:
    """An ASGI app around that of one of ``count`` ingress replicas, named ``me``."""

    def __init__(
        self, app: ASGIApp, *, affinity: str, count: int, me: str, places: Places, send_to: SendTo, max_body_bytes: int,
        body_timeout_s: float,
    ) -> None:  # fmt: skip
        self._app = app
        self._affinity = affinity
        self._count = count
        self._me = me
        self._places = places
        self._send_to = send_to
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._known: tuple[float, Sequence[Place]] = (float("-inf"), ())
        #: replicas that did not answer under their name, and until when they are left out: not long, one may only just have started
        self._gone: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(CALL_PATHS):
            await self._app(scope, receive, send)
            return
        read, body = await _read(receive, self._max_body_bytes, self._body_timeout_s)
        try:
            owner = None if body is None else await self._owner(body)
            while owner is not None and owner != self._me:
                assert body is not None
                if await self._forwarded(owner, scope, body, receive, send):
                    return
                self._gone[owner] = time.monotonic() + 2 * KNOWN_S
                owner = await self._owner(body)
        except GatewayError as error:
            await fault_response(fault_of(error), None)(scope, receive, send)
            return
        await self._app(scope, _again(read, receive), send)

    async def _owner(self, body: bytes) -> str | None:
        """None when it does not matter who answers, a body that is no JSON included."""
        try:
            keys = keys_of(self._affinity, json.loads(body))
        except (ValueError, RecursionError):
            return None
        if not keys:
            return None
        places = [place for place in await self._places_now() if self._gone.get(place.name, 0.0) <= time.monotonic()]
        owners = {owner_of(key, places, self._count) for key in keys}
        if None in owners:
            raise ConversationUnavailable("no replica of the ingress is known; try again")
        if len(owners) > 1:
            raise InvalidRequest(
                f"config: the batch is about several conversations ({self._affinity}), which different replicas keep; "
                "send one request for each"
            )
        return owners.pop()

    async def _places_now(self) -> Sequence[Place]:
        now = time.monotonic()
        if now - self._known[0] > KNOWN_S:
            try:
                self._known = (now, await self._places())
            except Exception as error:  # noqa: BLE001  Ray's head is busy or being replaced: what was known goes on to count
                log.warning("could not read which ingress replicas there are: %s", type(error).__name__)
        return self._known[1]

    async def _forwarded(self, owner: str, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Whether the owner served it; False when there is nobody of that name. A client that leaves ends the work there."""
        messages = self._send_to(owner, {key: scope[key] for key in _SENT if key in scope}, body)
        pumping = asyncio.ensure_future(_pump(messages, send))
        leaving = asyncio.ensure_future(until_left(receive))
        try:
            await asyncio.wait({pumping, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return pumping.result() if pumping.done() else True
        finally:
            for task in (pumping, leaving):
                task.cancel()
            await asyncio.wait({pumping, leaving})


async def serve_here(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
    """The messages with which ``app`` answers; closing this is the client's leaving."""
    answers: asyncio.Queue[Message | None] = asyncio.Queue()
    client = Client(body)

    async def work() -> None:
        try:
            await app(scope, client.receive, answers.put)
        finally:
            answers.put_nowait(None)

    working = asyncio.ensure_future(work())
    try:
        yield HERE
        while (message := await answers.get()) is not None:
            yield message
        working.result()
    finally:
        client.leave()
        await asyncio.wait({working}, timeout=1.0)  # it ends by itself, as for a client that leaves; else it is ended
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _pump(messages: AsyncGenerator[Message, None], send: Send) -> bool:
    started = False
    try:
        async with contextlib.aclosing(messages):
            if (await anext(messages))["type"] != HERE["type"]:
                return False
            async for message in messages:
                started = True
                await send(message)
    except GatewayError:
        raise
    except Exception as error:
        if started:
            raise
        log.warning("an ingress replica did not answer: %s", type(error).__name__)
        raise ConversationUnavailable("the replica that keeps this conversation did not answer; try again") from error
    return True


async def _read(receive: Receive, most: int, timeout_s: float) -> tuple[list[Message], bytes | None]:
    """The messages of the body, and the body; None when it is too large or too slow, or its client left, which the app deals with."""
    read: list[Message] = []
    body = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while len(body) <= most:
                read.append(message := await receive())
                if message["type"] != "http.request":
                    break
                body += message.get("body", b"")
                if len(body) <= most and not message.get("more_body", False):
                    return read, bytes(body)
    return read, None


def _again(read: Sequence[Message], receive: Receive) -> Receive:
    """The messages that were read, and then those that come."""
    waiting = list(reversed(read))

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
