"""Routes about the app instead of for its users: schemas, cancel, health, metrics, info."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from patchwork_serving.gateway import openai_routes
from patchwork_serving.gateway.account import decisions, exposition, together
from patchwork_serving.gateway.core import Gateway
from patchwork_serving.gateway.faults import Fault, GatewayError, NotReady, UnknownRun, fault_of
from patchwork_serving.gateway.metrics import CONTENT_TYPE
from patchwork_serving.gateway.responses import fault_response, json_response


def add_ops_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add them to ``app``."""
    runner, settings = gateway.runner, gateway.settings

    @app.get("/input_schema", summary="JSON Schema of the chain's input")
    async def input_schema() -> Response:
        return json_response(runner.input_schema())

    @app.get("/output_schema", summary="JSON Schema of the chain's output")
    async def output_schema() -> Response:
        return json_response(runner.output_schema())

    @app.get("/config_schema", summary="JSON Schema of the chain's config")
    async def config_schema() -> Response:
        return json_response(runner.config_schema())

    @app.get("/v1/models", summary="The app, as OpenAI lists models")
    async def models() -> Response:
        return json_response(openai_routes.models(gateway))

    @app.post("/runs/{run_id}/cancel", summary="Cancel a run in flight; its caller gets 499")
    async def cancel(run_id: str) -> Response:
        cancelled = gateway.runs.cancel(run_id)
        if not cancelled and gateway.cancel_elsewhere is not None:
            cancelled = await gateway.cancel_elsewhere(run_id)
        if not cancelled:
            raise UnknownRun("no run with this id is in flight")
        return json_response({"run_id": run_id, "cancelled": True})

    @app.get("/livez", summary="200 while the process serves")
    async def livez() -> Response:
        return json_response({"status": "alive"})

    @app.get("/readyz", summary="200 when a request would be served now, else 503")
    async def readyz() -> Response:
        if gateway.runs.draining or not runner.is_ready():
            raise NotReady("the app is starting or stopping")
        return json_response({"status": "ready"})

    @app.get("/metrics", summary="Prometheus metrics of all ingress replicas")
    async def metrics() -> Response:
        accounts, status = await asyncio.gather(gateway.accounts(), runner.status())
        text = exposition(accounts, status.get("replicas", ()), settings.name, status.get("autoscale"))
        return Response(text, media_type=CONTENT_TYPE)

    @app.get("/info", summary="What is deployed, and the last minute")
    async def info() -> Response:
        return json_response(await _info(gateway))

    app.add_exception_handler(GatewayError, _gateway_fault)


async def _info(gateway: Gateway) -> dict[str, Any]:
    runner, settings = gateway.runner, gateway.settings
    accounts, status = await asyncio.gather(gateway.accounts(), runner.status())
    return {
        "name": settings.name,
        "framework": runner.framework,
        "ready": runner.is_ready() and not gateway.runs.draining,
        "release": runner.release_info(),
        "status": {**status, "decisions": decisions(accounts, status.get("decisions", ()))},
        "slo": {
            "default_s": settings.all_slo_classes()[settings.default_class].deadline_s,
            "default": settings.default_class,
            "classes": settings.slo_classes,
        },
        "limits": {
            "body_bytes": settings.max_body_bytes,
            "batch_inputs": settings.max_batch_inputs,
            "request_timeout_s": settings.request_timeout_s,
            "in_flight": settings.max_in_flight,
        },
        **together(accounts),
    }


async def _gateway_fault(request: Request, error: Exception) -> Response:
    fault: Fault = fault_of(error)
    return fault_response(fault, request.path_params.get("run_id"))
