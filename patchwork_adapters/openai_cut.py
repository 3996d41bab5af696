"""Cuts every ``openai`` and ``ollama`` client of the process at its HTTP transport (the *protocol* way, design D4).

Requests of Ollama's API are told in the OpenAI protocol on their way to a component, and answers back (``ollama``).

The client, its retries, its parsing and the framework class around it stay the user's. Each client gets a shallow copy of its HTTP
client, in which only the transport differs: HTTP clients are shared between objects (langchain-openai caches them by URL), and the
user's own must stay as it was. A request that the router does not want goes through the original transport; when it is a known call to
somebody else's server, with a limit and a deadline (``external``).

openai speaks through ``httpx`` or ``httpx2``, depending on version and extras; the classes of the client at hand decide.
"""

from __future__ import annotations

import functools
import json
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from patchwork_adapters import ollama
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.context import REQUEST
from patchwork_adapters.errors import ComponentError, ComponentUnavailable
from patchwork_adapters.external import ExternalCalls
from patchwork_adapters.external_http import apass_on, pass_on
from patchwork_adapters.import_hooks import Undo, when_imported
from patchwork_adapters.protocol import (
    Router,
    decode_response,
    encode_post,
    json_object,
    split_url,
    work_items,
)
from patchwork_adapters.sites import site_of
from patchwork_adapters.transport import LeafCall

_OK = 200
_MARK = "_patchwork_transport"
#: Modules whose classes build clients, and those classes.
_CLIENTS = {"openai._base_client": ("SyncAPIClient", "AsyncAPIClient"), "ollama._client": ("Client", "AsyncClient")}


class OpenAICut:
    """Owns what was changed; ``install`` and ``undo`` are a pair and safe to repeat."""

    def __init__(
        self,
        bridge: Bridge,
        router: Router,
        is_active: Callable[[], bool] = lambda: True,
        external: ExternalCalls | None = None,
    ) -> None:
        self.bridge = bridge
        self.router = router
        self.is_active = is_active
        self.external = external
        #: component -> the leaf to name when a client does not know whose it is: some classes create clients at their first call
        self.usual_leaf: dict[str, str] = {}
        self._undo_hooks: list[Undo] = []
        self._attached: weakref.WeakSet[Any] = weakref.WeakSet()  #: also copies that share a cut HTTP client

    def install(self) -> None:
        """Every client constructed from now on is cut; their packages need not be imported yet."""
        if not self._undo_hooks:
            self._undo_hooks = [when_imported(module, self._hook) for module in _CLIENTS]

    def attach(self, client: Any, leaf: str = "", component: str = "") -> bool:
        """Cut a client that exists already, or name the leaf of one that is cut: all of its calls, or those of one component.

        False: not such a client.
        """
        http_client = getattr(client, "_client", None)
        if http_client is None or _httpx_of(http_client) is None:
            return False
        cut = http_client.__dict__.get(_MARK)
        if cut is None or cut.owner is not self:
            client._client = self._cut(http_client, client)
            cut = client._client.__dict__[_MARK]
        self._attached.add(client)
        if leaf:
            cut.leaves[component] = leaf
        return True

    def undo(self) -> None:
        """Give all living clients their own HTTP clients back."""
        while self._undo_hooks:
            self._undo_hooks.pop()()
        attached, self._attached = list(self._attached), weakref.WeakSet()
        for client in attached:
            _take_out(self, client)

    def _hook(self, module: ModuleType) -> Undo:
        _CONSTRUCTORS.add(self, module)
        return lambda: _CONSTRUCTORS.remove(self)

    def _cut(self, http_client: Any, client: Any) -> Any:
        httpx = _httpx_of(http_client)
        assert httpx is not None
        is_async = isinstance(http_client, httpx.AsyncClient)
        transport = (_async_class if is_async else _sync_class)(httpx)(
            self, http_client, str(getattr(client, "base_url", http_client.base_url))
        )
        copy: Any = object.__new__(type(http_client))
        copy.__dict__.update(http_client.__dict__)
        copy._transport = transport
        copy._mounts = {}  # the original's mounts are asked when a request passes through
        copy.__dict__[_MARK] = transport
        return copy


