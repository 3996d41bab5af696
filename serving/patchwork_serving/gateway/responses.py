"""Responses: JSON, faults, and streams of server-sent events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from patchwork_serving.gateway.faults import Fault
from patchwork_serving.gateway.serialize import dumps


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``value`` as JSON."""
    return Response(dumps(value), status, dict(headers or {}), media_type="application/json")


def fault_response(fault: Fault, run_id: str | None, headers: Mapping[str, str] | None = None) -> Response:
    """The error body of Contracts."""
    return json_response(fault.body(run_id), fault.status, {**(headers or {}), **fault.headers()})


def event(name: str | None, data: bytes | None) -> bytes:
    """One server-sent event; ``data`` is JSON on one line."""
    lines = []
    if name is not None:
        lines.append(b"event: " + name.encode())
    if data is not None:
        lines.append(b"data: " + data)
    return b"\r\n".join(lines) + b"\r\n\r\n"


HEARTBEAT = b": heartbeat\r\n\r\n"

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would hold chunks back
}
