"""Talking to Ray Serve from the command line: connect, run an application, wait until it serves, delete it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchwork_serving import release_board
from patchwork_serving.bundle import Bundle
from patchwork_serving.errors import DeployError
from patchwork_serving.progress import ProgressSink
from patchwork_serving.release import Release

NAMESPACE = "patchwork"
POLL_S = 0.25
#: A cluster that is there answers within a few seconds, even on a busy machine.
CONNECT_S = 60.0
#: What a remote working directory must not carry: large, secret, or made again by the node itself.
EXCLUDES = [
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    "*.pyc",
    ".env",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    "*.gguf",
]


#: Of every process that speaks with Serve, before it imports it.
SERVE_ENV = {
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # from its HTTP proxy to the ingress by gRPC, as our own calls (``transport``)
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    # of a leaf call or its reply, in bytes: as much as gRPC can have, where Serve allows 4 MB (two thousand vectors as JSON are more)
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to connect, and what travels there."""

    address: str
    env: dict[str, str]  #: for this process, before Ray is imported
    runtime_env: dict[str, Any] | None = None  #: of the job; None on our own machine
    http_host: str = "127.0.0.1"
    http_port: int = 8000


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Connect this process to the cluster for a block; DeployError when nothing answers there."""
    connect(cluster)
    try:
        yield
    finally:
        disconnect()


def connect(cluster: Cluster, given_up: threading.Event | None = None) -> None:
    """Idempotent; DeployError when nothing answers there within ``CONNECT_S``, or soon after ``given_up`` is set."""
    os.environ.update(cluster.env)
    for name, value in SERVE_ENV.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve  # noqa: F401  its import sets the level of its logger, which is set again below

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    _reread_authentication()
    outcome: Future[None] = Future()
    # in a thread that may be left behind: towards a port where something else than Ray listens, Ray retries without end
    threading.Thread(target=_init, args=(cluster, outcome), name="patchwork-ray-init", daemon=True).start()
    deadline = time.monotonic() + CONNECT_S
    while not outcome.done() and time.monotonic() < deadline and not (given_up is not None and given_up.is_set()):
        wait([outcome], timeout=0.1)
    try:
        outcome.result(timeout=0)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DeployError(
            f"no Ray cluster answers at {cluster.address}: {_first_line(error)}; check RAY_ADDRESS"
        ) from error
    except TimeoutError:
        raise DeployError(
            f"no Ray cluster answered at {cluster.address} within {CONNECT_S:.0f} s; check RAY_ADDRESS, and that something else "
            "does not listen there"
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    keep_signal_handlers()


def _reread_authentication() -> None:
    """Ray's core reads mode and token once, when it is loaded: a program that talked to another Ray before would show its token."""
    from ray._private.authentication.authentication_token_setup import Config
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # its stub leaves it out

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def keep_signal_handlers() -> None:
    """Put the handlers that Python knows of back in force: Ray's core replaces the system's one of SIGTERM, which then ends the process
    without its cleaning up. Does nothing outside the main thread, where handlers cannot be set."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _init(cluster: Cluster, outcome: Future[None]) -> None:
    import ray

    try:
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=cluster.runtime_env,
            configure_logging=True,
        )
    except BaseException as error:  # noqa: BLE001  carried to the thread that waits
        outcome.set_exception(error)
    else:
        outcome.set_result(None)


def start_serve(cluster: Cluster) -> None:
    """Start Serve's controller and HTTP proxies, unless they run; takes seconds, so do it while something else is waited for."""
    from ray import serve

    serve.start(http_options={"host": cluster.http_host, "port": cluster.http_port})


