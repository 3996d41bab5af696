"""LangServe's routes: the same wire, so that the unchanged ``langserve.RemoteRunnable`` is a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from starlette.responses import Response

from patchwork_serving.gateway.bodies import BatchBody, EventsBody, InvokeBody, RunConfig, parse
from patchwork_serving.gateway.exchange import ATTAINED_HEADER, Exchange
from patchwork_serving.gateway.faults import Fault, InvalidRequest
from patchwork_serving.gateway.port import EventFilter
from patchwork_serving.gateway.responses import event, json_response
from patchwork_serving.gateway.serialize import dumps
from patchwork_serving.gateway.stream import event_stream


async def invoke(exchange: Exchange, document: Any) -> Response:
    """Run the chain on one input."""
    body = parse(InvokeBody, document)
    runner = exchange.gateway.runner
    value = exchange.gateway.accept_input(body.input)
    (config,) = exchange.admit([body.config or RunConfig()], traceable=True)
    output = await exchange.start(lambda: runner.invoke(value, config, {})).value()
    encoded = orjson.Fragment(dumps(output))
    exchange.succeed()
    metadata = {"run_id": exchange.run_id, "feedback_tokens": [], **exchange.trace(output)}
    return json_response({"output": encoded, "metadata": metadata}, headers=exchange.headers())


async def batch(exchange: Exchange, document: Any) -> Response:
    """Run the chain on several inputs. One deadline holds for all; cancelling any of the runs cancels the batch."""
    body = parse(BatchBody, document)
    gateway = exchange.gateway
    if len(body.inputs) > gateway.settings.max_batch_inputs:
        raise InvalidRequest(f"inputs: at most {gateway.settings.max_batch_inputs} in one batch")
    values = [gateway.accept_input(value, f"inputs[{i}]") for i, value in enumerate(body.inputs)]
    configs = body.configs()
    if not values:
        return json_response({"output": [], "metadata": {"run_ids": [], "responses": []}}, headers=exchange.headers())
    admitted = exchange.admit(configs)
    outputs = await exchange.start(lambda: gateway.runner.batch(values, admitted, {})).value()
    encoded = orjson.Fragment(dumps(list(outputs)))
    exchange.succeed()
    responses = [{"run_id": run_id, "feedback_tokens": []} for run_id in exchange.run_ids]
    metadata = {"run_ids": exchange.run_ids, "responses": responses}
    return json_response({"output": encoded, "metadata": metadata}, headers=exchange.headers())


async def stream(exchange: Exchange, document: Any) -> Response:
    """Run the chain on one input; the output comes in chunks, as server-sent events."""
    body = parse(InvokeBody, document)
    runner = exchange.gateway.runner
    value = exchange.gateway.accept_input(body.input)
    (config,) = exchange.admit([body.config or RunConfig()], traceable=True)
    run = exchange.start_stream(lambda: runner.stream(value, config, {}))
    return await event_stream(exchange, run, _Chunks(run.id))


async def stream_events(exchange: Exchange, document: Any) -> Response:
    """Run the chain on one input; what happens inside comes as server-sent events (``astream_events``)."""
    body = parse(EventsBody, document)
    runner = exchange.gateway.runner
    value = exchange.gateway.accept_input(body.input)
    (config,) = exchange.admit([body.config or RunConfig()])
    events = EventFilter(**{name: getattr(body, name) for name in EventFilter.__slots__})

    async def chunks() -> AsyncIterator[Mapping[str, Any]]:
        try:
            async for item in runner.stream_events(value, config, {}, body.version or "v2", events):
                yield item
        except NotImplementedError:
            raise InvalidRequest(f"a {runner.framework} chain has no event stream; use /stream") from None

    return await event_stream(exchange, exchange.start_stream(chunks), _Events())


class _Chunks:
    """``metadata``, ``data``..., then ``metadata`` with the outcome, then ``end``."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def opening(self) -> bytes:
        return event("metadata", dumps({"run_id": self._run_id}))

    def chunk(self, value: Any) -> bytes:
        return event("data", dumps(value))

    def closing(self, exchange: Exchange) -> bytes:
        # LangServe's clients pass over metadata, and stop reading at end
        headers = exchange.headers()
        told = {
            "run_id": self._run_id,
            "slo_attained": headers[ATTAINED_HEADER] == "true",
            "server_timing": headers["server-timing"],
            **exchange.trace(),
        }
        return event("metadata", dumps(told)) + event("end", None)

    def fault(self, fault: Fault, run_id: str | None) -> bytes:
        return _error_event(fault, run_id)


class _Events:
    """``data``..., ``end``."""

    def opening(self) -> bytes:
        return b""

    def chunk(self, value: Any) -> bytes:
        metadata = {k: v for k, v in (value.get("metadata") or {}).items() if not k.startswith("__")}
        return event("data", dumps({**value, "metadata": metadata}))

    def closing(self, exchange: Exchange) -> bytes:
        return event("end", None)

    def fault(self, fault: Fault, run_id: str | None) -> bytes:
        return _error_event(fault, run_id)


def _error_event(fault: Fault, run_id: str | None) -> bytes:
    # the first two are what LangServe's clients read
    return event("error", dumps({"status_code": fault.status, "message": fault.message, **fault.body(run_id)}))
