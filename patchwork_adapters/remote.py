"""A deployed chain over HTTP, as a Runnable."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, cast
from uuid import UUID

import httpx
from langchain_core.documents import Document
from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, TypeAdapter, ValidationError

from patchwork_adapters.connection import parse_slo

#: The parts of a config that mean something to a server; callbacks stay here.
_SENT = ("tags", "metadata", "configurable", "run_name", "run_id", "recursion_limit", "max_concurrency")
#: Options of ``astream_events`` that the server takes.
_FILTERS = frozenset(f"{how}_{what}" for how in ("include", "exclude") for what in ("names", "types", "tags"))
_MESSAGE: TypeAdapter[Any] = TypeAdapter(AnyMessage)


class RemoteError(Exception):
    """What the server answered instead of a result: ``status`` and, where it sent one, ``type``, ``retryable`` and ``run_id``."""

    def __init__(
        self, message: str, status: int, type: str = "", retryable: bool = False, run_id: str | None = None
    ) -> None:
        super().__init__(message, status, type, retryable, run_id)
        self.message = message
        self.status = status
        self.type = type
        self.retryable = retryable
        self.run_id = run_id

    def __str__(self) -> str:
        return f"{self.status} {self.type}: {self.message}".replace("  ", " ")


class RemoteRunnable(Runnable[Any, Any]):
    """``RemoteRunnable(url)`` runs the chain deployed at ``url``. Raises RemoteError, and httpx's errors when nothing answers.

    ``slo`` is sent as the deadline of each request. Documents and messages come back as objects of LangChain's own classes.
    """

    def __init__(
        self,
        url: str,
        *,
        slo: str | float | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        slo_s = parse_slo(slo)
        sent = dict(headers or {})
        if api_key:
            sent["authorization"] = f"Bearer {api_key}"
        if slo_s is not None:
            sent["x-request-timeout-seconds"] = str(slo_s)
        options: dict[str, Any] = {"base_url": self.url, "headers": sent, "timeout": timeout}
        self._client = httpx.Client(**options)
        # an async client belongs to one event loop, and a Runnable may be used from several: one per call
        self._options = options

    def close(self) -> None:
        """Close the connections that are kept open; not needed, and the Runnable stays usable for asynchronous calls."""
        self._client.close()

    def _async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return _output(self._client.post("/invoke", json=_body("input", input, config, kwargs)))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        async with self._async_client() as client:
            return _output(await client.post("/invoke", json=_body("input", input, config, kwargs)))

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """One request with one deadline for all; with ``return_exceptions`` one request for each, because they fail one by one."""
        if return_exceptions:
            return super().batch(inputs, config, return_exceptions=True, **kwargs)
        if not inputs:
            return []
        return cast(list[Any], _output(self._client.post("/batch", json=_body("inputs", inputs, config, kwargs))))

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As :meth:`batch`."""
        if return_exceptions:
            return await super().abatch(inputs, config, return_exceptions=True, **kwargs)
        if not inputs:
            return []
        async with self._async_client() as client:
            return cast(list[Any], _output(await client.post("/batch", json=_body("inputs", inputs, config, kwargs))))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        with self._client.stream("POST", "/stream", json=_body("input", input, config, kwargs)) as response:
            if response.status_code != 200:
                response.read()
                raise _error(response)
            events = _Events()
            for line in response.iter_lines():
                yield from events.feed(line)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self._streamed("/stream", _body("input", input, config, kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def astream_events(  # type: ignore[override]
        self, input: Any, config: RunnableConfig | None = None, *, version: str = "v2", **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The events of the chain on the server."""
        filters = {name: kwargs.pop(name) for name in _FILTERS & kwargs.keys()}
        body = {**_body("input", input, config, kwargs), **filters, "version": version}
        async with contextlib.aclosing(self._streamed("/stream_events", body)) as events:
            async for event in events:
                yield event

    async def _streamed(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        async with self._async_client() as client, client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise _error(response)
            events = _Events()
            async for line in response.aiter_lines():
                for item in events.feed(line):
                    yield item


class _Events:
    """Server-sent events, line by line; ``data`` events are chunks, ``error`` raises."""

    def __init__(self) -> None:
        self._event = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Iterator[Any]:
        if line.startswith("event:"):
            self._event = line[6:].strip()
        elif line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            event, data = self._event, "\n".join(self._data)
            self._event, self._data = "", []
            if event == "error":
                raise _event_error(data)
            if event == "data":
                yield decoded(json.loads(data))


def encoded(value: Any) -> Any:
    """As JSON: messages, Documents and pydantic models as their fields, the way LangServe's clients send them."""
    if isinstance(value, BaseModel):
        return encoded(value.model_dump())
    if hasattr(value, "to_messages"):  # a prompt value
        return encoded(value.to_messages())
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [encoded(item) for item in value]
    return str(value) if isinstance(value, UUID) else value


def decoded(value: Any) -> Any:
    """The inverse for what LangChain knows: messages and Documents. Builds data only; no class is looked up by a name from the wire."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    try:
        if kind == "Document" and "page_content" in value:
            return Document(
                page_content=value["page_content"], metadata=value.get("metadata") or {}, id=value.get("id")
            )
        if isinstance(kind, str) and "content" in value:
            return _MESSAGE.validate_python(value)
    except ValidationError:
        pass  # a mapping of the chain's own that looks like a message
    return {key: decoded(item) for key, item in value.items()}


def _body(key: str, value: Any, config: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encoded(value), "config": _config(config), "kwargs": encoded(dict(kwargs))}


def _config(config: Any) -> Any:
    if isinstance(config, list):
        return [_config(item) for item in config]
    full = ensure_config(config)
    return {key: encoded(full[key]) for key in _SENT if key in full and full[key] is not None}  # type: ignore[literal-required]


def _output(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise _error(response)
    return decoded(response.json()["output"])


def _error(response: httpx.Response) -> RemoteError:
    try:
        error = response.json()["error"]
        return RemoteError(
            error["message"], response.status_code, error["type"], error.get("retryable", False), error.get("run_id")
        )
    except (ValueError, KeyError, TypeError):
        return RemoteError(response.reason_phrase or "no reason given", response.status_code)


def _event_error(data: str) -> RemoteError:
    try:
        document = json.loads(data)
        error = document.get("error", document)
        return RemoteError(
            error.get("message", "the stream failed"), int(document.get("status_code", 500)), error.get("type", ""),
            error.get("retryable", False), error.get("run_id"),
        )  # fmt: skip
    except (ValueError, AttributeError):
        return RemoteError("the stream failed", 500)
