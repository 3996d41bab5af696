"""What answers leaf calls while the builder imports the user's module: engines in its own process (design, D4b)."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterable

from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable
from patchwork_adapters.placement import component_id
from patchwork_adapters.protocol import decode_request
from patchwork_adapters.transport import LeafCall
from patchwork_serving.components.llamacpp_engine import available_cores
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ServingError
from patchwork_serving.models.hosts import ModelHosts
from patchwork_serving.models.registry import known_models
from patchwork_serving.progress import ProgressSink
from patchwork_serving.wire import CallFrame, ReplyFrame


class LocalEngines:
    """A Transport onto engines of this process; each starts, and is fetched if need be, at the first call for it.

    May be used and closed from any event loop: the engines live on a loop and a thread of its own. It may use all cores, because nothing
    else runs while a module is imported.
    """

    def __init__(self, config: Config, paths: Paths, progress: ProgressSink | None = None) -> None:
        self._hosts = ModelHosts(
            config,
            paths,
            progress,
            engine_args={kind: {"threads": available_cores()} for kind in ("embedder", "reranker")},
        )
        # by component id, as the import router names them
        self._names = {component_id(model.kind, model.name): model.name for model in known_models(config.models, paths)}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    async def call(self, call: LeafCall) -> bytes:
        """The whole reply; raises ComponentError. Cancelling the awaiting task cancels the work."""
        return b"".join((await self._reply(call)).payloads)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        """The reply's frames, handed over together: nobody watches a stream while a module is imported."""
        for payload in (await self._reply(call)).payloads:
            yield payload

    async def start(self, names: Iterable[str]) -> None:
        """Start the engines of these models now; raises ComponentError. A call would start its own, and take that long."""
        loop = self._running_loop()
        for name in dict.fromkeys(names):
            try:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._hosts.get(name), loop))
            except ServingError as error:
                raise ComponentFailed(f"{error.title}: {error}") from error

    async def close(self) -> None:
        """Stop the engines and the thread; idempotent."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._hosts.close(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(self._thread.join, 10)

    async def _reply(self, call: LeafCall) -> ReplyFrame:
        name = self._model_of(call)
        if name is None:
            raise ComponentFailed(f"{call.component} has no model that can run here")
        loop = self._running_loop()
        future = asyncio.run_coroutine_threadsafe(self._serve(name, call), loop)
        return await asyncio.wrap_future(future)

    async def _serve(self, name: str, call: LeafCall) -> ReplyFrame:
        try:
            host = await self._hosts.get(name)
        except ServingError as error:
            raise (ComponentUnavailable if error.retryable else ComponentFailed)(f"{error.title}: {error}") from error
        reply = await host.call(
            CallFrame(
                id=str(next(self._ids)), request_id="import", leaf=call.leaf, method=call.method, payload=call.payload,
                site=call.site, size=call.size, stream=call.stream,
            )
        )  # fmt: skip
        if reply.error is not None:
            failed = ComponentUnavailable if reply.error.retryable else ComponentFailed
            raise failed(f"{call.component}: {reply.error.message}")
        return reply

    def _model_of(self, call: LeafCall) -> str | None:
        """The request names its model in the protocol way; elsewhere the component's id tells."""
        if call.method.startswith("POST "):
            named = decode_request(call.payload).json().get("model")
            if isinstance(named, str):
                return named
        return self._names.get(call.component)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise ComponentUnavailable("the engines of this process are closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="patchwork-local-engines", daemon=True
                )
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
