"""The local Ray of one PATCHWORK_HOME: started on demand, shared by its applications, stopped with the last of them.

``ray stop`` ends every Ray on a machine, so it is never used: we keep the one process that we started (``ray start --block``), which
ends its own children when it is told to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_serving.config import Paths
from patchwork_serving.errors import DeployError, PortTaken
from patchwork_serving.serve_control import SERVE_ENV
from patchwork_serving.state import OwnProcess

START_TIMEOUT_S = 60.0
#: How long Ray's processes may end by themselves. The applications are gone by then: what they would still tidy up lies in a folder
#: that is removed.
GRACE_S = 1.0
KILLED_S = 3.0  #: how long those that were killed are waited for
#: Payloads are small; Ray's default takes 30 % of the machine's memory for them.
OBJECT_STORE_BYTES = 256 * 1024 * 1024
#: How often Serve looks after its deployments and tells its metrics. As it comes (0.1 s), an idle deployment takes 0.11 cores; so 0.09.
UNHURRIED = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25", "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000"}


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A Ray that we started."""

    address: str
    temp_dir: str
    http_host: str
    http_port: int
    process: OwnProcess

    def is_running(self) -> bool:
        return self.process.is_running()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """PortTaken, with the remedy, when nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port (0 takes a free one)"
            ) from error


def running(paths: Paths) -> LocalRay | None:
    """The Ray of this home, if it runs."""
    try:
        document = json.loads(_record(paths).read_text(encoding="utf-8"))
        found = LocalRay(**{**document, "process": OwnProcess(**document["process"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.is_running() else None


def start(
    paths: Paths,
    http_host: str,
    http_port: int,
    num_cpus: int | None = None,
    given_up: threading.Event | None = None,
) -> LocalRay:
    """Start it (about 6 s) and wait until it takes connections; DeployError with the end of its log when it does not.

    Setting ``given_up`` from another thread ends it, and DeployError is raised.
    """
    port = free_port()
    folder = temp_dir(paths)
    paths.logs.mkdir(parents=True, exist_ok=True)
    log = paths.logs / "ray.log"
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--ray-client-server-port={free_port()}", "--include-log-monitor=false", *([f"--num-cpus={num_cpus}"] if num_cpus else []),
    ]  # fmt: skip
    env = {
        **os.environ,
        **auth_env(paths),
        **SERVE_ENV,
        "PYTHONUNBUFFERED": "1",
        # Ray runs workers at nice 15 by default: a replica would get what everything else on the machine leaves
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),  # noqa: SIM112  Ray's own spelling
        **{name: os.environ.get(name, value) for name, value in UNHURRIED.items()},
    }
    with log.open("wb") as output:
        child = subprocess.Popen(  # its own session: the terminal's Ctrl-C reaches us only, and we stop it in order
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
    let_compute_finish(child.pid)
    found = LocalRay(f"127.0.0.1:{port}", folder, http_host, http_port, OwnProcess.of(child.pid, "ray"))
    # before it is up: whoever kills this process must find in the record what it leaves
    _record(paths).write_text(json.dumps(asdict(found)), encoding="utf-8")
    try:
        _wait_until_up(found, child, log, given_up or threading.Event())
    except BaseException:
        _end(found.process)
        _record(paths).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def let_compute_finish(pid: int) -> None:
    """What wakes below ``pid`` no longer interrupts what computes: where all cores are busy it takes its turn when that has had its own.

    Ray's threads wake some 1,400 times a second when nothing is asked, for microseconds. Each time an engine's thread waits, the engine's
    others spin until it is back (``docs/decisions/llm-on-cpu.md``).
    """
    if not hasattr(os, "SCHED_BATCH"):  # Linux has it; processes and threads inherit it
        return
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        if os.sched_getscheduler(pid) == os.SCHED_OTHER:
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def auth_env(paths: Paths) -> dict[str, str]:
    """What every process that talks to our Ray needs in its environment before Ray is imported.

    The token keeps other users of the machine out of a port that runs code; it lives in a file that only we can read.
    """
    token = paths.home / "ray.token"
    if not token.is_file():
        token.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def stop(paths: Paths) -> bool:
    """Stop the Ray of this home and everything below it; False when none ran. Idempotent."""
    found = running(paths)
    if found is not None:
        _end(found.process)
    _record(paths).unlink(missing_ok=True)
    return found is not None


def _wait_until_up(ray: LocalRay, child: subprocess.Popen[bytes], log: Path, given_up: threading.Event) -> None:
    host, port = ray.address.split(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if given_up.is_set():
            raise DeployError("the start of the local Ray was given up")
        if child.poll() is not None:
            break
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Ray runtime started" in text:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
        time.sleep(0.1)
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:])
    raise DeployError(f"the local Ray did not start; {log} ends: {tail}")


def _end(process: OwnProcess) -> None:
    """SIGTERM to the process that minds the others; what has not ended with it is ended one by one."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True) if process.is_running() else []
    except psutil.Error:
        tree = []
    process.send(signal.SIGTERM)
    process.wait(GRACE_S)
    for survivor in [*tree, *_self(process)]:
        with contextlib.suppress(psutil.Error):
            survivor.kill()
    psutil.wait_procs(tree, timeout=KILLED_S)


def _self(process: OwnProcess) -> list[psutil.Process]:
    try:
        return [psutil.Process(process.pid)] if process.is_running() else []
    except psutil.Error:
        return []


def _record(paths: Paths) -> Path:
    return paths.home / "ray.json"


def temp_dir(paths: Paths) -> str:
    """A short path, because Ray makes Unix sockets below it (107 bytes at most), different for each home and user."""
    digest = hashlib.sha256(f"{os.getuid()}:{paths.home}".encode()).hexdigest()[:8]
    return str(Path(tempfile.gettempdir()) / f"patchwork-ray-{digest}")
