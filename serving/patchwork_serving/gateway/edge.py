"""The outermost layer: request id, path prefix, API key, and the last word on errors. Plain ASGI, because the usual middleware base
class breaks streaming and hides disconnects.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchwork_serving.gateway.faults import Fault, Unauthorized, fault_of, log_unexpected
from patchwork_serving.gateway.metrics import GatewayMetrics
from patchwork_serving.gateway.responses import fault_response
from patchwork_serving.gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

#: keys of the ASGI scope that hold when the request arrived (``time.monotonic``) and its id
ARRIVED, REQUEST_ID = "patchwork.arrived", "patchwork.request_id"
REQUEST_ID_HEADER = "x-request-id"
EMULATED_HEADER = "x-patchwork-emulated"  #: components that only took the time that a profile says

_OPEN = frozenset({"/livez", "/readyz"})  #: probes carry no key
_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class Edge:
    """Wraps the routes of one app."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._app = app
        self._prefix = f"/{settings.name}"
        self._api_key = settings.api_key
        self._adds_request_id = not settings.server_echoes_request_id
        self._metrics = metrics
        self._emulated = ",".join(settings.emulated)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get(REQUEST_ID_HEADER))
        scope = {**self._below_prefix(scope), ARRIVED: time.monotonic(), REQUEST_ID: request_id}
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._adds_request_id:
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                if self._emulated:
                    MutableHeaders(scope=message)[EMULATED_HEADER] = self._emulated
            await send(message)

        try:
            if route_path(scope) not in _OPEN:
                self._check_key(headers)
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - nothing may leave as a traceback
            fault = fault_of(error) if isinstance(error, Unauthorized) else _own_fault(error)
            if status is None:
                await fault_response(fault, None)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.observe_response(route, status or 499)

    def _below_prefix(self, scope: Scope) -> Scope:
        """``/{name}/x`` is served as ``/x``: the prefix moves into ``root_path``, where the router strips it."""
        if not route_path(scope).startswith(self._prefix + "/"):
            return scope
        return {**scope, "root_path": scope.get("root_path", "").rstrip("/") + self._prefix}

    def _check_key(self, headers: Headers) -> None:
        if self._api_key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        expected = self._api_key.encode()
        if not any(hmac.compare_digest(key.encode(), expected) for key in offered):
            raise Unauthorized("give the API key as `Authorization: Bearer KEY` or `x-api-key: KEY`")


def route_path(scope: Scope) -> str:
    """The path below ``root_path``; servers differ in whether ``path`` includes it."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root + "/"):
        return path[len(root) :]
    return path


def _request_id(given: str | None) -> str:
    """The client's own id where it is safe in headers and logs, or a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else str(uuid4())


def _own_fault(error: Exception) -> Fault:
    """A fault of the gateway itself."""
    log_unexpected(fault := Fault(500, type(error).__name__, "the gateway failed", stage="gateway"), error, None)
    return fault
