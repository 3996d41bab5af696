"""One HTTP request on its way to somebody else's server, and its answer on the way back: the place is held until the answer is read.

Works on ``httpx`` and ``httpx2`` alike; the module of the client at hand is an argument.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from patchwork_adapters.errors import ComponentFailed
from patchwork_adapters.external import ExternalCalls, Passage
from patchwork_adapters.protocol import HttpResponse, encode_response, split_url
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.waiting import in_thread

_END = object()


def pass_on(httpx: Any, external: ExternalCalls, call: LeafCall, request: Any, send: Callable[[Any], Any]) -> Any:
    """The server's response, whose stream gives the place back. Raises what ``send`` raises, or DeadlinePassed."""
    passage = external.enter(call)
    try:
        outgoing = _outgoing(httpx, request, external.base_url(call.component), passage)
        response = in_thread(lambda: send(outgoing))
    except BaseException as error:
        _fail(httpx, passage, error)
        raise
    response.stream = _sync_stream(httpx)(response, passage)
    return response


async def apass_on(
    httpx: Any, external: ExternalCalls, call: LeafCall, request: Any, send: Callable[[Any], Awaitable[Any]]
) -> Any:
    """As :func:`pass_on`."""
    passage = await external.aenter(call)
    try:
        outgoing = _outgoing(httpx, request, external.base_url(call.component), passage)
        async with asyncio.timeout(passage.remaining_s()):
            response = await send(outgoing)
    except BaseException as error:
        _fail(httpx, passage, error)
        raise
    response.stream = _async_stream(httpx)(response, passage)
    return response


def _outgoing(httpx: Any, request: Any, base_url: str | None, passage: Passage) -> Any:
    """The request with timeouts that end at the deadline, to another server when there is one for the component."""
    late = passage.late()  # the place may have come at the last moment
    if late is not None:
        raise late
    remaining_s = passage.remaining_s()
    extensions = dict(request.extensions)
    if remaining_s is not None:
        given = extensions.get("timeout", {})
        extensions["timeout"] = {
            phase: min(remaining_s, given[phase]) if given.get(phase) is not None else remaining_s
            for phase in ("connect", "read", "write", "pool")
        }
    url, headers = request.url, request.headers
    if base_url is not None:
        parts = split_url(request.url.path)
        assert parts is not None
        url = httpx.URL(base_url.rstrip("/") + parts[1].removeprefix("/v1"))
        headers = [(name, value) for name, value in request.headers.multi_items() if name != "host"]
    return httpx.Request(request.method, url, headers=headers, content=request.content, extensions=extensions)


def _fail(httpx: Any, passage: Passage, error: BaseException) -> None:
    """Close the passage of a request that failed; raises DeadlinePassed when a timeout was the deadline's."""
    late = passage.late() if isinstance(error, TimeoutError | httpx.TimeoutException) else None
    passage.close(late or error)
    if late is not None:
        raise late from error


class _Answer:
    """Tells the observer what comes back, and gives the place back once."""

    def __init__(self, response: Any, passage: Passage) -> None:
        self.passage = passage
        self._response = response
        self._stream = passage.call.stream
        self._encoded = "content-encoding" in response.headers
        self._body: list[bytes] = []
        self._whole = False
        if self._stream:
            self._tell(b"")

    def piece(self, data: Any) -> Any:
        """Raises DeadlinePassed when it came too late."""
        late = self.passage.late()
        if late is not None:
            raise late
        if not self._stream:
            self._body.append(data)
        elif not self._encoded:  # the pieces of a compressed stream cannot be read one by one
            self.passage.reply(data)
        # readers of event streams stop at this mark, and never see the end of the body
        self._whole = self._whole or (self._stream and b"[DONE]" in data)
        return data

    def ended(self) -> None:
        self._whole = True
        if not self._stream:
            self._tell(self._decoded())

    def close(self, error: BaseException | None = None) -> None:
        """Idempotent. An answer that was not read to its end was given up by its reader."""
        status = self._response.status_code
        if error is None and status >= 400:
            error = ComponentFailed(f"{self.passage.call.component}: the server answered {status}")
        elif error is None and not self._whole:
            error = GeneratorExit()
        self.passage.close(error)

    def _tell(self, body: bytes) -> None:
        headers = {"content-type": self._response.headers.get("content-type", "")}
        self.passage.reply(encode_response(HttpResponse(self._response.status_code, headers, body)))

    def _decoded(self) -> bytes:
        raw = b"".join(self._body)
        if not self._encoded:
            return raw
        try:
            decoded: bytes = type(self._response)(200, headers=self._response.headers, content=raw).content
        except Exception:  # noqa: BLE001  the client will raise it; here it costs the observer some attributes
            return b""
        return decoded


@functools.cache
def _sync_stream(httpx: Any) -> type[Any]:
    class PassedStream(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, response: Any, passage: Passage) -> None:
            self._inner = response.stream
            self._answer = _Answer(response, passage)

        def __iter__(self) -> Iterator[bytes]:
            pieces = iter(self._inner)
            try:
                while (piece := in_thread(lambda: next(pieces, _END))) is not _END:
                    yield self._answer.piece(piece)
                self._answer.ended()
            except GeneratorExit:
                raise
            except BaseException as error:
                _fail(httpx, self._answer.passage, error)
                raise

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._answer.close()

    return PassedStream


@functools.cache
def _async_stream(httpx: Any) -> type[Any]:
    class PassedStream(httpx.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, response: Any, passage: Passage) -> None:
            self._inner = response.stream
            self._answer = _Answer(response, passage)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            pieces = aiter(self._inner)
            try:
                while True:
                    async with asyncio.timeout(self._answer.passage.remaining_s()):
                        piece = await anext(pieces, _END)
                    if piece is _END:
                        break
                    yield self._answer.piece(piece)
                self._answer.ended()
            except GeneratorExit:
                raise
            except BaseException as error:
                _fail(httpx, self._answer.passage, error)
                raise

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._answer.close()

    return PassedStream
