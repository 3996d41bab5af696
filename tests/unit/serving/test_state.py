"""What runs on this machine, and what only looks as if it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patchwork_serving.errors import DeployError, SetupError, UnknownApp
from patchwork_serving.state import AppState, OwnProcess, StateStore


def app(name: str = "demo", *processes: OwnProcess) -> AppState:
    return AppState(name, "demo.py", "http://127.0.0.1:8000", "2026-01-01T00:00:00+00:00", 2.0, processes=processes)


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "state")
    saved = app("demo", OwnProcess(1, 2.0, "ray"))
    store.save(saved)
    assert (store.load("demo"), store.find("other"), store.apps()) == (saved, None, [saved])
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["demo.json"]


def test_an_unknown_app_names_those_that_exist(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(app("demo"))
    with pytest.raises(UnknownApp, match="there are: demo"):
        store.load("other")


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    StateStore(tmp_path / "state").remove("../outside")
    assert outside.exists()


def test_a_file_that_is_cut_off_is_passed_over(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(app("demo"))
    (tmp_path / "broken.json").write_text('{"name": "bro')
    assert [a.name for a in store.apps()] == ["demo"]


def test_a_key_of_a_later_version_is_left_out(tmp_path: Path) -> None:
    assert AppState.from_json({**app().to_json(), "later": 1}) == app()


def test_a_pid_that_was_used_again_is_not_our_process(child: subprocess.Popen[bytes]) -> None:
    ours = OwnProcess.of(child.pid, "ray")
    stranger = OwnProcess(child.pid, ours.started - 100.0, "ray")
    assert (ours.is_running(), stranger.is_running()) == (True, False)
    assert stranger.send(signal.SIGKILL) is False
    assert child.poll() is None


def test_a_process_that_ended_makes_its_app_stale(child: subprocess.Popen[bytes]) -> None:
    found = app("demo", OwnProcess.of(child.pid, "ray"))
    assert (found.is_alive(), found.is_stale()) == (True, False)
    assert found.processes[0].send(signal.SIGTERM)
    child.wait(10)
    assert (found.is_alive(), found.is_stale()) == (False, True)
    assert found.processes[0].wait(1.0)


def test_an_app_on_a_cluster_elsewhere_is_never_stale() -> None:
    assert (app().is_alive(), app().is_stale()) == (True, False)


def test_no_such_process_is_a_lookup_error() -> None:
    with pytest.raises(ProcessLookupError):
        OwnProcess.of(2**22 + 1, "ray")


def test_a_second_command_waits_for_the_lock_and_then_says_who_holds_it(tmp_path: Path) -> None:
    with StateStore(tmp_path).lock(), pytest.raises(DeployError, match="another patchwork command"):  # noqa: SIM117
        with StateStore(tmp_path).lock(timeout_s=0.01):
            pass


@pytest.mark.skipif(os.geteuid() != 0 and not Path("/proc").is_dir(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_is_named_with_its_remedy() -> None:
    with pytest.raises(SetupError, match="PATCHWORK_HOME"):
        StateStore(Path("/proc/patchwork")).save(app())
