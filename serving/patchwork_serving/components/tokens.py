"""What a request of the OpenAI protocol says about its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_adapters.protocol import decode_request
from patchwork_serving.wire import CallFrame

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")


def token_limit(frame: CallFrame) -> int | None:
    """The most tokens that the request lets come out; None when it does not say, or cannot be read."""
    try:
        body = _body(frame)
    except (CodecError, KeyError, TypeError):
        return None
    limits = [body[name] for name in _LIMITS if type(body.get(name)) is int and body[name] > 0]
    return min(limits, default=None)


def _body(frame: CallFrame) -> Mapping[str, Any]:
    if frame.method.startswith("POST "):
        return decode_request(frame.payload).json()
    body = codec.decode(frame.payload)["body"]
    return body if isinstance(body, Mapping) else {}
