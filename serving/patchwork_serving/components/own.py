"""The *own object* way: the replica imports the user's module and runs the user's own method on the same leaf."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.own import OwnLeafRunner, runner_of
from patchwork_adapters.record import ImportRecord, ReplayTransport
from patchwork_serving.bundle import Bundle, enter_module_dir
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.errors import EngineError
from patchwork_serving.release import ComponentSpec
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.taken_apart import TakenApart, take_apart
from patchwork_serving.transport import RayTransport, serve_handles, serve_replicas

log = logging.getLogger(__name__)

#: User code of unknown cost: a few at once, so that a class that holds a lock or a core does not thrash.
DEFAULT_SLOTS = 8


class OwnEngine:
    """A ContinuousEngine: calls run side by side, each as the user wrote it. Other leaves of the module are swapped as usual."""

    def __init__(self, spec: ComponentSpec, bundle: Bundle) -> None:
        self.slots = spec.slots or DEFAULT_SLOTS
        self._spec = spec
        self._bundle = bundle
        self._bridge: Bridge | None = None
        self._apart: TakenApart | None = None
        self._runners: dict[str, OwnLeafRunner] = {}
        self._started_s = 0.0

    async def start(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(self._import)
        self._started_s = time.monotonic() - began

    def _import(self) -> None:
        enter_module_dir(self._bundle.release.module_dir)
        record = ImportRecord.from_bytes(self._bundle.record)
        name = self._bundle.release.name
        transport = RayTransport(serve_handles(name), scheduling=Scheduling(replicas_of=serve_replicas(name)))
        self._bridge = Bridge(ReplayTransport(record, transport))
        mine = frozenset(self._spec.leaves)
        self._apart = take_apart(self._bundle.release, self._bridge, record, keep=mine)
        self._runners = {path: runner_of(self._apart.walk.leaf(path)) for path in mine}

    async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        runner = self._runners.get(call.leaf)
        if runner is None:
            raise EngineError(f"{self._spec.id} does not hold the leaf {call.leaf!r}; it has {sorted(self._runners)}")
        if not call.stream:
            yield await runner.run(call.method, call.payload)
            return
        async for frame in runner.stream(call.method, call.payload):
            yield frame

    async def close(self) -> None:
        if self._apart is not None:
            self._apart.close()
        if self._bridge is not None:
            await asyncio.to_thread(self._bridge.close)

    def describe(self) -> Mapping[str, Any]:
        return {"leaves": sorted(self._runners), "slots": self.slots, "import_s": round(self._started_s, 2)}
