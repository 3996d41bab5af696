"""Components that programs use through wrappers: started by the first that needs them, stopped with the last that leaves.

Each such application has an entry in the state folder that names the programs, so that ``status`` shows it, ``down`` does not pull Ray
away under a program, and whoever leaves last stops the servers. A guard process (:mod:`patchwork_serving.guard`) leaves for a program that
was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime

from patchwork_serving import ray_cluster, serve_control, servers
from patchwork_serving.bundle import Bundle
from patchwork_serving.config import Paths
from patchwork_serving.errors import DeployError
from patchwork_serving.progress import SilentProgress
from patchwork_serving.serve_control import Cluster
from patchwork_serving.state import AppState, OwnProcess, StateStore
from patchwork_serving.telemetry.setup import exporter_names

READY_TIMEOUT_S = 300.0
#: Another program may be starting the same components, and models are fetched at the first start.
LOCK_TIMEOUT_S = 600.0

_lock = threading.RLock()
#: connections of this process by application: the last one leaves
_open: Counter[str] = Counter()
_guards: dict[str, subprocess.Popen[bytes]] = {}


class Session:
    """This process's connection to Ray, shared by the wrappers in it; one that the program itself had opened is left open."""

    def __init__(self) -> None:
        self._holders = 0
        self._is_ours = True

    def cluster(self, paths: Paths) -> Cluster:
        """Where components run: the program's own Ray, ``RAY_ADDRESS``, or the local Ray of this home, started if need be."""
        if self._is_the_programs():
            import ray

            return Cluster(ray.get_runtime_context().gcs_address, {}, http_port=ray_cluster.free_port())
        address = os.environ.get("RAY_ADDRESS")
        if address:
            return Cluster(address, {}, serve_control.remote_runtime_env(None, {}))
        found = ray_cluster.running(paths) or ray_cluster.start(paths, "127.0.0.1", ray_cluster.free_port())
        return Cluster(found.address, ray_cluster.auth_env(paths), http_port=found.http_port)

    def is_elsewhere(self) -> bool:
        """Whether components may run on other machines than this: a Ray that we did not start."""
        return bool(os.environ.get("RAY_ADDRESS")) or self._is_the_programs()

    def _is_the_programs(self) -> bool:
        ray = sys.modules.get("ray")
        return ray is not None and ray.is_initialized() and (self._holders == 0 or not self._is_ours)

    def hold(self, cluster: Cluster) -> None:
        with _lock:
            ray = sys.modules.get("ray")
            if self._holders <= 0:
                self._holders = 0
                self._is_ours = ray is None or not ray.is_initialized()
            serve_control.connect(cluster)
            self._holders += 1

    def release(self) -> None:
        """Closes it after its last holder."""
        with _lock:
            self._holders -= 1
            if self._holders <= 0 and self._is_ours:
                serve_control.disconnect()
                self._is_ours = False


session = Session()


def start(paths: Paths, cluster: Cluster, bundle: Bundle) -> None:
    """Run the bundle's application, or use it where it runs already, and stay on it until :func:`detach`.

    The caller holds the session and the state's lock. DeployError when it cannot start, or when one that serves HTTP has its name.
    """
    name = bundle.release.name
    known = StateStore(paths.state).find(name)
    if known is not None and not known.is_for_programs():
        raise DeployError(f"an application named {name} is deployed; take another name, or `patchwork down {name}`")
    serve_control.start_serve(cluster)
    serve_control.run_app(bundle, cluster, SilentProgress(), route_prefix=None, timeout_s=READY_TIMEOUT_S)
    ray = ray_cluster.running(paths)
    if ray is not None and ray.address != cluster.address:
        ray = None  # it runs elsewhere
    app = AppState(
        name=name, target="", url="", created_at=datetime.now(UTC).isoformat(timespec="seconds"), slo_s=bundle.release.slo_s,
        ray_address=cluster.address, ray_dir=ray.temp_dir if ray else None, processes=(ray.process,) if ray else (),
        clients=known.living_clients() if known is not None else (),
    )  # fmt: skip
    attach(paths, app)


def attach(paths: Paths, app: AppState) -> None:
    """Note in the state that this program uses the application; the caller holds the state's lock."""
    me = OwnProcess.of(os.getpid(), "client")
    others = tuple(client for client in app.living_clients() if client != me)
    StateStore(paths.state).save(dataclasses.replace(app, clients=(*others, me)))
    with _lock:
        _open[app.name] += 1
        if app.name not in _guards:
            _guards[app.name] = _guard(paths, app.name, me)


def detach(paths: Paths, name: str) -> None:
    """One connection of this process less; after its last one the program leaves the application, and closes its session."""
    with _lock:
        if _open[name] > 1:
            _open[name] -= 1
            session.release()
            return
    with StateStore(paths.state).lock(LOCK_TIMEOUT_S):
        with _lock:
            _open[name] -= 1
            is_used = _open[name] > 0  # another thread connected meanwhile
            guard = None if is_used else _guards.pop(name)
        if guard is None:
            session.release()
            return
        _leave(paths, name, OwnProcess.of(os.getpid(), "client"), session)
    guard.terminate()
    guard.wait()


def leave(paths: Paths, name: str, client: OwnProcess) -> None:
    """Take a program that is gone off an application."""
    with StateStore(paths.state).lock(LOCK_TIMEOUT_S):
        _leave(paths, name, client, Session())


def _leave(paths: Paths, name: str, client: OwnProcess, held: Session) -> None:
    """Stop the application with its last program, and the servers with the last application."""
    store = StateStore(paths.state)
    app = store.find(name)
    is_last = False
    try:
        is_last = all(a.name == name or a.is_stale() or a.is_deserted() for a in store.apps())
        if app is None:
            return  # taken down by hand; the servers were left to us
        others = tuple(other for other in app.living_clients() if other != client)
        if others or not app.is_for_programs():
            is_last = False
            store.save(dataclasses.replace(app, clients=others))
            return
        # Ray ends all replicas when it ends, and faster; replicas that export traces are given the time to send them
        if not (is_last and app.processes) or exporter_names(os.environ):
            _delete(app, paths)
        store.remove(name)
    finally:
        held.release()  # before Ray ends: it takes connected processes with it
        if is_last:
            servers.stop(paths)
            for deserted in [a for a in store.apps() if a.is_deserted()]:
                store.remove(deserted.name)


def _delete(app: AppState, paths: Paths) -> None:
    if app.ray_address is None or app.is_stale():
        return
    with contextlib.suppress(DeployError):
        serve_control.connect(Cluster(app.ray_address, auth_env(app, paths)))
        serve_control.delete_app(app.name)


def auth_env(app: AppState, paths: Paths) -> dict[str, str]:
    """What a process needs to talk to the application's Ray."""
    ray = ray_cluster.running(paths)
    return ray_cluster.auth_env(paths) if ray is not None and ray.address == app.ray_address else {}


def _guard(paths: Paths, name: str, client: OwnProcess) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "patchwork_serving.guard", name, str(client.pid), str(client.started)]
    places = {"PATCHWORK_HOME": str(paths.home), "PATCHWORK_CACHE": str(paths.cache)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, env={**os.environ, **places}, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
