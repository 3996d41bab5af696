"""The connector behind ``PatchworkRunnable`` and ``PatchworkQueryEngine``: a chain that stays in its own program, on components elsewhere.

With the name of a deployed application, its components are used; otherwise components are started for the chain, on the local Ray of this
home, on ``RAY_ADDRESS`` or on the Ray that the program is connected to, and live as long as the programs that use them. Leaves that only
the user's own object can serve stay in the program, because no other process could import what may be a notebook.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.trace import get_current_span

from patchwork_adapters import sites, stores
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.chains import Framework, framework_of
from patchwork_adapters.errors import DeadlinePassed, NoChainFound
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.walk import Leaf, Walk, find_leaves
from patchwork_serving import servers, shared_components
from patchwork_serving.assign import Assigned, assign
from patchwork_serving.bundle import Bundle, captured_environment
from patchwork_serving.config import Config, Paths, load_config
from patchwork_serving.errors import DeployError
from patchwork_serving.exporting import export_stores
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.joining import assignments_in
from patchwork_serving.per_request import CallsPerRequest
from patchwork_serving.progress import SilentProgress
from patchwork_serving.release import Collection, Release
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.serve_control import Cluster
from patchwork_serving.sharing import Sharing
from patchwork_serving.state import AppState, StateStore
from patchwork_serving.taken_apart import external_calls
from patchwork_serving.telemetry import RequestTelemetry, Tracing, open_tracing
from patchwork_serving.telemetry.propagation import traceparent_of
from patchwork_serving.transport import RayTransport, serve_handles, serve_replicas

log = logging.getLogger(__name__)


class LocalConnection:
    """Implements ``patchwork_adapters.connection.Connection``."""

    def __init__(
        self, name: str, walk: Walk, swapped: Swap, bridge: Bridge, tracing: Tracing, telemetry: RequestTelemetry,
        let_go: Callable[[], None],
    ) -> None:  # fmt: skip
        self.name = name
        self._swap = swapped
        self._forget_sites = sites.install(walk)
        self._bridge = bridge
        self._tracing = tracing
        self._telemetry = telemetry
        self._let_go = let_go
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        atexit.register(self.close)

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._swap.active(), sites.beginning_here():
            yield

    @contextmanager
    def trace(self) -> Iterator[str | None]:
        """The root span of one request, below the span that the program has open; gives its traceparent."""
        if not self._tracing.exporting:
            yield None
            return
        handle = self._telemetry.start_request(self.name, traceparent_of(get_current_span()), {})
        try:
            yield handle.traceparent
        except BaseException as error:
            handle.end("missed" if isinstance(error, DeadlinePassed) else "failed", type(error).__name__)
            raise
        handle.end("attained")

    def close(self) -> None:
        with self._lock:
            if self._closed or os.getpid() != self._pid:  # a fork of the program has a copy of this, and no say
                return
            self._closed = True
        atexit.unregister(self.close)
        self._swap.undo()
        self._forget_sites()
        self._bridge.close()
        self._tracing.close()
        self._let_go()


def connect(chain: Any, *, name: str | None, slo_s: float | None) -> LocalConnection:
    """Find the chain's leaves and let components answer them; takes seconds. Raises AdapterError and ServingError.

    Of a ``patchwork.yaml`` in the working directory, ``models``, ``store`` and ``env`` count; ``components`` is about a deployed module.
    """
    framework = framework_of(chain, alone=True)
    if framework is None:
        raise NoChainFound(f"a {type(chain).__name__} is not a chain of LangChain, LangGraph or LlamaIndex")
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise DeployError(f"name {name!r}: use lower-case letters, digits, - and _, at most 63")
    paths = Paths.from_env()
    config = load_config(None, beside=Path.cwd()).model_copy(update={"components": {}})
    walk = find_leaves(chain)
    assigned = assign(walk.leaves, config, ImportRouter(config, paths).find)
    wanted = _Wanted(framework, walk, assigned, config, paths, name, slo_s)
    if not wanted.away:
        log.warning("no part of this chain can run as a component; it runs in this process, as before")
        return _connected(wanted, wanted.release(()), {}, lambda: None)
    # in a thread: Ray and the export block and run loops of their own, and the caller may be on an event loop
    with ThreadPoolExecutor(1, thread_name_prefix="patchwork-connect") as pool:
        return pool.submit(_connect, wanted).result()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A chain that asks for components."""

    framework: Framework
    walk: Walk
    assigned: Assigned
    config: Config
    paths: Paths
    name: str | None
    slo_s: float | None

    @property
    def away(self) -> list[Leaf]:
        """The leaves that components can serve."""
        ways = {path: a.way for path, a in self.assigned.placed.assignments.items()}
        return [leaf for leaf in self.walk.leaves if ways.get(leaf.path) in ("protocol", "engine")]

    def release(self, collections: Sequence[Collection], dsn: str | None = None) -> Release:
        """Programs that want the same share one application, and others do not."""
        specs = tuple(spec for spec in self.assigned.specs if spec.way != "own")
        facts = json.dumps(
            [
                [[s.id, s.engine, s.model, dict(s.engine_args)] for s in specs],
                [c.name for c in collections],
                self.config.model_dump(mode="json"),
                hashlib.sha256((dsn or "").encode()).hexdigest(),
            ],
            default=str,
        )
        name = self.name or f"wrapped-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        graph = ComponentGraph("", self.framework, self.assigned.placed.components)
        return Release(name, "", "", graph, specs, tuple(collections), slo_s=self.slo_s)

    def collection_prefix(self) -> str:
        digests = [stores.fingerprint(leaf.spec, leaf.obj) for leaf in self.away if leaf.spec.export is not None]
        return self.name or f"wrapped-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}"


