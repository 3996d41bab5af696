"""A real OTLP backend for tests: Arize Phoenix, in an environment of its own because it has many dependencies."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock

from patchwork_serving.config import Paths

VERSION = "20.26.1"
INSTALL_TIMEOUT_S = 600.0
START_TIMEOUT_S = 180.0
ARRIVE_TIMEOUT_S = 60.0


def installed() -> Path:
    """The environment with Phoenix, built once into the cache with uv, or with venv and pip."""
    folder = Paths.from_env().cache / "test-tools" / f"phoenix-{VERSION}"
    python, done = folder / "bin" / "python", folder / "installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=INSTALL_TIMEOUT_S):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            package = f"arize-phoenix=={VERSION}"
            if shutil.which("uv"):
                _run("uv", "venv", "-q", "--python", sys.executable, str(folder))
                _run("uv", "pip", "install", "-q", "-p", str(python), package)
            else:
                _run(sys.executable, "-m", "venv", str(folder))
                _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", package)
            done.touch()
    return python


def _run(*command: str) -> None:
    env = {**os.environ, "UV_LINK_MODE": "copy"}
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S, env=env)


class Phoenix:
    """A running server; ``url`` is its OTLP endpoint and its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def spans(self, trace_id: str, count: int) -> dict[str, dict[str, Any]]:
        """The spans of one trace by name, once ``count`` of them have arrived."""
        until = time.monotonic() + ARRIVE_TIMEOUT_S
        found: list[dict[str, Any]] = []
        while time.monotonic() < until:
            answer = httpx.get(f"{self.url}/v1/projects/default/spans", params={"limit": 1000}, timeout=10.0)
            spans = answer.json().get("data", []) if answer.is_success else []
            found = [span for span in spans if span["context"]["trace_id"] == trace_id]
            if len(found) >= count:
                break
            time.sleep(0.2)
        return {span["name"]: span for span in found}


@contextmanager
def running(folder: Path) -> Iterator[Phoenix]:
    """Phoenix on loopback with its data in ``folder``; stopped afterwards."""
    python = installed()
    port, grpc = _free_port(), _free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))},
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "phoenix.log").open("wb") as log:
        server = subprocess.Popen([str(python), "-m", "phoenix.server.main", "serve"], env=env, stdout=log, stderr=log)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}", server, folder / "phoenix.log")
            yield Phoenix(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", timeout=2.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError(f"Phoenix did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    installed()
