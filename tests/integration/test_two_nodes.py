"""A deployment onto a Ray cluster of two nodes: nothing may assume a shared working directory or the ingress's own loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kit.deployed import EXAMPLES, QUESTIONS, a_home, deployed, invoke

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.models, pytest.mark.slow]

START_TIMEOUT_S = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_node(folder: Path, env: dict[str, str], *options: str) -> Iterator[None]:
    """One ``ray start --block`` of our own, ended with everything below it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "node.log").open("wb")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
    process = subprocess.Popen(
        command,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in (folder / "node.log").read_text(errors="replace"):
            assert process.poll() is None, (folder / "node.log").read_text(errors="replace")
            assert time.monotonic() < deadline, "the node did not start"
            time.sleep(0.2)
        yield
    finally:
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs(tree, timeout=10.0)
        for survivor in tree:
            if survivor.is_running():
                survivor.kill()
        process.wait(20)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[str]:
    """A head that runs no replicas, and a worker with a working directory of its own."""
    port = free_port()
    temp = Path("/tmp") / f"pw-ray-{os.getpid()}"
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    address = f"127.0.0.1:{port}"
    head = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={temp}", f"--ray-client-server-port={free_port()}", "--object-store-memory=150000000")  # fmt: skip
    worker = (f"--address={address}", "--node-ip-address=127.0.0.2", "--num-cpus=2", "--object-store-memory=150000000")
    with ray_node(tmp_path / "head", env, *head), ray_node(tmp_path / "worker", env, *worker):
        yield address


def test_a_chain_deploys_onto_a_cluster_of_two_nodes(two_nodes: str, tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": two_nodes, "RAY_AUTH_MODE": "disabled"}
    with a_home() as home, deployed(home, str(EXAMPLES / "vanilla_rag.py"), env=env) as url:
        assert isinstance(invoke(url, QUESTIONS[0]), str)
        (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
        assert all(row["ready"] == row["target"] for row in app["replicas"])
