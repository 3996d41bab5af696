"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from patchwork_adapters.errors import DeadlinePassed, NoChainFound
from patchwork_serving import cli, cli_faults
from patchwork_serving.cli_status import _drawn
from patchwork_serving.errors import EngineDied, PortTaken, UnknownApp
from patchwork_serving.state import AppState, OwnProcess, StateStore

HEAVY = {
    "ray", "fastapi", "langchain_core", "openai", "numpy", "opentelemetry", "pydantic", "psycopg", "xllamacpp", "httpx", "onnxruntime",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATCHWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PATCHWORK_SHOW_TRACEBACKS", raising=False)
    return tmp_path / "home"


def lost_app(home: Path, name: str = "demo") -> AppState:
    app = AppState(
        name,
        "demo.py",
        "http://127.0.0.1:9",
        "2026-01-01T00:00:00+00:00",
        slo_s=2.0,
        processes=(OwnProcess(1, 1.0, "ray"),),
    )
    StateStore(home / "state").save(app)
    return app


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from patchwork_serving.cli import run; code = run(['--help']);"
        f"print(code, sorted({HEAVY!r} & {{m.partition('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("verb", ["inspect", "deploy", "status", "logs", "invoke", "down", "doctor", "version"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert f"Usage: patchwork {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "Missing command"),
        (["deplo", "x.py"], "Did you mean 'deploy'"),
        (["deploy"], "Missing argument 'TARGET'"),
        (["deploy", "x.py", "--port", "70000"], "--port"),
        (["deploy", "x.py", "--port", "http"], "--port"),
        (["deploy", "x.py", "--slo", "soon"], "--slo"),
        (["deploy", "x.py", "--slo", "0s"], "--slo"),
        (["deploy", "x.py", "--replicas", "0"], "--replicas"),
        (["deploy", "x.py", "--config", "no/such.yaml"], "no/such.yaml"),
        (["inspect", "x.py", "--inputs", "some.jsonl"], "cannot be read"),
        (["deploy", "x.py", "--plan", "no/plan.json"], "no/plan.json cannot be read"),
        (["inspect", "x.py", "--json", "--mermaid"], "--mermaid"),
        (["invoke", "nobody", "hi"], "no application 'nobody'"),
        (["invoke", "http://127.0.0.1:9", "hi", "--timeout", "x"], "--timeout"),
        (["down", "nobody"], "no application 'nobody'"),
        (["logs", "nobody"], "no application 'nobody'"),
        (["status", "--jsn"], "--jsn"),
    ],
)
def test_wrong_use_is_one_line_on_stderr_and_exit_2(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first = shown.err.splitlines()[0]
    assert first.startswith("error: ")
    assert told in first
    assert "Traceback" not in shown.err


def test_a_target_that_does_not_exist_is_used_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["deploy", "no_such_chain.py"]) == 2
    assert "no_such_chain.py" in capsys.readouterr().err.splitlines()[-1]


def test_an_application_that_does_not_answer_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "http://127.0.0.1:9", "hi"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_variable_of_telemetry_that_is_wrong_stops_a_deployment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "sometimes")
    assert cli.run(["deploy", "x.py"]) == 2
    assert "OTEL_TRACES_SAMPLER" in capsys.readouterr().err


def test_status_of_nothing_and_of_a_lost_application(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"apps": [], "left": []}
    lost_app(home)
    assert cli.run(["status", "--json"]) == 0
    (app,) = json.loads(capsys.readouterr().out)["apps"]
    assert {k: app[k] for k in ("name", "url", "state", "slo", "replicas", "window", "decisions")} == {
        "name": "demo", "url": "http://127.0.0.1:9", "state": "lost", "slo": 2.0, "replicas": [], "window": {}, "decisions": [],
    }  # fmt: skip
    assert cli.run(["status"]) == 0
    assert "its processes are gone" in capsys.readouterr().out


def test_status_shows_how_well_remaining_time_was_predicted() -> None:
    row = {"judged": 4, "predicted_s": 2.0, "actual_s": 1.6, "mean_error_s": 0.5, "predicted_over_actual": 1.25}
    later = {**row, "predicted_s": 0.5, "actual_s": 0.5, "site": "answer", "loop": 1}
    predictions = [later, {**row, "site": "__start__", "loop": 0}, {"site": "rare", "loop": 0, "judged": 0}]
    app = {
        "name": "demo", "url": "", "state": "ready", "slo": None, "emulated": [], "orphaned": False, "clients": [], "replicas": [],
        "window": {}, "decisions": [], "scheduler": {"predictions": predictions},
    }  # fmt: skip
    console = Console(width=120, record=True, file=StringIO())
    console.print(_drawn({"apps": [app], "left": []}))
    shown = [line.split() for line in console.export_text().splitlines()[-2:]]
    assert shown[0] == ["the", "door", "4", "2", "s", "1.6", "s", "1.25", "0.5", "s"]
    assert shown[1][:4] == ["answer,", "visit", "2", "4"]


def test_version_tells_the_version_and_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patchwork"]
    assert cli.run(["version", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "patchwork.yaml"


def test_doctor_names_each_thing_and_fails_when_a_needed_one_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://patchwork:very-secret@127.0.0.1:9/none?connect_timeout=2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.run(["doctor", "--json"]) == 1
    shown = capsys.readouterr().out
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert checks["Python"]["ok"]
    assert not checks["Postgres"]["ok"]
    assert checks["extra [gpu]"]["remedy"] == "pip install 'patchwork-rag[gpu]'"
    assert "very-secret" not in shown


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NoChainFound("x.py: no chain"), 2, "no chain in the target: x.py: no chain"),
        (UnknownApp("no application 'x'"), 2, "no such application: no application 'x'"),
        (PortTaken("port 80\nis taken"), 1, "the port is taken: port 80 is taken"),
        (EngineDied("llm"), 1, "the model engine died: llm"),
        (DeadlinePassed(), 1, "the deadline has passed"),
        (ZeroDivisionError("x"), 1, "internal error: ZeroDivisionError: x; --verbose shows where"),
        (cli_faults.Interrupted("SIGTERM"), 1, "stopped"),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(error: BaseException, code: int, line: str) -> None:
    assert (cli_faults.exit_code(error), cli_faults.one_line(error)) == (code, line)


def test_a_traceback_is_shown_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["invoke", "nobody", "hi", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PATCHWORK_SHOW_TRACEBACKS", "1")
    assert cli.run(["invoke", "nobody", "hi"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    command = f"{sys.executable} -m patchwork_serving.cli version --schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
