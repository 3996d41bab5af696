"""``patchwork profile`` around the measurement: what is refused before it, and a profiler that ends at once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from patchwork_serving import cli
from patchwork_serving import profile as profiles
from patchwork_serving.errors import DeployError
from patchwork_serving.progress import SilentProgress


@pytest.mark.parametrize(
    ("output", "why"), [("no/such/profile.json", "No such file or directory"), ("folder", "Is a directory")]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    output: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: Any) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr(profiles, "measure", measure)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "rag.py").write_text("")
    (tmp_path / "inputs.jsonl").write_text('"q"\n')
    assert cli.run(["profile", "rag.py", "--inputs", "inputs.jsonl", "-o", output]) == 2
    assert f"--output: {output} cannot be written ({why})" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "inputs.jsonl", "rag.py"]


def test_a_profiler_that_ends_before_it_was_told_what_to_do_is_told_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    task: Any = SimpleNamespace(cluster=SimpleNamespace(env={}), more=b"x" * 1_000_000)  # more than a pipe holds
    with pytest.raises(DeployError, match="ended with code 1"):
        profiles._run(task, SilentProgress())
