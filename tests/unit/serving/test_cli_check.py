"""``patchwork check``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchwork_serving.cli import run

CHAIN = """
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda

class Lengths(Embeddings):
    def embed_documents(self, texts):
        return [[float(len(t))] for t in texts]
    def embed_query(self, text):
        {body}

model = Lengths()
print("noise of the module")
chain = RunnableLambda(lambda text: model.embed_query(text))
"""


def write(folder: Path, name: str, body: str) -> str:
    target = folder / f"{name}.py"
    target.write_text(CHAIN.format(body=body))
    return str(target)


def inputs(folder: Path, text: str = '"one"\n"three"\n') -> str:
    file = folder / "inputs.jsonl"
    file.write_text(text)
    return str(file)


def test_an_equal_chain_ends_with_0_and_json_is_all_of_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path, "equal_chain", "return [float(len(text))]")
    assert run(["check", target, "--inputs", inputs(tmp_path), "--json"]) == 0
    out = capfd.readouterr()
    document = json.loads(out.out)
    assert document["equal"] is True
    assert document["modes"]["ainvoke"] == "equal"
    assert document["leaves"] == [{"path": "model", "way": "own"}]
    assert "noise of the module" in out.err


def test_a_leaf_that_depends_on_its_process_ends_with_1_and_says_where(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "import os; return [float('checking' in ' '.join(__import__('sys').orig_argv))]"
    target = write(tmp_path, "bound_chain", body)
    assert run(["check", target, "--inputs", inputs(tmp_path)]) == 1
    assert "invoke, input 1: values[0][0]: originally 0.0, now 1.0" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [('"one"\n{oops\n', "line 2: not JSON"), ("\n", "holds no inputs")],
)
def test_bad_inputs_end_with_2_and_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    target = write(tmp_path, "any_chain", "return [1.0]")
    assert run(["check", target, "--inputs", inputs(tmp_path, text)]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_target_without_a_chain_ends_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "empty_module.py"
    target.write_text("x = 1\n")
    assert run(["check", str(target), "--inputs", inputs(tmp_path)]) == 2
    assert "no chain" in capfd.readouterr().err
