"""Deploying: from a TARGET and options to an application that answers, and back to nothing left running."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from patchwork_adapters.target import parse_target
from patchwork_scheduler.plan_model import Plan
from patchwork_serving import build_process, preflight, ray_cluster, serve_control, servers
from patchwork_serving.applying import apply_plan
from patchwork_serving.bundle import Bundle, captured_environment
from patchwork_serving.config import Config, Paths, load_config
from patchwork_serving.errors import ConfigError, DeployError, UnknownApp
from patchwork_serving.progress import ProgressSink, SilentProgress, step
from patchwork_serving.release import Release
from patchwork_serving.state import AppState, OwnProcess, StateStore

DEFAULT_PORT = 8000
READY_TIMEOUT_S = 300.0
WATCH_EVERY_S = 0.25

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What the command line says; None means: from ``patchwork.yaml``, or the default."""

    target: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  #: 0 takes a free one
    slo_s: float | None = None
    config_path: Path | None = None
    replicas: int | None = None
    plan: Plan | None = None
    detach: bool = False


class Deployment:
    """An application that runs. ``stop`` is idempotent."""

    def __init__(self, state: AppState, release: Release, paths: Paths) -> None:
        self.name = state.name
        self.url = state.url
        self.state = state
        self.release = release
        self._paths = paths
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Block until :meth:`stop` is called from elsewhere; KeyboardInterrupt passes through."""
        while not self._stopped.wait(0.5):
            pass

    def stop(self, progress: ProgressSink | None = None) -> None:
        if self._stopped.is_set():
            return
        self._stopped.set()
        with contextlib.suppress(UnknownApp):
            down(self.name, progress or SilentProgress(), self._paths)


def start(options: DeployOptions, progress: ProgressSink, paths: Paths | None = None) -> Deployment:
    """Deploy and wait until it serves. Raises AdapterError and ServingError; whatever this call started is stopped again then."""
    paths = paths or Paths.from_env()
    target = parse_target(options.target)
    config = load_config(options.config_path, beside=target.folder)
    name = app_name(options, config, target.module)
    with StateStore(paths.state).lock(), servers.undone_on_failure(paths):
        preflight.check(config, paths, os.environ)
        ray = ray_cluster.running(paths)
        if ray is None and "RAY_ADDRESS" not in os.environ:
            port = options.port or ray_cluster.free_port(options.host)
            ray_cluster.check_port(options.host, port)
            options = dataclasses.replace(options, port=port)
        known = StateStore(paths.state).find(name)
        if known is not None and known.is_for_living_programs():
            raise DeployError(f"programs use components under the name {name}; choose another with --name")
        return _start(options, config, name, progress, paths)


def prepare(
    options: DeployOptions, config: Config, name: str, progress: ProgressSink, paths: Paths
) -> tuple[Bundle, serve_control.Cluster]:
    """What will run, and where, with this process connected there; nothing of the chain runs yet."""
    remote = os.environ.get("RAY_ADDRESS")
    given_up = threading.Event()

    def give_up() -> None:
        given_up.set()
        build_process.cancel_running()

    cluster, built = _side_by_side(  # the builder imports the user's module while Ray starts
        lambda: _connected(remote, options, config, progress, paths, given_up),
        lambda: build_process.build(_request(options, config, name, remote), progress, paths, given_up),
        give_up,
    )
    release = _release(built, options, config, remote)
    return _bundle(release, built, config, paths, remote), cluster


def _start(options: DeployOptions, config: Config, name: str, progress: ProgressSink, paths: Paths) -> Deployment:
    try:
        bundle, cluster = prepare(options, config, name, progress, paths)
        others = [n for n in serve_control.app_names() if n != name]
        prefix = f"/{name}" if others else "/"
        serve_control.run_app(bundle, cluster, progress, route_prefix=prefix, timeout_s=READY_TIMEOUT_S)
        serve_control.share_root()
    finally:
        serve_control.disconnect()
    state = _state(options, bundle.release, cluster, bundle.dsn, paths)
    StateStore(paths.state).save(state)
    return Deployment(state, bundle.release, paths)


def down(name: str | None, progress: ProgressSink, paths: Paths | None = None) -> list[str]:
    """Stop one application, or all but those that programs use through wrappers; with the last one, the servers that were started for it.

    Servers that a program uses are left to it: it stops them when it ends. Returns the names stopped.
    """
    paths = paths or Paths.from_env()
    store = StateStore(paths.state)
    with store.lock(timeout_s=60.0):
        apps = [store.load(name)] if name else [app for app in store.apps() if not app.is_for_living_programs()]
        left = [app for app in store.apps() if app.name not in {a.name for a in apps}]
        for app in apps:
            with step(progress, f"down-{app.name}", f"stopping {app.name}"):
                _stop_app(app, paths)
                store.remove(app.name)
        users = sorted({client.pid for app in (*apps, *left) for client in app.living_clients()})
        if users:
            progress.begin("servers", "leaving Ray and Postgres to the programs that use them")
            progress.end("servers", ", ".join(f"process {pid}" for pid in users))
        elif not left and servers.running(paths):
            with step(progress, "servers", "stopping Ray and Postgres"):
                servers.stop(paths)
        elif not left:
            servers.stop(paths)  # the files of servers that were killed
    return [app.name for app in apps]


def app_name(options: DeployOptions, config: Config, module: str) -> str:
    """The application's name: ``--name``, ``patchwork.yaml``, or the module's own, made fit for a URL."""
    if options.name:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", options.name):
            raise ConfigError(f"--name {options.name!r}: use lower-case letters, digits, - and _, at most 63")
        return options.name
    if config.name:
        return config.name
    made = re.sub(r"[^a-z0-9_-]+", "-", module.rsplit(".", 1)[-1].lower()).strip("-_")[:63]
    return made or "app"


def _request(options: DeployOptions, config: Config, name: str, remote: str | None) -> build_process.BuildRequest:
    return build_process.BuildRequest(
        target=options.target,
        name=name,
        config=config.model_dump(mode="json"),
        database_over_tcp=remote is not None,
        planned=None if options.plan is None else tuple(c.id for c in options.plan.components),
    )


def _environment(config: Config, paths: Paths, remote: str | None) -> dict[str, str]:
    env = captured_environment(os.environ, config.env)
    places = {"PATCHWORK_HOME": str(paths.home), "PATCHWORK_CACHE": str(paths.cache)}
    if remote:
        return {k: v for k, v in env.items() if k not in places}  # a node has its own folders
    return {**env, **places}


def _release(built: build_process.Built, options: DeployOptions, config: Config, remote: str | None) -> Release:
    release = built.release if options.plan is None else apply_plan(built.release, options.plan)
    return dataclasses.replace(
        release,
        slo_s=options.slo_s or config.slo_s or (options.plan.slo_s if options.plan else None),
        ingress_replicas=options.replicas or config.ingress_replicas,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        # Ray unpacks the folder into each process's working directory
        module_dir="" if remote else built.release.module_dir,
    )


def _bundle(release: Release, built: build_process.Built, config: Config, paths: Paths, remote: str | None) -> Bundle:
    embedded = built.dsn is not None and "DATABASE_URL" not in os.environ
    return Bundle(
        release,
        record=built.record,
        env=_environment(config, paths, remote),
        dsn=built.dsn,
        postgres_home=str(paths.postgres) if embedded and not remote else None,
        api_key=os.environ.get("PATCHWORK_API_KEY") or None,
        config=config,
    )


def _side_by_side(first: Callable[[], A], second: Callable[[], B], give_up: Callable[[], None]) -> tuple[A, B]:
    """Both results. When one fails the other is given up, and the first error is raised once both have ended."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        try:
            pending: set[Future[Any]] = {one, two}
            while pending:
                done, pending = wait(pending, timeout=WATCH_EVERY_S, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                serve_control.keep_signal_handlers()
        except BaseException:
            give_up()
            raise
    return one.result(), two.result()


def _connected(
    remote: str | None,
    options: DeployOptions,
    config: Config,
    progress: ProgressSink,
    paths: Paths,
    given_up: threading.Event,
) -> serve_control.Cluster:
    """Ray and Serve running and this process connected to them; DeployError soon after ``given_up`` is set."""
    cluster = _remote_cluster(remote, options, config) if remote else _local_ray(options, progress, paths, given_up)
    if given_up.is_set():
        raise DeployError("the deployment was given up")
    with step(progress, "serve", "starting Ray Serve"):
        serve_control.connect(cluster, given_up)
        serve_control.start_serve(cluster)
    return cluster


def _local_ray(
    options: DeployOptions, progress: ProgressSink, paths: Paths, given_up: threading.Event
) -> serve_control.Cluster:
    ray = ray_cluster.running(paths)
    if ray is None:
        with step(progress, "ray", "starting Ray"):
            ray = ray_cluster.start(paths, options.host, options.port, given_up=given_up)
    elif options.port not in (0, ray.http_port, DEFAULT_PORT):
        raise DeployError(
            f"applications of this machine already listen on port {ray.http_port}, and share it; leave --port out, or run `patchwork down`"
        )
    return serve_control.Cluster(
        ray.address, ray_cluster.auth_env(paths), http_host=ray.http_host, http_port=ray.http_port
    )


def _remote_cluster(address: str, options: DeployOptions, config: Config) -> serve_control.Cluster:
    folder = parse_target(options.target).folder
    runtime_env = serve_control.remote_runtime_env(str(folder), dict(config.runtime_env))
    return serve_control.Cluster(
        address, {}, runtime_env, http_host=options.host, http_port=options.port or DEFAULT_PORT
    )


def _state(
    options: DeployOptions, release: Release, cluster: serve_control.Cluster, dsn: str | None, paths: Paths
) -> AppState:
    ray = ray_cluster.running(paths)
    host = "127.0.0.1" if cluster.http_host in ("0.0.0.0", "::") else cluster.http_host
    # its own path works whether or not other applications come and go; ``/`` only while it is alone
    url = f"http://{host}:{cluster.http_port}/{release.name}"
    processes: list[OwnProcess] = [ray.process] if ray is not None and not cluster.runtime_env else []
    return AppState(
        name=release.name,
        target=options.target,
        url=url,
        created_at=release.created_at,
        slo_s=release.slo_s,
        ray_address=cluster.address,
        ray_dir=ray.temp_dir if ray is not None and not cluster.runtime_env else None,
        postgres=_without_password(dsn),
        processes=tuple(processes),
        command=None if options.detach else OwnProcess.of(os.getpid(), "deploy"),
    )


def _without_password(dsn: str | None) -> str | None:
    if dsn is None:
        return None
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    parts = {k: v for k, v in conninfo_to_dict(dsn).items() if k not in ("password", "passfile")}
    return make_conninfo("", **parts)


def _stop_app(app: AppState, paths: Paths) -> None:
    if app.processes and app.is_stale():
        return
    ray = ray_cluster.running(paths)
    if app.ray_address is None:
        return
    env = ray_cluster.auth_env(paths) if ray is not None and ray.address == app.ray_address else {}
    with contextlib.suppress(DeployError), serve_control.connected(serve_control.Cluster(app.ray_address, env)):
        serve_control.delete_app(app.name)
        serve_control.share_root()
