"""The gateway of one app as an ASGI application. Built where it runs: a FastAPI app with state does not travel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from patchwork_serving.gateway import langserve_routes, openai_routes
from patchwork_serving.gateway.core import Gateway
from patchwork_serving.gateway.edge import Edge
from patchwork_serving.gateway.exchange import Exchange, answer
from patchwork_serving.gateway.faults import Fault
from patchwork_serving.gateway.metrics import GatewayMetrics
from patchwork_serving.gateway.ops_routes import add_ops_routes
from patchwork_serving.gateway.port import AskSiblings, CancelElsewhere, ChainRunner, Door, NoTelemetry, Telemetry
from patchwork_serving.gateway.reference import add_reference
from patchwork_serving.gateway.responses import fault_response
from patchwork_serving.gateway.settings import GatewaySettings

Handler = Callable[[Exchange, Any], Awaitable[Response]]

_CALLS: dict[str, Handler] = {
    "/invoke": langserve_routes.invoke,
    "/batch": langserve_routes.batch,
    "/stream": langserve_routes.stream,
    "/stream_events": langserve_routes.stream_events,
    "/v1/chat/completions": openai_routes.chat_completions,
}
#: ends of the paths on which the chain is called
CALL_PATHS = tuple(_CALLS)


def build_gateway(
    runner: ChainRunner,
    settings: GatewaySettings,
    telemetry: Telemetry | None = None,
    *,
    metrics: GatewayMetrics | None = None,
    cancel_elsewhere: CancelElsewhere | None = None,
    ask_siblings: AskSiblings | None = None,
    replica: str = "",
    door: Door | None = None,
) -> FastAPI:
    """The app; call it on the event loop that will serve it. ``replica`` is this replica's name, where there may be several;
    ``door`` decides who comes in, default everybody.

    ``app.state.gateway`` is the :class:`Gateway`: ``.runs.cancel(run_id)`` cancels a run of this process,
    ``await .runs.drain(seconds)`` ends serving (the ASGI lifespan does it too), ``.window.summary(now=...)`` is the last minute.
    """
    gateway = Gateway(
        runner, settings, telemetry or NoTelemetry(), metrics or GatewayMetrics(settings.name), cancel_elsewhere,
        ask_siblings, replica, door,
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway.runs.draining = False  # a lifespan may follow another: test clients open one for each visit
        yield
        await gateway.runs.drain(settings.drain_s)

    app = FastAPI(
        title=settings.name,
        description="A chain served by Patchwork: LangServe's and OpenAI's HTTP interfaces.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.add_middleware(Edge, settings=settings, metrics=gateway.metrics)
    app.add_exception_handler(HTTPException, _http_fault)
    for path, handler in _CALLS.items():
        app.add_api_route(path, _endpoint(gateway, path, handler), methods=["POST"], summary=_summary(handler))
    add_ops_routes(app, gateway)
    add_reference(app, gateway)
    return app


def _endpoint(gateway: Gateway, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await answer(gateway, request, path, handler)

    endpoint.__name__ = path.strip("/").replace("/", "_")  # the operation id
    return endpoint


def _summary(handler: Handler) -> str:
    return (handler.__doc__ or "").strip().splitlines()[0]


async def _http_fault(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in our error body."""
    assert isinstance(error, HTTPException)
    kind = {404: "UnknownRoute", 405: "MethodNotAllowed"}.get(error.status_code, "HTTPException")
    message = f"{error.detail}; GET /docs lists the routes"
    return fault_response(Fault(error.status_code, kind, message, stage="gateway"), None, error.headers)
