"""The *protocol* way: HTTP requests of the OpenAI protocol as payloads of leaf calls.

What crosses is what a server of the protocol would read: method, path, body, and the few headers that say how to read the body. API keys,
cookies and whatever else a client sends never get past :func:`encode_request`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import msgpack

from patchwork_adapters.errors import CodecError

#: Last parts of the paths that are cut; the canonical path is ``/v1`` + one of these.
OPERATIONS = ("/chat/completions", "/completions", "/embeddings", "/responses")
_KEPT_HEADERS = frozenset({"accept", "content-type", "content-encoding"})
_KEPT_LENGTHS = frozenset(map(len, _KEPT_HEADERS))
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_read_json = json.JSONDecoder().raw_decode


class HttpRequest(NamedTuple):
    method: str
    path: str  #: canonical, such as ``/v1/chat/completions``
    headers: Mapping[str, str] = _NO_HEADERS  #: lower-case names
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is something else."""
        return json_object(self.body)


class HttpResponse(NamedTuple):
    status: int
    headers: Mapping[str, str] = _NO_HEADERS  #: lower-case names
    body: bytes = b""


class Router(Protocol):
    """Decides which component answers a request of an OpenAI client."""

    def __call__(self, base_url: str, path: str, model: str | None) -> str | None:
        """A component id, or None to let the client send the request where it would have gone."""
        ...


def encode_request(request: HttpRequest) -> bytes:
    headers = {name.lower(): value for name, value in request.headers.items() if name.lower() in _KEPT_HEADERS}
    packed: bytes = msgpack.packb([request.method, request.path, headers, request.body])
    return packed


def encode_post(path: str, raw_headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """As :func:`encode_request`, of a client's request with the headers as it has them: those that stay need not be read."""
    headers = {}
    for key, value in raw_headers:
        if len(key) in _KEPT_LENGTHS and (name := key.decode("ascii", "replace").lower()) in _KEPT_HEADERS:
            headers[name] = value.decode("ascii", "replace")
    packed: bytes = msgpack.packb(["POST", path, headers, body])
    return packed


def decode_request(data: bytes) -> HttpRequest:
    return HttpRequest(*_unpack(data, 4, "request"))


def encode_response(response: HttpResponse) -> bytes:
    packed: bytes = msgpack.packb([response.status, dict(response.headers), response.body])
    return packed


def decode_response(data: bytes) -> HttpResponse:
    return HttpResponse(*_unpack(data, 3, "response"))


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; empty when it is something else."""
    document = _document(body)
    return document if isinstance(document, dict) else {}


def _document(body: bytes) -> Any:
    """The body as JSON, None when it is none: in half the time where it is as clients write it, UTF-8 with nothing around it."""
    try:
        text = body.decode()
        document, end = _read_json(text)
        if end == len(text):
            return document
    except ValueError:
        pass
    try:
        return json.loads(body)
    except ValueError:
        return None


def split_url(url_path: str) -> tuple[str, str] | None:
    """(path of the base URL, canonical path) of a request to the protocol; None for any other request."""
    for operation in OPERATIONS:
        if url_path.endswith(operation):
            return url_path.removesuffix(operation), f"/v1{operation}"
    return None


def work_items(path: str, body: Mapping[str, Any]) -> int:
    """How many texts are inside: an embeddings request carries a list of texts or of token lists, or a single one."""
    items = body.get("input") if path == "/v1/embeddings" else body.get("prompt")
    if not isinstance(items, list) or not items or isinstance(items[0], int):
        return 1
    return len(items)


def _unpack(data: bytes, parts: int, what: str) -> list[Any]:
    try:
        values = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"these bytes are not an encoded HTTP {what}") from error
    if not isinstance(values, list) or len(values) != parts:
        raise CodecError(f"these bytes are not an encoded HTTP {what}")
    return values
