"""Models in this process: a host (queue and engine) for each, started when it is first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from patchwork_adapters.placement import component_id
from patchwork_serving.components.factory import build_engine
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.components.hosting import host_of
from patchwork_serving.config import Config, Paths
from patchwork_serving.models.fetch import ensure
from patchwork_serving.models.packaged import ModelKind
from patchwork_serving.models.registry import ResolvedModel, resolve
from patchwork_serving.progress import ProgressSink, SilentProgress, step
from patchwork_serving.release import ComponentSpec

#: Work items of calls that run together. A bulk embedding is one call, runs alone and is cut by tokens inside the engine.
MAX_BATCH = 64


class ModelHosts:
    """Belongs to one event loop. ``close`` stops every engine and is idempotent."""

    def __init__(
        self,
        config: Config,
        paths: Paths,
        progress: ProgressSink | None = None,
        *,
        engine_args: Mapping[ModelKind, Mapping[str, Any]],
        max_batch: int = MAX_BATCH,
    ) -> None:
        """``engine_args`` by kind; those of ``patchwork.yaml`` go over them."""
        self._config = config
        self._paths = paths
        self._progress = progress or SilentProgress()
        self._engine_args = engine_args
        self._max_batch = max_batch
        self._starting: dict[str, asyncio.Task[ComponentHost]] = {}

    async def get(self, name: str) -> ComponentHost:
        """The running host of a model. Raises what fetching or starting it raises (ServingError), and tries anew the next time."""
        model = resolve(name, self._config.models, self._paths)
        task = self._starting.get(model.name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._start(model), name=f"patchwork-start-{model.name}")
            self._starting[model.name] = task
        return await asyncio.shield(task)  # a caller that leaves must not stop the start that others wait for

    async def close(self) -> None:
        tasks, self._starting = list(self._starting.values()), {}
        for task in tasks:
            task.cancel()
        for started in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(started, ComponentHost):
                await started.close()

    def _defaults(self, model: ResolvedModel) -> Mapping[str, Any]:
        """They are llama.cpp's and ONNX Runtime's words; of them OpenVINO knows slots and threads, vLLM how many sequences there are."""
        known = self._engine_args.get(model.kind, {})
        match model.engine:
            case "emulated" | "transformers":
                return {}
            case "openvino":
                return {name: known[name] for name in ("slots", "threads") if name in known}
            case "vllm":
                return {"max_num_seqs": known["slots"]} if "slots" in known else {}
            case _:
                return known

    async def _start(self, model: ResolvedModel) -> ComponentHost:
        await asyncio.to_thread(ensure, model.name, self._config.models, self._paths, self._progress)
        with step(self._progress, f"start-{model.name}", f"starting {model.name}"):
            spec = ComponentSpec(
                id=component_id(model.kind, model.name), kind=model.kind, way="engine", engine=model.engine, model=model.name,
                engine_args={**self._defaults(model), **model.engine_args},
                max_batch=self._max_batch,
                policy="fifo",  # nobody's deadline is known here
            )  # fmt: skip
            engine = build_engine(spec, self._config, self._paths)
            host = host_of(spec, engine, replica=model.name)
            await host.start()
        return host
