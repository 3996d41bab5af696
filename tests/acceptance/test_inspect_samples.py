"""``patchwork inspect --inputs`` as a user runs it, on a chain that needs no engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchwork_serving.cli import run

SHAPES = Path(__file__).parents[1] / "kit" / "shapes"


def test_samples_of_a_graph_are_run_and_told_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path / "home"))
    inputs = tmp_path / "questions.jsonl"
    inputs.write_text("".join(json.dumps({"question": q}) + "\n" for q in ("why apples?", "a", "b", "c")))
    assert run(["inspect", f"{SHAPES / 'graphs.py'}:crag_graph", "--inputs", str(inputs), "--json"]) == 0
    out, told = capsys.readouterr()
    document = json.loads(out)
    assert document["requests"] == 4
    visits = {site["id"]: site["visits"] for site in document["call_sites"]}
    assert visits["writer@generate/generate:55"] == 1.0
    rounds = visits["store@retrieve/retrieve:31"]
    edges = {(e["source"].split("@")[0], e["target"].split("@")[0]): e for e in document["edges"]}
    assert edges["grader", "writer"]["probability"] == pytest.approx(1.0 / rounds)
    assert edges["grader", "writer"]["count"] == 4
    assert "running 4 inputs" in told


def test_inputs_that_the_chain_refuses_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path / "home"))
    inputs = tmp_path / "questions.jsonl"
    inputs.write_text('{"question": "hard"}\n')
    assert run(["inspect", f"{SHAPES / 'lcel.py'}:unguarded", "--inputs", str(inputs)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "the chain raised on every input, first Busy" in lines[0]
