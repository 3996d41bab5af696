"""What an engine of LLMs is asked for: routes of the OpenAI protocol, in either of the two ways."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from patchwork_serving.components.engine import EngineCall
from patchwork_serving.errors import EngineRefused

#: Routes that are offered, by method of the protocol way and by operation of the engine way.
ROUTES = {
    "POST /v1/chat/completions": "/v1/chat/completions",
    "POST /v1/completions": "/v1/completions",
    "POST /v1/responses": "/v1/responses",
    "chat": "/v1/chat/completions",
    "complete": "/v1/completions",
}

#: From a call and its route to the frames of the reply.
Way = Callable[[EngineCall, str], AsyncGenerator[bytes]]


async def routed(name: str, call: EngineCall, *, protocol: Way, operation: Way) -> AsyncIterator[bytes]:
    """Frames of one reply of the engine called ``name``; closing the iterator closes the way's. EngineRefused for another method."""
    route = ROUTES.get(call.method)
    if route is None:
        raise EngineRefused(f"{name} answers {', '.join(ROUTES)}, not {call.method!r}")
    way = protocol if call.method.startswith("POST ") else operation
    async with contextlib.aclosing(way(call, route)) as frames:
        async for frame in frames:
            yield frame
