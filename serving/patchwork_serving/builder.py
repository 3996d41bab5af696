"""The builder: imports the user's module once for all others (design D4b), finds its leaves, exports its stores, writes the release.

Runs as ``python -m patchwork_serving.builder FOLDER`` (see ``build_process``). Leaf calls made while importing are answered by engines
started in this process and recorded by content; the record is kept in the cache, so that the next build of the same module asks nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.checking.cases import parse_cases
from patchwork_adapters.connection import deployed_here
from patchwork_adapters.errors import AdapterError, CodecError
from patchwork_adapters.graph import Component, ComponentGraph
from patchwork_adapters.import_calls import ImportCalls
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.record import ImportRecord, RecordingTransport
from patchwork_adapters.recorder import static_graph
from patchwork_adapters.redaction import redacted, redacted_traceback
from patchwork_adapters.sample_runs import sample_graph
from patchwork_adapters.sampling import Sampled, SampledRequest
from patchwork_adapters.target import LoadedTarget, Target, load_target, parse_target
from patchwork_adapters.walk import Walk, find_leaves
from patchwork_serving.assign import Assigned, assign
from patchwork_serving.build_process import BuildRequest
from patchwork_serving.bundle import apply_environment, captured_environment
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import ConfigError, ModelUnknown, ServingError
from patchwork_serving.exporting import export_stores
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.models.fetch import ensure
from patchwork_serving.models.local import LocalEngines
from patchwork_serving.models.registry import resolve
from patchwork_serving.preflight import check_openvino, check_vllm
from patchwork_serving.progress import JsonProgress, ProgressSink, step
from patchwork_serving.release import ComponentSpec, Release

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """The module taken apart, in the builder."""

    loaded: LoadedTarget
    walk: Walk
    assigned: Assigned
    graph: ComponentGraph
    record: ImportRecord
    sampled: Sampled | None = None  #: what the request's inputs did


def build(request: BuildRequest, folder: Path, progress: ProgressSink) -> dict[str, Any]:
    """The result document; with ``inspect_only`` just the graph, and what the inputs did. Raises AdapterError and ServingError."""
    config = Config.model_validate(request.config)
    paths = Paths.from_env()
    apply_environment(captured_environment(os.environ, config.env))
    target = parse_target(request.target)
    taken = _take_apart(request, config, paths, target, progress)
    if request.inspect_only:
        return {
            "graph": taken.graph.to_json(),
            "sampled": taken.sampled.to_json() if taken.sampled is not None else None,
        }
    _check_planned(request, taken.assigned)
    for spec in taken.assigned.specs:
        if spec.way in ("protocol", "engine") and spec.engine != "pgvector":
            _check_engine(spec, config, paths, progress, here=not request.database_over_tcp)
    away = {path for c in taken.assigned.specs if c.engine == "pgvector" for path in c.leaves}
    dsn, collections = export_stores(
        [leaf for leaf in taken.walk.leaves if leaf.path in away], request.name, config, paths,
        over_tcp=request.database_over_tcp, progress=progress,
    )  # fmt: skip
    release = Release(
        name=request.name,
        target=str(target.path) + (f":{target.attr}" if target.attr else "") if target.path else request.target,
        module_dir=str(target.folder) if target.folder else str(Path.cwd()),
        graph=taken.graph,
        components=taken.assigned.specs,
        collections=tuple(collections),
        settings={"code": _code_digest(target)},
    )
    (folder / "record").write_bytes(taken.record.to_bytes())
    return {"release": release.to_json(), "dsn": dsn}


def _kept_record(file: Path) -> ImportRecord:
    """What the last build of this module kept. It can be made again: a damaged one counts as none."""
    try:
        return ImportRecord.load(file)
    except CodecError as error:
        log.warning("%s: %s; the module's import is recorded anew", file, error)
        return ImportRecord()


def _take_apart(request: BuildRequest, config: Config, paths: Paths, target: Target, progress: ProgressSink) -> _Taken:
    deployed_here()
    _check_models(config, paths)  # while importing, a model that is not found would be taken for a hosted one
    router = ImportRouter(config, paths)
    engines = LocalEngines(config, paths, progress)
    record_file = paths.records / f"{_record_name(target, config)}.record"
    record = _kept_record(record_file)
    recording = RecordingTransport(engines, record)
    bridge = Bridge(recording)
    cut = OpenAICut(bridge, router)
    cut.install()
    try:
        for name in config.models:
            resolve(
                name, config.models, paths
            )  # while importing, a model that is not found would be taken for a hosted one
        with step(progress, "import", f"importing {Path(request.target.split(':')[0]).name}"):
            with ImportCalls(record, is_recording=True).watching():
                loaded = load_target(target)
            walk = find_leaves(loaded.chain, loaded.module, loaded.root)
            assigned = assign(walk.leaves, config, router.find)
            progress.update("import", note=f"{len(walk.leaves)} leaves")
        record.save(record_file)
        recording.stop_recording()
        components = tuple(_shown(component, assigned) for component in assigned.placed.components)
        graph = static_graph(request.target, loaded, walk, components, assigned.placed.opaque)
        sampled = None
        if request.inputs is not None:
            sampled = _sample(request.inputs, _Taken(loaded, walk, assigned, graph, record), engines, progress)
    finally:
        cut.undo()
        bridge.close()
        asyncio.run(engines.close())
    return _Taken(loaded, walk, assigned, graph if sampled is None else sampled.graph, record, sampled)


def _sample(inputs: str, taken: _Taken, engines: LocalEngines, progress: ProgressSink) -> Sampled:
    """Run the inputs: models that are hosted here in engines of this process, everything else as the user's own objects."""
    cases = parse_cases(inputs, "the inputs")
    hosted = [spec.model for spec in taken.assigned.specs if spec.way == "protocol" and spec.model is not None]
    asyncio.run(engines.start(hosted))

    def tell(done: int, request: SampledRequest) -> None:
        note = request.error or f"{request.seconds:.2f} s, {len(request.calls)} leaf calls"
        progress.update("samples", done, len(cases), note)

    with step(progress, "samples", f"running {len(cases)} inputs"):
        return sample_graph(taken.loaded, taken.walk, taken.assigned.placed, taken.graph, cases, on_progress=tell)


