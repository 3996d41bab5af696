"""How one request is made in each protocol, and what its answer says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from patchwork_serving.bench.observe import Answer
from patchwork_serving.bench.sse import AnyBytes, EventWatch, LangServeEvents, OpenAIEvents, error_type, stages_of

ApiName = Literal["langserve", "openai", "json"]


@dataclass(frozen=True, slots=True)
class Api:
    """Where and how to ask. ``body`` makes of an input what is posted."""

    url: str
    body: Callable[[Any], Any]
    events: Callable[[], EventWatch] | None  #: None: the answer comes whole
    headers: Mapping[str, str]

    def encoded(self, value: Any) -> bytes:
        return json.dumps(self.body(value)).encode()

    async def ask(self, client: httpx.AsyncClient, content: bytes, timeout_s: float) -> Answer:
        """One request; never raises but for cancellation. ``timeout_s`` holds for all of it."""
        try:
            async with client.stream("POST", self.url, content=content, headers=self.headers, timeout=timeout_s) as got:
                if self.events is None or got.status_code >= 400:
                    return _whole(got, await got.aread())
                return await _streamed(got, self.events())
        except httpx.TimeoutException:
            return Answer(None, "timeout", gave_up=True)
        except httpx.HTTPError as error:
            return Answer(None, type(error).__name__)


def api(name: ApiName, url: str, *, stream: bool, headers: Mapping[str, str], model: str | None = None) -> Api:
    """For the application, or with ``json`` the very route, at ``url``."""
    sent = {"content-type": "application/json", **headers}
    match name:
        case "langserve":
            route = "stream" if stream else "invoke"
            return Api(f"{url}/{route}", lambda value: {"input": value}, LangServeEvents if stream else None, sent)
        case "openai":
            base = url if url.endswith("/v1") else f"{url}/v1"
            fixed = {"model": model or "default", "stream": stream}
            return Api(
                f"{base}/chat/completions",
                lambda value: {**fixed, **_messages(value)},
                OpenAIEvents if stream else None,
                sent,
            )
        case "json":
            return Api(url, lambda value: value, AnyBytes if stream else None, sent)


def _messages(value: Any) -> dict[str, Any]:
    """A body's fields are taken as they are, a list is the messages, anything else is the question."""
    if isinstance(value, dict) and "messages" in value:
        return value
    if isinstance(value, list):
        return {"messages": value}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {"messages": [{"role": "user", "content": text}]}


def _whole(response: httpx.Response, body: bytes) -> Answer:
    failed = response.status_code >= 400
    return Answer(
        response.status_code,
        error=(error_type(body) or f"HTTP {response.status_code}") if failed else None,
        retry_after="retry-after" in response.headers,
        stages=stages_of(response.headers.get("server-timing")),
    )


async def _streamed(response: httpx.Response, watch: EventWatch) -> Answer:
    first_at: float | None = None
    async for block in response.aiter_bytes():
        watch.feed(block)
        if first_at is None and watch.first:
            first_at = time.monotonic()
    if not watch.ended and watch.error is None:
        return Answer(response.status_code, "stream ended early", first_at=first_at)
    return Answer(watch.status, watch.error, first_at=first_at, stages=watch.stages)
