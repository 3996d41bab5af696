"""Logs of an application's replicas, from the files that Serve writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchwork_serving import cli
from patchwork_serving.cli_logs import LogFile, log_files
from patchwork_serving.state import AppState, StateStore


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path / "home"))
    app = AppState("vanilla_rag", "v.py", "http://127.0.0.1:9", "now", ray_dir=str(tmp_path / "ray"))
    StateStore(tmp_path / "home" / "state").save(app)
    StateStore(tmp_path / "home" / "state").save(
        AppState("afar", "v.py", "http://x", "now", ray_address="10.0.0.1:6379")
    )
    logs = tmp_path / "ray" / "session_latest" / "logs" / "serve"
    logs.mkdir(parents=True)
    (logs / "replica_vanilla_rag_chat_openai_abc1.log").write_text("one\ntwo\nthree\nhalf")
    (logs / "replica_vanilla_rag_ingress_abc2.log").write_text("up\n")
    (logs / "replica_other_ingress_abc3.log").write_text("not mine\n")
    (logs / "controller_1.log").write_text("not a replica\n")
    return logs


def test_files_are_those_of_the_application(folder: Path) -> None:
    app = StateStore(Path(folder.parents[3]) / "home" / "state").load("vanilla_rag")
    found = {(f.component, f.replica) for f in log_files(app)}
    assert found == {("chat_openai", "abc1"), ("ingress", "abc2")}
    assert all(isinstance(f, LogFile) for f in log_files(app))


def test_the_last_whole_lines_are_shown_with_their_component(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", "vanilla_rag", "--component", "chat_openai", "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["chat_openai#abc1 | two", "chat_openai#abc1 | three"]


def test_json_is_one_object_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", "vanilla_rag", "--component", "ingress", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "app": "vanilla_rag", "component": "ingress", "replica": "abc2", "line": "up",
    }  # fmt: skip


def test_a_component_that_does_not_exist_names_those_that_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", "vanilla_rag", "--component", "gpu"]) == 2
    assert "there are: chat_openai, ingress" in capsys.readouterr().err


def test_logs_of_another_cluster_say_where_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", "afar"]) == 1
    assert "10.0.0.1:6379" in capsys.readouterr().err
