"""How a deployment in the foreground starts, ends and is interrupted. The deployment itself is a twin that starts one sleeping process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TWIN = """
import subprocess, sys, threading, time, types
from pathlib import Path
from patchwork_serving import progress as _progress
from patchwork_serving.config import Paths
from patchwork_serving.state import AppState, OwnProcess, StateStore

mode = sys.argv[1]
store = StateStore(Paths.from_env().state)
twin = types.ModuleType("patchwork_serving.deploy")

class DeployOptions:
    def __init__(self, **options): self.__dict__.update(options)

class Deployment:
    name, url = "demo", "http://127.0.0.1:1"
    release = types.SimpleNamespace(emulated=())
    def stop(self, progress=None):
        if mode == "stuck":
            print("stuck", flush=True)
            time.sleep(60)
        child.kill(); child.wait(); store.remove("demo")

def start(options, progress):
    global child
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        print("child", child.pid, flush=True)  # the test's signal may come at once
        with _progress.step(progress, "ray", "starting Ray"):
            if mode == "slow":
                time.sleep(60)
            if mode == "broken":
                from patchwork_serving.errors import PortTaken
                raise PortTaken("port 80 is taken; choose another with --port")
    except BaseException:
        child.kill(); child.wait()
        raise
    store.save(AppState("demo", options.target, Deployment.url, "now", processes=(OwnProcess.of(child.pid, "ray"),)))
    return Deployment()

twin.DeployOptions, twin.start = DeployOptions, start
sys.modules["patchwork_serving.deploy"] = twin
import patchwork_serving
patchwork_serving.deploy = twin
from patchwork_serving import cli
sys.exit(cli.run(["deploy", "x.py", *sys.argv[2:]]))
"""


class Running:
    def __init__(self, home: Path, mode: str, *options: str) -> None:
        env = {**os.environ, "PATCHWORK_HOME": str(home), "PATCHWORK_CACHE": str(home), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-c", TWIN, mode, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.child = int(self.line().split()[1])

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str, str]:
        # not communicate(): it would miss what line() has read ahead
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(30), out, err


def runs(pid: int, patience_s: float = 5.0) -> bool:
    """Whether a process goes on; one that has ended stays in the table until its new parent looks."""
    try:
        psutil.Process(pid).wait(patience_s)
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass
    return False


@pytest.fixture
def run(tmp_path: Path):
    started: list[Running] = []

    def start(mode: str, *options: str) -> Running:
        started.append(Running(tmp_path, mode, *options))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()
        for stream in (running.process.stdout, running.process.stderr):
            if stream is not None:
                stream.close()
        if runs(running.child):
            psutil.Process(running.child).kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_what_was_deployed(run, signum: signal.Signals) -> None:
    running = run("ok")
    assert running.line() == "demo is ready at http://127.0.0.1:1"
    running.process.send_signal(signum)
    code, _, err = running.end()
    assert (code, runs(running.child)) == (0, False)
    assert "Traceback" not in err


def test_a_signal_while_it_starts_unwinds_and_fails(run) -> None:
    running = run("slow")
    running.process.send_signal(signal.SIGINT)
    code, out, err = running.end()
    assert (code, out, runs(running.child)) == (1, "", False)
    assert err.splitlines()[-1] == "error: stopped"


def test_a_second_signal_ends_everything_at_once(run) -> None:
    running = run("stuck")
    running.line()
    running.process.send_signal(signal.SIGINT)
    assert running.line() == "stuck"
    running.process.send_signal(signal.SIGINT)
    code, _, _ = running.end()
    assert code == 1
    for _ in range(100):
        if not runs(running.child):
            break
        time.sleep(0.05)
    assert not runs(running.child)


def test_a_deployment_that_fails_is_one_line(run) -> None:
    code, out, err = run("broken").end()
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "...  starting Ray", err.splitlines()[1], "error: the port is taken: port 80 is taken; choose another with --port",
    ]  # fmt: skip


def test_down_from_elsewhere_ends_the_foreground(run, tmp_path: Path) -> None:
    running = run("ok")
    running.line()
    (tmp_path / "state" / "demo.json").unlink()
    assert running.end()[0] == 0


def test_processes_that_end_by_themselves_are_a_failure(run) -> None:
    running = run("ok")
    running.line()
    psutil.Process(running.child).kill()
    code, _, err = running.end()
    assert code == 1
    assert "the processes of demo have ended" in err


def test_detached_it_returns_and_leaves_it_running(run) -> None:
    running = run("ok", "--detach", "--json")
    code, out, _ = running.end()
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, runs(running.child)) == (0, True)
    assert [event["event"] for event in events] == ["begin", "end", "ready"]
    assert (events[-1]["name"], events[-1]["url"]) == ("demo", "http://127.0.0.1:1")
