"""An answer as server-sent events, in the dialect of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from patchwork_adapters.errors import RequestCancelled, RequestStopped
from patchwork_serving.gateway.exchange import Exchange
from patchwork_serving.gateway.faults import Fault
from patchwork_serving.gateway.responses import HEARTBEAT, STREAM_HEADERS
from patchwork_serving.gateway.runs import Run


class Dialect(Protocol):
    """How one route writes its stream."""

    def opening(self) -> bytes:
        """Sent with the first chunk."""
        ...

    def chunk(self, value: Any) -> bytes: ...

    def closing(self, exchange: Exchange) -> bytes:
        """Sent after the last chunk, when the outcome is known."""
        ...

    def fault(self, fault: Fault, run_id: str | None) -> bytes:
        """Sent instead of the closing."""
        ...


async def event_stream(exchange: Exchange, run: Run, dialect: Dialect) -> Response:
    """Answer with the chunks of ``run``.

    Waits for the first chunk, so that what fails before it gets a status; but no longer than a heartbeat, so that proxies see headers.
    """
    first = await run.next_chunks(exchange.gateway.settings.heartbeat_s)
    if first:
        exchange.first_chunk_sent()
    return _EventStream(exchange, run, dialect, first)


class _EventStream(Response):
    """Not starlette's StreamingResponse: that one reads ``receive`` itself, and the exchange already watches it."""

    def __init__(self, exchange: Exchange, run: Run, dialect: Dialect, first: list[Any] | None) -> None:
        super().__init__(headers={**STREAM_HEADERS, **exchange.headers()})
        del self.headers["content-length"]
        self._exchange = exchange
        self._run = run
        self._dialect = dialect
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for body in self._events():
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            # does nothing after a whole answer; else the server or the socket ended the response
            self._exchange.abandon()

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for body in self._chunks():
                yield body
            self._exchange.succeed()
            last = self._dialect.closing(self._exchange)
        except (Exception, RequestStopped) as error:  # noqa: BLE001 - the status is sent: the error must become an event
            self._run.stop(
                RequestCancelled("its answer could not be sent")
            )  # does nothing when it is the run that failed
            last = self._dialect.fault(self._exchange.fail(error), self._exchange.run_id)
        yield last

    async def _chunks(self) -> AsyncIterator[bytes]:
        opening, chunks = self._dialect.opening(), self._first
        while chunks is not None:
            if chunks:
                self._exchange.first_chunk_sent()
                yield opening + b"".join(self._dialect.chunk(chunk) for chunk in chunks)
                opening = b""
            else:
                yield HEARTBEAT
            chunks = await self._run.next_chunks(self._exchange.gateway.settings.heartbeat_s)
