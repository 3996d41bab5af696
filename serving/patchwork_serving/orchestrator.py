"""Runs the user's chain, with its leaves swapped for calls to components. One per ingress replica; one application per process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.record import ImportRecord, ReplayTransport
from patchwork_adapters.transport import Transport
from patchwork_serving import autoscaling, board, release_board
from patchwork_serving.bundle import Bundle, apply_environment, enter_module_dir
from patchwork_serving.chain_loop import ChainLoop
from patchwork_serving.chains import Chain, chain_of
from patchwork_serving.gateway.port import Config, EventFilter, JsonSchema
from patchwork_serving.taken_apart import TakenApart, take_apart
from patchwork_serving.transport import CallObserver

log = logging.getLogger(__name__)


class Orchestrator:
    """Implements ``gateway.port.ChainRunner``. ``start`` imports the user's module and may take seconds."""

    def __init__(self, bundle: Bundle, transport: Transport, observer: CallObserver | None = None) -> None:
        """``observer`` watches the calls of hosted APIs; those that ``transport`` carries, it watches itself."""
        self.name = bundle.release.name
        self.framework = bundle.release.graph.framework
        self._bundle = bundle
        self._release = bundle.release  # with the numbers that were deployed last, as far as they were looked up
        self._transport = transport
        self._observer = observer
        self._loop: ChainLoop | None = None
        self._bridge: Bridge | None = None
        self._apart: TakenApart | None = None
        self._chain: Chain | None = None
        self._schemas: dict[str, JsonSchema] = {}

    def start(self) -> None:
        """Blocking. Raises what the import raises, or AdapterError when the module differs from the one that was deployed."""
        apply_environment(self._bundle.env)
        enter_module_dir(self._bundle.release.module_dir)
        record = ImportRecord.from_bytes(self._bundle.record)
        self._bridge = Bridge(ReplayTransport(record, self._transport))
        self._apart = take_apart(self._bundle.release, self._bridge, record, observer=self._observer)
        self._chain = chain_of(self._apart.loaded.chain, self._apart.loaded.framework)
        self._schemas = self._chain.schemas()
        self._loop = ChainLoop()

    def close(self) -> None:
        """Idempotent; cancels what runs."""
        for part in (self._loop, self._bridge, self._apart):
            if part is not None:
                part.close()

    @property
    def taken_apart(self) -> TakenApart:
        """The chain, for those that run it by themselves."""
        assert self._apart is not None, "start() comes first"
        return self._apart

    # -- ChainRunner -------------------------------------------------------------------------------------------------

    def release_info(self) -> dict[str, Any]:
        release = self._release
        return {
            "name": release.name,
            "target": release.target,
            "framework": self.framework,
            "created_at": release.created_at,
            "slo_s": release.slo_s,
            "graph": release.graph.to_json(),
            "components": [
                {
                    "id": c.id,
                    "kind": c.kind,
                    "way": c.way,
                    "engine": "emulated" if c.is_emulated else c.engine,
                    "model": c.model,
                    "replicas": c.replicas,
                }
                for c in release.components
            ],
            "emulated": list(release.emulated),
            "collections": [
                {
                    "name": c.name,
                    "rows": c.rows,
                    "dim": c.dim,
                    "recall": c.recall,
                    "ef_search": c.ef_search,
                    "exact": c.exact,
                    "leaf": c.leaf,
                    "fingerprint": c.fingerprint,
                }
                for c in release.collections
            ],
        }

    def input_schema(self) -> JsonSchema:
        return self._schemas["input"]

    def output_schema(self) -> JsonSchema:
        return self._schemas["output"]

    def config_schema(self) -> JsonSchema:
        return self._schemas["config"]

    async def invoke(self, input: Any, config: Config | None, kwargs: Mapping[str, Any]) -> Any:
        chain, loop = self._running()
        return await loop.run(lambda: chain.invoke(input, config, kwargs))

    async def batch(self, inputs: Sequence[Any], configs: Sequence[Config], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        chain, loop = self._running()
        return await loop.run(lambda: chain.batch(inputs, list(configs) or None, kwargs))

    def stream(self, input: Any, config: Config | None, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        chain, loop = self._running()
        return loop.iterate(lambda: chain.stream(input, config, kwargs))

    def stream_events(
        self,
        input: Any,
        config: Config | None,
        kwargs: Mapping[str, Any],
        version: Literal["v1", "v2"],
        events: EventFilter,
    ) -> AsyncIterator[Mapping[str, Any]]:
        if self.framework == "llamaindex":
            raise NotImplementedError("stream_events exists for LangChain chains only; use /stream")
        chain, loop = self._running()
        options = {**kwargs, "version": version, **events.to_kwargs()}
        return loop.iterate(lambda: chain.stream_events(input, config, options))

    def is_ready(self) -> bool:
        return self._chain is not None

    async def status(self) -> dict[str, Any]:
        try:
            entries = await asyncio.to_thread(board.read, self.name)
        except Exception as error:  # noqa: BLE001  a status page must not fail because Ray's head is busy
            log.warning("could not read the replicas' state: %s", type(error).__name__)
            entries = []
        await asyncio.to_thread(self._look_up_release)
        scaling = await asyncio.to_thread(autoscaling.told, self._release, self._bundle.config)
        targets = {c.id: c.replicas for c in self._release.components if c.way != "external"}
        return {
            "replicas": _by_component(entries, {**targets, **scaling.get("targets", {})}),
            "decisions": scaling.get("decisions", []),
            "autoscale": {key: scaling.get(key) for key in ("mode", "changes", "numbers")} if scaling else None,
        }

    def _look_up_release(self) -> None:
        try:
            self._release = release_board.current(self._bundle.release)
        except Exception as error:  # noqa: BLE001  as above: what was known last is told
            log.warning("could not read what was deployed last: %s", type(error).__name__)

    def _running(self) -> tuple[Chain, ChainLoop]:
        assert self._chain is not None, "start() comes first"
        assert self._loop is not None, "start() comes first"
        return self._chain, self._loop


def _by_component(entries: Sequence[Mapping[str, Any]], targets: Mapping[str, int]) -> list[dict[str, Any]]:
    """The ``replicas`` of ``status --json``."""
    rows = []
    for component, target in targets.items():
        mine = [entry for entry in entries if entry.get("component") == component]
        rows.append(
            {
                "component": component,
                "target": target,
                "ready": len(mine),
                "queued": sum(entry["queued"] for entry in mine),
                "running": sum(entry["running"] for entry in mine),
                "start_s": max((entry["start_s"] for entry in mine if "start_s" in entry), default=None),
            }
        )
    return rows
