"""``patchwork models serve``: models of this machine behind an OpenAI-compatible URL, for chains that run without being deployed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from patchwork_adapters.protocol import HttpRequest, HttpResponse, decode_response, encode_request, work_items
from patchwork_serving.asgi import until_left
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.components.llamacpp_engine import available_cores
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ModelUnknown
from patchwork_serving.models.hosts import MAX_BATCH, ModelHosts
from patchwork_serving.models.packaged import ModelKind
from patchwork_serving.models.registry import ResolvedModel, resolve
from patchwork_serving.progress import ProgressSink
from patchwork_serving.wire import CallFrame, ErrorFrame

_KIND_OF_ROUTE: Mapping[str, ModelKind] = {
    "/v1/chat/completions": "llm",
    "/v1/completions": "llm",
    "/v1/responses": "llm",
    "/v1/embeddings": "embedder",
}
MAX_BODY_BYTES = 16 * 1024 * 1024
_CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class ServeOptions:
    models: tuple[str, ...]
    parallel: int = 16  #: sequences at once per LLM; 1: a plain single-sequence server, which batches nothing
    threads: int | None = None  #: cores to use; None: those that there are

    def engine_args(self) -> dict[ModelKind, dict[str, Any]]:
        """A single sequence gets all threads and flash attention, as llama.cpp's own server gives it: its words depend on no company."""
        cores = self.threads or available_cores()
        if self.parallel == 1:
            llm = {"slots": 1, "shards": 1, "threads": cores, "flash_attention": True}
            return {"llm": llm, "embedder": {"threads": cores}}
        return {"llm": {"slots": self.parallel}, "embedder": {"threads": 1}}


class ModelServer:
    """Several models behind one application; ``start`` loads them all."""

    def __init__(
        self, options: ServeOptions, config: Config, paths: Paths, progress: ProgressSink | None = None
    ) -> None:
        """Raises ModelUnknown for a name that does not resolve."""
        self.models: list[ResolvedModel] = [resolve(name, config.models, paths) for name in options.models]
        self._config = config
        self._paths = paths
        self._hosts = ModelHosts(
            config, paths, progress, engine_args=options.engine_args(), max_batch=1 if options.parallel == 1 else MAX_BATCH
        )  # fmt: skip
        self._ids = itertools.count()
        self._started_at = int(time.time())

    async def start(self) -> None:
        for model in self.models:
            await self._hosts.get(model.name)

    async def close(self) -> None:
        await self._hosts.close()

    def app(self) -> FastAPI:
        """Needs a running server: start it first."""
        app = FastAPI(title="Patchwork models", docs_url="/docs", redoc_url=None)
        for route in _KIND_OF_ROUTE:
            app.add_api_route(route, self._answer, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self._list, methods=["GET"])
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_exception_handler(HTTPException, _unroutable)
        return app

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def _list(self) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {"id": model.name, "object": "model", "created": self._started_at, "owned_by": "patchwork"}
                for model in self.models
            ],
        }

    async def _answer(self, request: Request) -> Response:
        body = await _limited_body(request)
        if body is None:
            return _error(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "invalid_request_error")
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _error(400, "the body is not valid JSON", "invalid_request_error")
        if not isinstance(document, dict):
            return _error(400, "the body must be a JSON object", "invalid_request_error")
        path = request.url.path
        try:
            host = await self._host_of(document.get("model"), path)
        except ModelUnknown as error:
            return _error(404, str(error), "invalid_request_error", code="model_not_found")
        stream = document.get("stream") is True and _KIND_OF_ROUTE[path] == "llm"
        frame = CallFrame(
            id=str(next(self._ids)), request_id="", leaf="", method=f"POST {path}", stream=stream,
            payload=encode_request(HttpRequest("POST", path, {"content-type": "application/json"}, body)),
            size=work_items(path, document),
        )  # fmt: skip
        return await (_streamed(host, frame) if stream else _whole(host, frame, request))

    async def _host_of(self, name: object, path: str) -> ComponentHost:
        kind = _KIND_OF_ROUTE[path]
        served = [model for model in self.models if model.kind == kind]
        try:
            wanted = resolve(str(name), self._config.models, self._paths).name
        except ModelUnknown:
            wanted = ""
        for model in served:
            if model.name in (wanted, name):
                return await self._hosts.get(model.name)
        names = ", ".join(model.name for model in served) or "none"
        raise ModelUnknown(f"no model of that name is served at {path}; there are {names}")


async def _whole(host: ComponentHost, frame: CallFrame, request: Request) -> Response:
    """The reply; a client that closes its connection takes its call out of the engine."""
    work = asyncio.create_task(host.call(frame))
    watch = asyncio.create_task(until_left(request.receive))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
    if work.cancelled():
        return Response(status_code=_CLIENT_LEFT)
    reply = work.result()
    if reply.error is not None:
        return _engine_error(reply.error)
    return _http(decode_response(b"".join(reply.payloads)))


async def _streamed(host: ComponentHost, frame: CallFrame) -> Response:
    """The head decides: an error is answered as a plain response, before anything was sent."""
    payloads = _payloads(host, frame)
    first = await anext(payloads, None)
    if first is None or isinstance(first, ErrorFrame):
        await payloads.aclose()  # type: ignore[attr-defined]
        return _engine_error(
            first or ErrorFrame("EngineDied", "the engine ended the stream before it began", 503, True)
        )
    head = decode_response(first)

    async def body() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(payloads):  # type: ignore[type-var]
            async for payload in payloads:
                if isinstance(payload, ErrorFrame):
                    yield b"data: " + orjson.dumps(_error_document(payload.message, "server_error")) + b"\n\n"
                    return
                yield payload

    if head.status != 200:
        return Response(b"".join([chunk async for chunk in body()]), head.status, dict(head.headers))
    return StreamingResponse(body(), head.status, dict(head.headers))


async def _payloads(host: ComponentHost, frame: CallFrame) -> AsyncIterator[bytes | ErrorFrame]:
    async with contextlib.aclosing(host.stream(frame)) as replies:  # type: ignore[type-var]
        async for reply in replies:
            for payload in reply.payloads:
                yield payload
            if reply.error is not None:
                yield reply.error


async def _limited_body(request: Request) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _http(response: HttpResponse) -> Response:
    return Response(response.body, response.status, dict(response.headers))


def _engine_error(error: ErrorFrame) -> JSONResponse:
    return _error(error.status, error.message, "server_error" if error.status >= 500 else "invalid_request_error")


def _error(status: int, message: str, kind: str, code: str | None = None) -> JSONResponse:
    return JSONResponse(_error_document(message, kind, code), status)


def _error_document(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _unroutable(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known: Sequence[str] = (*(f"POST {route}" for route in _KIND_OF_ROUTE), "GET /v1/models", "GET /health")
    return _error(status, f"no such route; there are {', '.join(known)}", "invalid_request_error")
