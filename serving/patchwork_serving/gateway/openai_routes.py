"""OpenAI's routes: the chain as a chat model, for the unchanged ``openai`` client."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from patchwork_serving.gateway.bodies import ChatBody, RunConfig, parse
from patchwork_serving.gateway.chat import answer_of, chain_input, text_of
from patchwork_serving.gateway.core import Gateway
from patchwork_serving.gateway.exchange import Exchange
from patchwork_serving.gateway.faults import Fault
from patchwork_serving.gateway.metrics import Usage
from patchwork_serving.gateway.responses import event, json_response
from patchwork_serving.gateway.serialize import dumps
from patchwork_serving.gateway.stream import event_stream
from patchwork_serving.gateway.witness import usage_of


async def chat_completions(exchange: Exchange, document: Any) -> Response:
    """Ask the chain as OpenAI's chat models are asked. ``usage`` counts the tokens of every LLM call that the chain made."""
    body = parse(ChatBody, document)
    gateway = exchange.gateway
    value = chain_input(gateway.input_shape.schema, body.messages)
    (config,) = exchange.admit([RunConfig()], witnessed=True)
    if body.stream:
        run = exchange.start_stream(lambda: gateway.runner.stream(value, config, {}))
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await event_stream(exchange, run, _Completion(exchange, run.id, include_usage=include_usage))
    run = exchange.start(lambda: gateway.runner.invoke(value, config, {}))
    output = await run.value()
    message = {"role": "assistant", "content": answer_of(output)}
    usage = _usage(exchange, output)
    exchange.succeed()
    document = {
        **_head(gateway, run.id, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }
    return json_response(document, headers=exchange.headers())


def models(gateway: Gateway) -> dict[str, Any]:
    """The app, as the only model."""
    return {"object": "list", "data": [model(gateway)]}


def model(gateway: Gateway) -> dict[str, Any]:
    return {"id": gateway.settings.name, "object": "model", "created": gateway.started_at, "owned_by": "patchwork"}


class _Completion:
    """Chunks of one chat completion."""

    def __init__(self, exchange: Exchange, run_id: str, *, include_usage: bool) -> None:
        self._exchange = exchange
        self._head = _head(exchange.gateway, run_id, "chat.completion.chunk")
        self._include_usage = include_usage
        self._said = False
        self._last: Any = None

    def opening(self) -> bytes:
        return self._choice({"role": "assistant", "content": ""}, None)

    def chunk(self, value: Any) -> bytes:
        self._last = value
        text = text_of(value)
        if not text:
            return b""
        self._said = True
        return self._choice({"content": text}, None)

    def closing(self, exchange: Exchange) -> bytes:
        # a chain whose chunks have no text of an answer: say the last of them as it is
        rest = b"" if self._said or self._last is None else self._choice({"content": answer_of(self._last)}, None)
        parts = [rest, self._choice({}, "stop")]
        if self._include_usage:
            parts.append(event(None, dumps({**self._head, "choices": [], "usage": _usage(exchange, None)})))
        return b"".join(parts) + event(None, b"[DONE]")

    def fault(self, fault: Fault, run_id: str | None) -> bytes:
        return event(None, dumps(fault.body(run_id)))

    def _choice(self, delta: dict[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(None, dumps({**self._head, "choices": [choice]}))


def _head(gateway: Gateway, run_id: str, kind: str) -> dict[str, Any]:
    # the run id is in the id, so that a client can cancel what it streams
    return {"id": f"chatcmpl-{run_id}", "object": kind, "created": int(time.time()), "model": gateway.settings.name}


def _usage(exchange: Exchange, output: Any) -> dict[str, int]:
    """Tokens as the engines counted them; else as the models' messages say; zero when the chain called no LLM, or none that counts."""
    counted = exchange.tokens()
    if counted == Usage():
        counted = exchange.witness.usage if exchange.witness else Usage()
    if counted == Usage():
        counted = usage_of(output)
    return {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
    }
