"""The connector behind ``PatchworkRunnable`` and ``PatchworkQueryEngine``: a chain that stays in its own program, on deployed components.

Connects to the local Ray of this home, or to ``RAY_ADDRESS``, or starts one. Components live as long as the connection; leaves that only
the user's own object can serve stay in the program, because no other process could import what may be a notebook.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from patchwork_adapters import stores
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.chains import framework_of
from patchwork_adapters.errors import NoChainFound
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.walk import Leaf, find_leaves
from patchwork_serving import ray_cluster, serve_control
from patchwork_serving.assign import Assigned, assign
from patchwork_serving.bundle import Bundle, captured_environment
from patchwork_serving.config import Paths, load_config
from patchwork_serving.exporting import export_stores
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.progress import SilentProgress
from patchwork_serving.release import Collection, Release
from patchwork_serving.state import StateStore
from patchwork_serving.transport import RayTransport, serve_handles

log = logging.getLogger(__name__)
READY_TIMEOUT_S = 300.0


class LocalConnection:
    """Implements ``patchwork_adapters.connection.Connection``."""

    def __init__(self, name: str, swapped: Swap, bridge: Bridge, *, started_ray: bool, paths: Paths) -> None:
        self.name = name
        self._swap = swapped
        self._bridge = bridge
        self._started_ray = started_ray
        self._paths = paths
        self._lock = threading.Lock()
        self._closed = False
        atexit.register(self.close)

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._swap.active():
            yield

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._swap.undo()
        self._bridge.close()
        serve_control.delete_app(self.name)
        if self._started_ray:
            serve_control.disconnect()
            if not StateStore(self._paths.state).apps():  # somebody may have deployed onto it meanwhile
                _stop_servers(self._paths)


def connect(chain: Any, *, name: str | None, slo_s: float | None) -> LocalConnection:
    """Deploy the components of a chain and swap its leaves; takes seconds. Raises AdapterError and ServingError."""
    framework = framework_of(chain, alone=True)
    if framework is None:
        raise NoChainFound(f"a {type(chain).__name__} is not a chain of LangChain, LangGraph or LlamaIndex")
    paths = Paths.from_env()
    config = load_config(None)
    walk = find_leaves(chain)
    assigned = assign(walk.leaves, config, ImportRouter(config, paths).find)
    away = [leaf for leaf in walk.leaves if _travels(leaf, assigned)]
    # in a thread, because the caller may be on an event loop
    with ThreadPoolExecutor(1) as pool:
        prefix = name or f"wrapped-{_content(away)}"
        exporting = pool.submit(export_stores, away, prefix, config, paths, over_tcp=False, progress=SilentProgress())
        dsn, collections = exporting.result()
    release = _release(name, framework, assigned, collections, slo_s)
    cluster, started = _cluster(paths)
    serve_control.connect(cluster)
    serve_control.start_serve(cluster)
    home = str(paths.postgres) if dsn and "DATABASE_URL" not in os.environ and "RAY_ADDRESS" not in os.environ else None
    places = {"PATCHWORK_HOME": str(paths.home), "PATCHWORK_CACHE": str(paths.cache)}
    bundle = Bundle(
        release,
        env={**captured_environment(os.environ, config.env), **places},
        dsn=dsn,
        postgres_home=home,
        config=config,
    )
    try:
        serve_control.run_app(bundle, cluster, SilentProgress(), route_prefix=None, timeout_s=READY_TIMEOUT_S)
    except BaseException:
        serve_control.disconnect()
        if started:
            _stop_servers(paths)
        raise
    bridge = Bridge(RayTransport(serve_handles(release.name)))
    swapped = swap(away, _assignments(away, assigned, collections), bridge, always=False)
    return LocalConnection(release.name, swapped, bridge, started_ray=started, paths=paths)


def _content(leaves: Sequence[Leaf]) -> str:
    """Programs that hold the same stores share their collections, and others do not."""
    digests = [stores.fingerprint(leaf.spec, leaf.obj) for leaf in leaves if leaf.spec.export is not None]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


def _travels(leaf: Leaf, assigned: Assigned) -> bool:
    assignment = assigned.placed.assignments.get(leaf.path)
    return assignment is not None and assignment.way in ("protocol", "engine")


def _assignments(
    leaves: Sequence[Leaf], assigned: Assigned, collections: Sequence[Collection]
) -> dict[str, Assignment]:
    by_leaf = {c.leaf: c for c in collections}
    found = {}
    for leaf in leaves:
        assignment = assigned.placed.assignments[leaf.path]
        collection = by_leaf.get(leaf.path)
        if collection is not None:
            fingerprint = stores.fingerprint(leaf.spec, leaf.obj)
            assignment = Assignment(assignment.component, assignment.way, collection.name, fingerprint)
        found[leaf.path] = assignment
    return found


def _release(
    name: str | None, framework: str, assigned: Assigned, collections: Sequence[Collection], slo_s: float | None
) -> Release:
    specs = tuple(spec for spec in assigned.specs if spec.way in ("protocol", "engine"))
    facts = json.dumps(
        [[s.id, s.engine, s.model, dict(s.engine_args)] for s in specs] + [c.name for c in collections], default=str
    )
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    graph = ComponentGraph("", framework, assigned.placed.components)
    return Release(name or f"wrapped-{digest}", "", "", graph, specs, tuple(collections), slo_s=slo_s)


def _cluster(paths: Paths) -> tuple[serve_control.Cluster, bool]:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return serve_control.Cluster(address, {}), False
    found = ray_cluster.running(paths)
    if found is not None:
        return serve_control.Cluster(found.address, ray_cluster.auth_env(paths), http_port=found.http_port), False
    found = ray_cluster.start(paths, "127.0.0.1", ray_cluster.free_port())
    return serve_control.Cluster(found.address, ray_cluster.auth_env(paths), http_port=found.http_port), True


def _stop_servers(paths: Paths) -> None:
    from patchwork_serving.deploy import stop_servers

    stop_servers(paths)