def _shown(component: Component, assigned: Assigned) -> Component:
    """A component whose times are a profile's is shown as that, whatever gives its replies."""
    emulated = any(spec.id == component.id and spec.is_emulated for spec in assigned.specs)
    return dataclasses.replace(component, engine="emulated") if emulated else component


def _check_planned(request: BuildRequest, assigned: Assigned) -> None:
    """ConfigError when a plan is of another chain, before a store is written or a replica replaced."""
    if request.planned is None:
        return
    mine, planned = {spec.id for spec in assigned.specs if spec.way != "external"}, set(request.planned)
    if mine != planned:
        raise ConfigError(
            f"--plan: the plan is of another chain: it has {', '.join(sorted(planned))}, the chain has {', '.join(sorted(mine))}; "
            "make one for this chain with `patchwork plan`"
        )


def _record_name(target: Target, config: Config) -> str:
    """Answers of emulated models are kept apart: their vectors must not be taken for those of the real model of the same name."""
    emulated = {n: dict(m.engine_args) for n, m in config.models.items() if m.engine == "emulated"}
    told = str(target.path or target.module) + (json.dumps(emulated, sort_keys=True) if emulated else "")
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _check_models(config: Config, paths: Paths) -> None:
    for name in config.models:
        try:
            resolve(name, config.models, paths)
        except ModelUnknown as error:
            if str(error).startswith("patchwork.yaml: "):
                raise
            raise ModelUnknown(f"patchwork.yaml: models.{name}: {error}") from error


def _check_engine(spec: ComponentSpec, config: Config, paths: Paths, progress: ProgressSink, *, here: bool) -> None:
    """What would make its replicas fail is told now: its arguments, and on this machine (``here``) its files, fetched if need be."""
    from patchwork_serving.components.factory import build_engine
    from patchwork_serving.components.vllm_engine import VllmEngine

    engine = build_engine(spec, config, paths)
    if here and spec.engine == "vllm":
        check_vllm(spec)
    if here and spec.engine == "openvino":
        check_openvino(spec)
    if here and spec.model is not None:
        model = ensure(spec.model, config.models, paths, progress)
        if isinstance(engine, VllmEngine) and model.path is not None:
            engine.check_fit(model.path)


def _code_digest(target: Target) -> str:
    """Of the Python files beside the module, so that replicas that import it are replaced when one of them changes."""
    digest = hashlib.sha256()
    if target.folder is not None:
        for path in sorted(target.folder.glob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _end_with_parent(lifeline: int) -> None:
    """End this process and its children when the command that started it is gone: a killed command says no more than that."""

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGTERM)

    threading.Thread(target=watch, name="patchwork-lifeline", daemon=True).start()


def main(folder: Path, lifeline: int | None = None) -> int:
    """Progress goes to the real standard output as JSON lines; what the user's module prints goes to standard error."""
    if lifeline is not None:
        _end_with_parent(lifeline)
    progress = JsonProgress(sys.stdout)
    sys.stdout = sys.stderr
    request = BuildRequest(**json.loads((folder / "request.json").read_text(encoding="utf-8")))
    try:
        document = build(request, folder, progress)
    except (AdapterError, ServingError) as error:
        document = {"error": {"type": type(error).__name__, "message": redacted(str(error))}}
    except Exception as error:  # noqa: BLE001  the loop top of a process: the parent tells the person
        sys.stderr.write(redacted_traceback(error))
        document = {"error": {"type": type(error).__name__, "message": redacted(str(error))}}
    partial = folder / "result.partial"
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.chmod(0o600)  # a database URL may hold a password
    partial.rename(folder / "result.json")
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