def _connect(wanted: _Wanted) -> LocalConnection:
    store = StateStore(wanted.paths.state)
    with store.lock(shared_components.LOCK_TIMEOUT_S):
        deployed = store.find(wanted.name) if wanted.name is not None else None
        if deployed is not None and not deployed.is_for_programs():
            return _join(wanted, deployed)
        undone = nullcontext() if os.environ.get("RAY_ADDRESS") else servers.undone_on_failure(wanted.paths)
        with undone:
            return _start(wanted)


def _join(wanted: _Wanted, app: AppState) -> LocalConnection:
    """Use the components of a deployed application, which stays as it is."""
    assignments = assignments_in(app, wanted.away, wanted.assigned)
    cluster = Cluster(app.ray_address or "", shared_components.auth_env(app, wanted.paths))
    with _session(cluster):
        shared_components.attach(wanted.paths, app)
    specs = {spec.id: spec for spec in wanted.assigned.specs}
    planned = wanted.assigned.placed.assignments
    used = [dataclasses.replace(specs[planned[path].component], id=a.component) for path, a in assignments.items()]
    hosted = [spec for spec in wanted.assigned.specs if spec.way == "external"]
    release = dataclasses.replace(wanted.release(()), name=app.name, components=(*used, *hosted))
    return _connected(wanted, release, assignments, lambda: shared_components.detach(wanted.paths, app.name))


def _start(wanted: _Wanted) -> LocalConnection:
    """Start components, or use those that other programs have started for the same."""
    remote = shared_components.session.is_elsewhere()
    with ThreadPoolExecutor(2) as pool:  # Ray starts while the stores are copied
        starting = pool.submit(shared_components.session.cluster, wanted.paths)
        exporting = pool.submit(
            export_stores, wanted.away, wanted.collection_prefix(), wanted.config, wanted.paths, over_tcp=remote,
            progress=SilentProgress(),
        )  # fmt: skip
        cluster = starting.result()
        dsn, collections = exporting.result()
    release = wanted.release(collections, dsn)
    with _session(cluster):
        shared_components.start(wanted.paths, cluster, _bundle(wanted, release, dsn, remote=remote))
    return _connected(
        wanted, release, _own_assignments(wanted, collections),
        lambda: shared_components.detach(wanted.paths, release.name),
    )  # fmt: skip


@contextmanager
def _session(cluster: Cluster) -> Iterator[None]:
    """Connected to Ray from here on, unless the block raises."""
    shared_components.session.hold(cluster)
    try:
        yield
    except BaseException:
        shared_components.session.release()
        raise


def _bundle(wanted: _Wanted, release: Release, dsn: str | None, *, remote: bool) -> Bundle:
    paths = wanted.paths
    places = {"PATCHWORK_HOME": str(paths.home), "PATCHWORK_CACHE": str(paths.cache)}
    captured = captured_environment(os.environ, wanted.config.env)
    env = {
        name: value for name, value in captured.items() if name not in places
    }  # a node elsewhere has its own folders
    embedded = dsn is not None and "DATABASE_URL" not in os.environ
    return Bundle(
        release, env=env if remote else {**env, **places}, dsn=dsn,
        postgres_home=str(paths.postgres) if embedded and not remote else None, config=wanted.config,
    )  # fmt: skip


def _connected(
    wanted: _Wanted, release: Release, assignments: Mapping[str, Assignment], let_go: Callable[[], None]
) -> LocalConnection:
    tracing = open_tracing(release.name, "program")
    telemetry = RequestTelemetry(tracing, {spec.id: spec for spec in release.components})
    transport = RayTransport(
        serve_handles(release.name), telemetry, scheduling=Scheduling(replicas_of=serve_replicas(release.name)),
        sharing=Sharing({spec.id: spec for spec in release.components}, llm=wanted.config.scheduler.share_llm_calls),
        per_request=CallsPerRequest(wanted.config.scheduler.calls_per_request),
    )  # fmt: skip
    bridge = Bridge(transport)
    hosted = {path: a for path, a in wanted.assigned.placed.assignments.items() if a.way == "external"}
    leaves = [leaf for leaf in wanted.walk.leaves if leaf.path in assignments or leaf.path in hosted]
    swapped = swap(
        leaves,
        {**hosted, **assignments},
        bridge,
        always=False,
        external=external_calls(release, bridge, telemetry),
        late_classes=wanted.walk.late_classes,
    )
    for skipped in swapped.skipped:
        log.warning("%s stays in this process: %s", skipped.where, skipped.why)
    return LocalConnection(release.name, wanted.walk, swapped, bridge, tracing, telemetry, let_go)


def _own_assignments(wanted: _Wanted, collections: Sequence[Collection]) -> dict[str, Assignment]:
    by_leaf = {c.leaf: c for c in collections}
    found = {}
    for leaf in wanted.away:
        assignment = wanted.assigned.placed.assignments[leaf.path]
        collection = by_leaf.get(leaf.path)
        if collection is not None:
            assignment = dataclasses.replace(assignment, collection=collection.name, fingerprint=collection.fingerprint)
        found[leaf.path] = assignment
    return found
