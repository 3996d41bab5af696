"""``/openapi.json`` with the chain's own schemas, and ``/docs`` made from it: one page, nothing fetched from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from patchwork_serving.gateway.bodies import BatchBody, ChatBody, EventsBody, InvokeBody
from patchwork_serving.gateway.core import Gateway
from patchwork_serving.gateway.deadlines import DEADLINE_HEADER, SLO_HEADER, TIMEOUT_HEADER
from patchwork_serving.gateway.settings import GatewaySettings

_BODIES: dict[str, type[BaseModel]] = {
    "/invoke": InvokeBody,
    "/batch": BatchBody,
    "/stream": InvokeBody,
    "/stream_events": EventsBody,
    "/v1/chat/completions": ChatBody,
}

_STATUSES = {
    "401": "API key missing or wrong",
    "413": "Body too large",
    "422": "Invalid input",
    "429": "Refused; see Retry-After",
    "499": "Cancelled",
    "500": "The chain raised",
    "503": "Not ready; see Retry-After",
    "504": "Deadline passed",
}

_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "stage": {"type": "string"},
                "retryable": {"type": "boolean"},
                "run_id": {"type": ["string", "null"]},
            },
            "required": ["type", "message", "stage", "retryable", "run_id"],
        }
    },
    "required": ["error"],
}


def add_reference(app: FastAPI, gateway: Gateway) -> None:
    """Make ``app.openapi`` say what the chain takes, and add ``/docs``."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi(app, gateway)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(_page(openapi(), request.scope.get("root_path", "")))


def _openapi(app: FastAPI, gateway: Gateway) -> dict[str, Any]:
    document = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = _ERROR
    schemas["ChainInput"] = _hoisted(gateway.input_shape.schema, "Chain", schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            for status, meaning in _STATUSES.items():
                responses[status] = {"description": meaning, "content": _json({"$ref": "#/components/schemas/Error"})}
            if path in _BODIES:
                schema = _hoisted(_BODIES[path].model_json_schema(), "Body", schemas)
                _put_chain_input(schema)
                operation["requestBody"] = {"required": True, "content": _json(schema)}
                operation["parameters"] = _headers(gateway.settings)
    return document


def _headers(settings: GatewaySettings) -> list[dict[str, Any]]:
    limit = settings.request_timeout_s
    told: dict[str, tuple[str, dict[str, Any]]] = {
        TIMEOUT_HEADER: (
            "Seconds after which the run is cancelled and the answer is 504.",
            {"type": "number", "exclusiveMinimum": 0, "maximum": limit},
        ),
        DEADLINE_HEADER: (
            "The same, in milliseconds from now.",
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1000 * limit},
        ),
        SLO_HEADER: ("The SLO class.", {"type": "string", "enum": sorted(settings.all_slo_classes())}),
    }
    return [
        {"name": name, "in": "header", "required": False, "schema": schema, "description": about}
        for name, (about, schema) in told.items()
    ]


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _put_chain_input(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    if "input" in properties:
        properties["input"] = {"$ref": "#/components/schemas/ChainInput"}
    if "inputs" in properties:
        properties["inputs"] = {"type": "array", "items": {"$ref": "#/components/schemas/ChainInput"}}


def _hoisted(schema: Mapping[str, Any], prefix: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with its ``$defs`` moved into the document's components, because references count from the document's root."""
    text = json.dumps(schema).replace('"#/$defs/', f'"#/components/schemas/{prefix}')
    moved: dict[str, Any] = json.loads(text)
    for name, definition in moved.pop("$defs", {}).items():
        schemas[prefix + name] = definition
    return moved


def _page(document: Mapping[str, Any], root: str) -> str:
    schemas = document["components"]["schemas"]
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    shown = "".join(
        f"<details id='{_text(name)}'><summary><code>{_text(name)}</code></summary>{_code(schema)}</details>"
        for name, schema in sorted(schemas.items())
    )
    title = _text(document["info"]["title"])
    return _TEMPLATE.format(
        title=title,
        about=_text(document["info"].get("description", "")),
        root=_text(root),
        operations="".join(operations),
        schemas=shown,
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    headers = "".join(
        f"<li><code>{_text(p['name'])}</code> {_text(p.get('description', ''))}</li>"
        for p in operation.get("parameters", ())
    )
    details = (f"<ul>{headers}</ul>" if headers else "") + (f"<h4>Body</h4>{_code(body)}" if body else "")
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{_text(path)}</code> "
        f"{_text(operation.get('summary', ''))}</summary>{details}</details>"
    )


def _code(value: Any) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2))}</pre>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }}
details {{ border-top: 1px solid #8884; padding: .4rem 0 }} summary {{ cursor: pointer }}
pre {{ overflow: auto; background: #8881; padding: .6rem; font-size: 13px }}
</style></head><body><h1>{title}</h1><p>{about}</p>
<p>The machine-readable form is <a href="{root}/openapi.json">openapi.json</a>; what is deployed, <a href="{root}/info">info</a>.</p>
<h2>Routes</h2>{operations}<h2>Schemas</h2>{schemas}</body></html>
"""