class _Constructors:
    """The constructors of clients, replaced once for all cuts: they end in any order, and none may bring another back."""

    def __init__(self) -> None:
        self._cuts: list[OpenAICut] = []
        self._originals: dict[Any, Callable[..., None]] = {}

    def add(self, cut: OpenAICut, module: ModuleType) -> None:
        if cut not in self._cuts:
            self._cuts.append(cut)
        for cls in (getattr(module, name) for name in _CLIENTS[module.__name__]):
            if cls not in self._originals:
                self._originals[cls] = cls.__init__
                cls.__init__ = self._attaching(cls.__init__)

    def remove(self, cut: OpenAICut) -> None:
        if cut in self._cuts:
            self._cuts.remove(cut)
        while not self._cuts and self._originals:
            cls, original = self._originals.popitem()
            cls.__init__ = original

    def _attaching(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def construct(client: Any, *args: Any, **kwargs: Any) -> None:
            original(client, *args, **kwargs)
            for cut in self._cuts:
                cut.attach(client)

        return construct


_CONSTRUCTORS = _Constructors()


def _take_out(owner: OpenAICut, client: Any) -> None:
    """Give ``client`` its HTTP client back, or, when another cut was laid over this one since, take this one out from below it."""
    above = client._client.__dict__.get(_MARK)
    if above is not None and above.owner is owner:
        client._client = above.original
        return
    while above is not None and (below := above.original.__dict__.get(_MARK)) is not None:
        if below.owner is owner:
            above.original = below.original
            return
        above = below


class _Cut:
    """What the sync and the async transport share."""

    def __init__(self, owner: OpenAICut, original: Any, base_url: str) -> None:
        self.owner = owner
        self.original = original  #: the user's HTTP client
        self.base_url = base_url.rstrip("/")
        self.leaves: dict[str, str] = {}  #: component ("" for any) -> the leaf that this client is

    def prepare(self, request: Any, operation: str | None, path: str, body: bytes) -> _Asked | None:
        """None when the request goes where it would have gone, unseen. Raises Untold."""
        if not self.owner.is_active():
            return None
        document = json_object(body)
        model = document.get("model")
        model = model if isinstance(model, str) else None
        component = self.owner.router(self.base_url, path, model)
        if component is None:
            router = None if self.owner.external is None else self.owner.external.router
            external = None if router is None else router(self.base_url, path, model)
            if external is None:
                return None
            return _Asked(self._leaf_call(external, path, request, body, document), is_ours=False)
        if operation is None:
            return _Asked(self._leaf_call(component, path, request, body, document))
        path, document = ollama.request(operation, document)
        call = self._leaf_call(component, path, request, json.dumps(document).encode(), document)
        return _Asked(call, ollama_operation=operation, model=model or "")

    def _leaf_call(self, component: str, path: str, request: Any, body: bytes, document: dict[str, Any]) -> LeafCall:
        leaf = self.leaves.get(component) or self.leaves.get("") or self.owner.usual_leaf.get(component, "")
        payload = encode_post(path, request.headers.raw, body)
        site, size = site_of(leaf or component), work_items(path, document)
        stream = document.get("stream") is True
        return LeafCall(component, leaf, f"POST {path}", payload, stream, site, size, REQUEST.get())

    def own_transport(self, request: Any) -> Any:
        return self.original._transport_for_url(request.url)


class _Asked(NamedTuple):
    """A request as the call that it is."""

    call: LeafCall
    is_ours: bool = True  #: a component answers it, not somebody else's server
    ollama_operation: str | None = None  #: of Ollama's API, when the client speaks it
    model: str = ""

    def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The response as the client's protocol has it."""
        if self.ollama_operation is None:
            return status, dict(headers), body
        told = ollama.answer(self.ollama_operation, self.model, status, json_object(body))
        return status, {"content-type": "application/json"}, json.dumps(told).encode()

    def stream(self) -> ollama.Stream | None:
        return None if self.ollama_operation is None else ollama.Stream(self.ollama_operation, self.model)


def _operation(request: Any) -> tuple[str | None, str] | None:
    """What is asked for: (operation of Ollama's API or None, path of the OpenAI protocol); None for anything else."""
    return _operation_of(request.url.path) if request.method == "POST" else None


@functools.lru_cache(maxsize=256)
def _operation_of(url_path: str) -> tuple[str | None, str] | None:
    operation = ollama.operation_of(url_path)
    if operation is not None:
        return operation, ollama.OPERATIONS[operation]
    parts = split_url(url_path)
    return None if parts is None else (None, parts[1])


def _untold(httpx: Any, error: ollama.Untold) -> Any:
    return httpx.Response(400, json={"error": f"the model's component cannot be asked for {error}"})


def _read_timeout(request: Any) -> float | None:
    timeout: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout


def _first(frame: bytes | None, call: LeafCall) -> bytes:
    if frame is None:
        raise ComponentUnavailable(f"component {call.component} ended its stream before it began")
    return frame


def _refusal(httpx: Any, error: ComponentError) -> Any:
    """Infrastructure errors look like those of a server, so that the client's own retries handle them."""
    status = getattr(error, "status", 502)
    body = {"error": {"message": str(error), "type": type(error).__name__, "param": None, "code": None}}
    headers = {"content-type": "application/json", "x-should-retry": "true" if error.retryable else "false"}
    return httpx.Response(status, headers=headers, content=json.dumps(body).encode())


@functools.cache
def _sync_class(httpx: Any) -> type[Any]:
    class FrameStream(httpx.SyncByteStream):  # type: ignore[misc]
        def __init__(self, frames: Iterator[bytes], told: Callable[[bytes], bytes] = bytes) -> None:
            self._frames = frames
            self._told = told

        def __iter__(self) -> Iterator[bytes]:
            yield from map(self._told, self._frames)

        def close(self) -> None:
            self._frames.close()  # type: ignore[attr-defined]

    class PatchworkTransport(_Cut, httpx.BaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            try:
                wanted = _operation(request)
                asked = self.prepare(request, *wanted, request.read()) if wanted is not None else None
            except ollama.Untold as error:
                return _untold(httpx, error)
            if asked is None:
                return self.own_transport(request).handle_request(request)
            if not asked.is_ours:
                assert self.owner.external is not None
                return pass_on(
                    httpx, self.owner.external, asked.call, request, lambda r: self.own_transport(r).handle_request(r)
                )
            try:
                return self._streamed(asked, request) if asked.call.stream else self._whole(asked, request)
            except ComponentError as error:
                return _refusal(httpx, error)
            except TimeoutError as error:
                raise httpx.ReadTimeout(str(error), request=request) from error

        def _whole(self, asked: _Asked, request: Any) -> Any:
            reply = decode_response(self.owner.bridge.call(asked.call, _read_timeout(request)))
            status, headers, body = asked.whole(reply.status, reply.headers, reply.body)
            return httpx.Response(status, headers=headers, content=body)

        def _streamed(self, asked: _Asked, request: Any) -> Any:
            frames = self.owner.bridge.stream(asked.call, _read_timeout(request))
            head = decode_response(_first(next(frames, None), asked.call))
            translated = asked.stream()
            if translated is None:
                return httpx.Response(head.status, headers=dict(head.headers), stream=FrameStream(frames))
            if head.status != _OK:
                status, headers, body = asked.whole(head.status, head.headers, head.body + b"".join(frames))
                return httpx.Response(status, headers=headers, content=body)
            return httpx.Response(head.status, headers=ollama.NDJSON, stream=FrameStream(frames, translated.feed))

    return PatchworkTransport


@functools.cache
def _async_class(httpx: Any) -> type[Any]:
    class FrameStream(httpx.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, frames: AsyncIterator[bytes], told: Callable[[bytes], bytes] = bytes) -> None:
            self._frames = frames
            self._told = told

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for frame in self._frames:
                yield self._told(frame)

        async def aclose(self) -> None:
            await self._frames.aclose()  # type: ignore[attr-defined]

    class AsyncPatchworkTransport(_Cut, httpx.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            try:
                wanted = _operation(request)
                asked = self.prepare(request, *wanted, await request.aread()) if wanted is not None else None
            except ollama.Untold as error:
                return _untold(httpx, error)
            if asked is None:
                return await self.own_transport(request).handle_async_request(request)
            if not asked.is_ours:
                assert self.owner.external is not None
                send = lambda r: self.own_transport(r).handle_async_request(r)  # noqa: E731
                return await apass_on(httpx, self.owner.external, asked.call, request, send)
            try:
                return await (self._streamed(asked, request) if asked.call.stream else self._whole(asked, request))
            except ComponentError as error:
                return _refusal(httpx, error)
            except TimeoutError as error:
                raise httpx.ReadTimeout(str(error), request=request) from error

        async def _whole(self, asked: _Asked, request: Any) -> Any:
            reply = decode_response(await self.owner.bridge.acall(asked.call, _read_timeout(request)))
            status, headers, body = asked.whole(reply.status, reply.headers, reply.body)
            return httpx.Response(status, headers=headers, content=body)

        async def _streamed(self, asked: _Asked, request: Any) -> Any:
            frames = self.owner.bridge.astream(asked.call, _read_timeout(request))
            head = decode_response(_first(await anext(frames, None), asked.call))
            translated = asked.stream()
            if translated is None:
                return httpx.Response(head.status, headers=dict(head.headers), stream=FrameStream(frames))
            if head.status != _OK:
                rest = [frame async for frame in frames]
                status, headers, body = asked.whole(head.status, head.headers, head.body + b"".join(rest))
                return httpx.Response(status, headers=headers, content=body)
            return httpx.Response(head.status, headers=ollama.NDJSON, stream=FrameStream(frames, translated.feed))

    return AsyncPatchworkTransport


def _httpx_of(http_client: Any) -> Any:
    """``httpx`` or ``httpx2``: the module that the client's class comes from; None for anything else."""
    for base in type(http_client).__mro__:
        package = base.__module__.split(".")[0]
        if package in ("httpx", "httpx2") and base.__name__ in ("Client", "AsyncClient"):
            return sys.modules[package]
    return None
