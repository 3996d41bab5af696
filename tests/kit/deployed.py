"""Real deployments for tests: a home of their own, the machine's model cache, everything stopped at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from patchwork_serving.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_ASKED = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines() if line]
QUESTIONS: list[str] = [asked["question"] for asked in _ASKED]
TOPICS: list[str] = [asked["topic"] for asked in _ASKED]  #: what each question is about


@dataclass(frozen=True)
class Home:
    """A PATCHWORK_HOME of a test."""

    path: Path

    def run(
        self, *arguments: str, timeout_s: float = 300.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The ``patchwork`` command, as a person runs it."""
        return subprocess.run(
            [sys.executable, "-m", "patchwork_serving.cli", *arguments],
            env={**_environment(), "PATCHWORK_HOME": str(self.path), **(env or {})},
            cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The command in a session of its own, so that a test may signal it; the caller waits for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "patchwork_serving.cli", *arguments],
            env={**_environment(), "PATCHWORK_HOME": str(self.path)},
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def left(self) -> list[str]:
        """What still runs or is recorded for this home; empty when nothing is."""
        found = [str(path) for path in (self.path / "ray.json", *self.path.glob("state/*.json")) if path.exists()]
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("PATCHWORK_HOME") == str(self.path) or str(self.path) in process.cmdline()
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found

    def ray_processes(self) -> list[psutil.Process]:
        """Everything below the Ray of this home."""
        record = self.path / "ray.json"
        if not record.is_file():
            return []
        pid = json.loads(record.read_text(encoding="utf-8"))["process"]["pid"]
        return psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []

    def replicas(self, component: str) -> list[psutil.Process]:
        """Processes of a component's replicas, which Ray names after them."""
        return [p for p in self.ray_processes() if f":{component}" in _command(p) and "ServeReplica" in _command(p)]

    def postmaster(self) -> psutil.Process:
        pid = EmbeddedPostgres(self.path / "postgres").status().pid
        assert pid is not None, "the embedded Postgres does not run"
        return psutil.Process(pid)


@contextmanager
def a_home() -> Iterator[Home]:
    """Everything that runs below it is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="pw-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(
            0o755
        )  # or the embedded Postgres of a root user keeps its data elsewhere, where nobody removes it
        home = Home(Path(folder))
        try:
            yield home
        finally:
            left = home.ray_processes()
            home.run("down", timeout_s=120.0)
            psutil.wait_procs(left, timeout=20.0)


@contextmanager
def deployed(home: Home, target: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of a detached deployment, taken down at the end."""
    result = home.run("deploy", target, "--port", "0", "--detach", "--json", *options, env=env)
    assert result.returncode == 0, result.stderr
    ready = json.loads(result.stdout.strip().splitlines()[-1])
    try:
        yield str(ready["url"])
    finally:
        stopped = home.run("down", ready["name"], timeout_s=120.0)
        assert stopped.returncode == 0, stopped.stderr


def invoke(url: str, value: Any, **headers: str) -> Any:
    """The output of ``POST /invoke``."""
    response = httpx.post(f"{url}/invoke", json={"input": value}, headers=headers, timeout=120.0)
    assert response.status_code == 200, response.text
    return response.json()["output"]


def _environment() -> dict[str, str]:
    """Without what pytest changes from test to test: another environment replaces the ingress of a deployment."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""
