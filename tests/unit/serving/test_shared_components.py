"""Who leaves last turns off the light: programs, deployed applications and the servers they share. Real state files, no Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchwork_serving import deploy, serve_control, servers, shared_components
from patchwork_serving.cli_apps import app_status
from patchwork_serving.config import Paths
from patchwork_serving.progress import SilentProgress
from patchwork_serving.state import AppState, OwnProcess, StateStore

ME = OwnProcess.of(os.getpid(), "client")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


@pytest.fixture
def store(paths: Paths) -> StateStore:
    return StateStore(paths.state)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was told to the world, in order."""
    told: list[str] = []
    monkeypatch.setattr(serve_control, "connect", lambda cluster: told.append("connect"))
    monkeypatch.setattr(serve_control, "disconnect", lambda: told.append("disconnect"))
    monkeypatch.setattr(serve_control, "delete_app", lambda name: told.append(f"delete {name}"))
    monkeypatch.setattr(serve_control, "share_root", lambda: None)
    monkeypatch.setattr(servers, "stop", lambda paths: told.append("stop servers"))
    monkeypatch.setattr(servers, "running", lambda paths: [ME])
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    return told


@pytest.fixture
def another() -> Iterator[OwnProcess]:
    """A living program."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield OwnProcess.of(process.pid, "client")
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


GONE = OwnProcess(2**22 + 1, 1.0, "client")


def wrapped(*clients: OwnProcess, name: str = "wrapped-1") -> AppState:
    return AppState(name, "", "", "now", ray_address="127.0.0.1:1", processes=(ME,), clients=clients)


def deployed(*clients: OwnProcess) -> AppState:
    return AppState(
        "app", "a.py", "http://127.0.0.1:1/app", "now", ray_address="127.0.0.1:1", processes=(ME,), clients=clients
    )


def test_the_last_program_stops_everything_and_disconnects_before_ray_ends(
    paths: Paths, store: StateStore, done: list[str]
) -> None:
    store.save(wrapped(ME))
    shared_components.leave(paths, "wrapped-1", ME)
    assert done == ["disconnect", "stop servers"]
    assert store.apps() == []


def test_replicas_that_export_traces_are_given_the_time_to_send_them(
    paths: Paths, store: StateStore, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    store.save(wrapped(ME))
    shared_components.leave(paths, "wrapped-1", ME)
    assert done == ["connect", "delete wrapped-1", "disconnect", "stop servers"]


def test_a_program_leaves_the_components_to_the_others(
    paths: Paths, store: StateStore, done: list[str], another: OwnProcess
) -> None:
    store.save(wrapped(ME, another, GONE))
    shared_components.leave(paths, "wrapped-1", ME)
    assert done == ["disconnect"]
    assert store.load("wrapped-1").clients == (another,)


def test_the_last_program_of_one_chain_leaves_the_servers_to_those_of_another(
    paths: Paths, store: StateStore, done: list[str], another: OwnProcess
) -> None:
    store.save(wrapped(ME))
    store.save(wrapped(another, name="wrapped-2"))
    shared_components.leave(paths, "wrapped-1", ME)
    assert done == ["connect", "delete wrapped-1", "disconnect"]
    assert [app.name for app in store.apps()] == ["wrapped-2"]


def test_an_application_that_only_dead_programs_used_keeps_nothing_running(
    paths: Paths, store: StateStore, done: list[str]
) -> None:
    store.save(wrapped(ME))
    store.save(wrapped(GONE, name="wrapped-2"))
    shared_components.leave(paths, "wrapped-1", ME)
    assert done == ["disconnect", "stop servers"]
    assert store.apps() == []


def test_a_deployed_application_stays_when_a_program_leaves_it(
    paths: Paths, store: StateStore, done: list[str]
) -> None:
    store.save(deployed(ME))
    shared_components.leave(paths, "app", ME)
    assert done == ["disconnect"]
    assert store.load("app").clients == ()


def test_down_leaves_what_living_programs_use_and_takes_the_rest(
    paths: Paths, store: StateStore, done: list[str], another: OwnProcess
) -> None:
    store.save(wrapped(another))
    store.save(wrapped(GONE, name="wrapped-2"))
    store.save(deployed())
    assert deploy.down(None, SilentProgress(), paths) == ["app", "wrapped-2"]
    assert [app.name for app in store.apps()] == ["wrapped-1"]
    assert "stop servers" not in done


def test_down_by_name_leaves_ray_to_the_program_which_stops_it_when_it_ends(
    paths: Paths, store: StateStore, done: list[str], another: OwnProcess
) -> None:
    store.save(deployed(another))
    assert deploy.down("app", SilentProgress(), paths) == ["app"]
    assert "stop servers" not in done
    shared_components.leave(paths, "app", another)
    assert done[-1] == "stop servers"


def test_status_names_the_programs(another: OwnProcess) -> None:
    told = app_status(wrapped(another))
    assert (told["state"], told["clients"]) == ("in use", [another.pid])
    assert app_status(wrapped(GONE))["state"] == "lost"
