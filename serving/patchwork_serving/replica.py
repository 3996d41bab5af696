"""A component replica on Ray Serve: a host around an engine, reached by frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_serving import board
from patchwork_serving.bundle import Bundle, apply_environment
from patchwork_serving.components import measuring
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine
from patchwork_serving.components.hosting import host_of
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import ReplicaTelemetry, open_tracing
from patchwork_serving.wire import CallFrame, ReplyFrame

log = logging.getLogger(__name__)

#: Longest that a process may take from its start to our code; one that waited longer was kept ready by Ray.
PROCESS_START_S = 10.0


class ComponentReplica:
    """Started by Serve; ready when its engine has answered a real call."""

    async def __init__(self, spec: ComponentSpec, bundle: Bundle) -> None:  # type: ignore[misc]  # Serve awaits it
        from ray import serve

        self._began = time.time()
        apply_environment(bundle.env)
        context = serve.get_replica_context()
        self._app = context.app_name
        self._spec = spec
        self._name = f"{spec.id}#{context.replica_id.unique_id}"
        self._tracing = open_tracing(bundle.release.name, spec.id)
        self._telemetry = ReplicaTelemetry(self._tracing, spec.id)
        engine = await asyncio.to_thread(build, spec, bundle)  # may fetch a model
        # a batch of searches keeps one connection busy
        batches = bundle.config.store.pool_size if spec.engine == "pgvector" and spec.emulate is None else 1
        self._host = host_of(spec, engine, replica=self._name, parallel_batches=batches)
        await self._host.start()
        self._ready = time.time()
        self._publisher = asyncio.create_task(self._publish())

    async def call(self, data: bytes) -> bytes:
        """One CallFrame in, one ReplyFrame out."""
        frame = CallFrame.from_bytes(data)
        reply = await self._host.call(frame)
        self._record(frame, reply)
        return reply.to_bytes()

    async def stream(self, data: bytes) -> AsyncIterator[bytes]:
        """One CallFrame in, ReplyFrames out; the last one says so."""
        frame = CallFrame.from_bytes(data)
        async with contextlib.aclosing(self._host.stream(frame)) as frames:  # type: ignore[type-var]
            async for reply in frames:
                if reply.last:
                    self._record(frame, reply)
                yield reply.to_bytes()

    async def pulse(self) -> bytes:
        """A Pulse, while calls are in this replica and none is answered."""
        return self._host.pulse().to_bytes()

    async def describe(self) -> dict[str, Any]:
        return {"component": self._spec.id, "replica": self._name, **self._host.engine.describe()}

    async def measure(self, frames: list[bytes], at_once: int) -> measuring.Run:
        """Run calls on the engine alone, past the queue; for ``patchwork profile``, while nobody else calls."""
        return await measuring.measure(self._host.engine, frames, at_once)

    async def born(self) -> float:
        """Seconds from the start of this process to its first answer; Ray may have had the process waiting, which does not count."""
        return self._start_s()

    def _start_s(self) -> float:
        return float(self._ready - max(psutil.Process().create_time(), self._began - PROCESS_START_S))

    async def check_health(self) -> None:
        """Serve replaces a replica whose check raises."""
        self._host.check()

    async def __del__(self) -> None:
        publisher = getattr(self, "_publisher", None)
        if publisher is None:
            return  # the engine never started; nothing to close
        publisher.cancel()
        await self._host.close()
        await asyncio.to_thread(self._tracing.close)
        with contextlib.suppress(Exception):  # Ray may be going down around us
            await asyncio.to_thread(board.withdraw, self._app, self._name)

    def _record(self, frame: CallFrame, reply: ReplyFrame) -> None:
        if reply.report is not None:
            self._telemetry.record(frame, reply.report, reply.error.kind if reply.error else None)

    async def _publish(self) -> None:
        start_s = round(self._start_s(), 1)
        while True:
            load = self._host.load()
            facts = {
                "component": self._spec.id,
                "start_s": start_s,
                "queued": load.queued,
                "running": load.running,
                "queued_s": load.queued_s,
                "running_s": load.running_s,
                **self._host.counts.report(),
            }
            try:
                await asyncio.to_thread(board.publish, self._app, self._name, facts)
            except Exception as error:  # noqa: BLE001  telemetry must not end a replica
                log.warning("could not publish the state of %s: %s", self._name, type(error).__name__)
            await asyncio.sleep(board.PUBLISH_EVERY_S)


def build(spec: ComponentSpec, bundle: Bundle) -> BatchEngine | ContinuousEngine:
    """The engine of a component; imports only what that engine needs."""
    engine = _built(spec, bundle)
    if spec.emulate is None:
        return engine
    from patchwork_serving.components.emulated_factory import in_its_time

    return in_its_time(engine, spec)


def _built(spec: ComponentSpec, bundle: Bundle) -> BatchEngine | ContinuousEngine:
    match spec.engine:
        case "pgvector":
            from patchwork_serving.components.retriever import RetrieverEngine

            collections = {c.name: c for c in bundle.release.collections}
            return RetrieverEngine(dsn_of(bundle), collections, pool_size=bundle.config.store.pool_size)
        case "own":
            from patchwork_serving.components.own import OwnEngine

            return OwnEngine(spec, bundle)
        case _:
            from patchwork_serving.components.factory import build_engine

            return build_engine(spec, bundle.config)


def dsn_of(bundle: Bundle) -> str | Callable[[], str]:
    """The database's URL. The embedded server is started again when it is gone: nobody else watches over it."""
    assert bundle.dsn is not None, "a release with collections is deployed with a database"
    if bundle.postgres_home is None:
        return bundle.dsn
    from patchwork_serving.store.embedded import EmbeddedPostgres

    return EmbeddedPostgres(Path(bundle.postgres_home)).start