def disconnect() -> None:
    """Idempotent; costs nothing where Ray was never imported."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        keep_signal_handlers()  # it gives SIGTERM back to the system


def remote_runtime_env(module_dir: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    """Ray's runtime environment for a cluster that does not share our file system: the module's folder, its requirements, and us.

    ``module_dir`` is None where no replica imports the user's module.
    """
    import patchwork_adapters
    import patchwork_scheduler
    import patchwork_serving

    ours = [
        str(Path(module.__file__).parent)
        for module in (patchwork_adapters, patchwork_scheduler, patchwork_serving)
        if module.__file__
    ]
    environment: dict[str, Any] = {"py_modules": ours, "excludes": EXCLUDES}
    extra = {**extra, "env_vars": {**SERVE_ENV, **extra.get("env_vars", {})}}
    if module_dir is None:
        return {**environment, **extra}
    environment["working_dir"] = module_dir
    requirements = Path(module_dir) / "requirements.txt"
    if requirements.is_file():
        environment["pip"] = str(requirements)
    return {**environment, **extra}


def run_app(
    bundle: Bundle, cluster: Cluster, progress: ProgressSink, *, route_prefix: str | None, timeout_s: float
) -> None:
    """Run or update the application and wait until every replica is ready; DeployError with the reason when one cannot start.

    A first deployment that fails is deleted again; an update that fails leaves what ran before as it is.
    """
    from ray import serve

    if cluster.runtime_env is None:  # a cluster elsewhere may grow
        _check_fits(bundle.release)
    name = bundle.release.name
    existed = name in serve.status().applications
    _submit(bundle, route_prefix)
    try:
        _wait(lambda: serve.status().applications.get(name), name, progress, timeout_s)
    except BaseException as error:
        if not existed:
            serve.delete(name, _blocking=False)
        elif isinstance(error, DeployError):
            error.add_note(f"what ran before goes on; `patchwork logs {name}` has more")
        raise
    release_board.write(bundle.release)
    if route_prefix is not None:
        from patchwork_serving import routes

        routes.keep(bundle, route_prefix)


def _check_fits(release: Release) -> None:
    """DeployError when the components ask for more than the cluster has in all: their replicas would wait for ever."""
    import ray

    there = ray.cluster_resources()
    for resource, setting, wanted in (
        ("CPU", "num_cpus", {spec.id: spec.num_cpus * spec.replicas for spec in release.components}),
        ("GPU", "num_gpus", {spec.id: spec.num_gpus * spec.replicas for spec in release.components}),
    ):
        total = sum(wanted.values())
        if total > there.get(resource, 0.0):
            most = max(wanted, key=lambda name: wanted[name])
            raise DeployError(
                f"the components ask for {total:g} {resource}s and there are {there.get(resource, 0.0):g}, most of them for {most}; "
                f"lower its {setting} or replicas in patchwork.yaml (components.{most})"
            )


def share_root() -> None:
    """Give ``/`` to the application when it is alone, and to nobody when there are several; replicas are not touched."""
    from patchwork_serving import routes

    kept = routes.names()
    running = [name for name in app_names() if name in kept]
    for name in running:
        bundle, prefix = routes.load(name)
        wanted = "/" if len(running) == 1 else f"/{name}"
        if prefix != wanted:
            _submit(bundle, wanted)
            routes.keep(bundle, wanted)


def _submit(bundle: Bundle, route_prefix: str | None) -> None:
    # ``serve.run`` waits without telling of progress; ``_run`` is what it calls
    from ray.serve.api import _run

    from patchwork_serving.serve_app import build_app

    app = build_app(bundle, components_only=route_prefix is None)
    _run(app, _blocking=False, name=bundle.release.name, route_prefix=route_prefix)


def delete_app(name: str) -> bool:
    """Stop an application and wait for its replicas to end; False when there is none."""
    from ray import serve

    from patchwork_serving import autoscale_board, routes

    if name not in serve.status().applications:
        return False
    serve.delete(name)
    routes.forget(name)
    autoscale_board.forget(name)
    release_board.forget(name)
    return True


def app_names() -> list[str]:
    from ray import serve

    return sorted(serve.status().applications)


def _wait(status_of: Callable[[], Any], name: str, progress: ProgressSink, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    while True:
        app = status_of()
        if app is not None:
            _show(app, shown, progress)
            if app.status == "RUNNING":
                return
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise DeployError(f"{name} did not start: {_reason(app) or 'no reason was given'}")
        if time.monotonic() > deadline:
            waiting = ", ".join(d for d, state in shown.items() if state != "HEALTHY") or "the application"
            reason = (_reason(app) if app is not None else None) or "no reason was given"
            raise DeployError(f"{name} was not ready after {timeout_s:.0f} s, waiting for {waiting}: {reason}")
        time.sleep(POLL_S)


def _show(app: Any, shown: dict[str, str], progress: ProgressSink) -> None:
    for deployment, status in app.deployments.items():
        state = str(status.status.value if hasattr(status.status, "value") else status.status)
        if deployment not in shown:
            progress.begin(deployment, f"starting {deployment}")
        if state == "HEALTHY" and shown.get(deployment) != state:
            replicas = sum(status.replica_states.values())
            progress.end(deployment, f"{replicas} replica{'s' if replicas != 1 else ''}")
        shown[deployment] = state


def _reason(app: Any) -> str | None:
    """The last line of what Serve says of a deployment that failed: the exception that the replica raised."""
    messages = [app.message, *(d.message for d in app.deployments.values())]
    for message in reversed([str(m) for m in messages if m]):
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        errors = [
            line
            for line in lines
            if "Error" in line.split(":")[0] or "Exception" in line.split(":")[0] or line.startswith("patchwork_")
        ]
        if errors:
            return re.sub(r"^patchwork_\w+\.errors\.\w+: ", "", errors[-1])
        if lines:
            return lines[-1]
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
