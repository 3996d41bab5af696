"""The component graph as a Mermaid flowchart and as tables; inputs that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchwork_adapters.graph import END, START, CallSite, Component, ComponentGraph, Edge, Opaque
from patchwork_serving import build_process, cli_inspect
from patchwork_serving.cli import run
from patchwork_serving.cli_inspect import to_mermaid

LLM = Component("llm", "llm", "langchain_openai.ChatOpenAI", "protocol", "llamacpp", model="small")
STORE = Component("end", "retriever", "langchain_core.InMemoryVectorStore", "engine", "pgvector")


def test_call_sites_are_joined_by_their_edges() -> None:
    graph = ComponentGraph(
        "x.py", "langchain", (LLM, STORE), (CallSite("end#1", "end"), CallSite("llm#1", "llm")),
        (Edge(START, "end#1", "data"), Edge("end#1", "llm#1", "cond", 0.5), Edge("llm#1", END, "data", 1.0)),
    )  # fmt: skip
    assert to_mermaid(graph).splitlines() == [
        "flowchart LR",
        '  n_end_1[("end#1<br/>pgvector")]',
        '  n_llm_1(["llm#1<br/>small"])',
        '  n___start__(("request"))',
        '  n___end__(("answer"))',
        "  n___start__ --> n_end_1",
        "  n_end_1 -.->|50%| n_llm_1",
        "  n_llm_1 --> n___end__",
    ]


def test_without_samples_the_components_stand_alone_and_opaque_parts_are_shown() -> None:
    graph = ComponentGraph("x.py", "langchain", (LLM,), opaque=(Opaque('f("x")', "raw client"),))
    assert to_mermaid(graph).splitlines() == [
        "flowchart LR",
        '  n_llm(["llm<br/>small"])',
        '  n_opaque_0["f(#quot;x#quot;): opaque"]:::opaque',
        "  classDef opaque stroke-dasharray: 4 4",
    ]


SAMPLED = ComponentGraph(
    "x.py", "langgraph", (LLM, STORE),
    (CallSite("s@{a}/1", "end", visits=2.0, seconds=0.01, serial=1.0, reached=0.5), CallSite("llm@2", "llm", 1.0, 0.5, 60.0, 50.0, 10.0)),
    (Edge(START, "s@{a}/1", "map", 0.5, 5), Edge("s@{a}/1", "llm@2", "data", 1.0, 5), Edge("llm@2", END, "cond", 0.0, 0)),
    notes=("state lives in the orchestrator process: graph.checkpointer keeps checkpoints, by thread_id",), requests=10, glue_s=0.25,
    affinity="thread_id",
)  # fmt: skip


def test_samples_show_visits_tokens_and_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    cli_inspect._show(SAMPLED)
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["s@{a}/1", "end", "2", "1", "0.01", "50%"] in out
    assert ["llm@2", "llm", "1", "0.5", "50", "10"] in out
    assert ["request", "s@{a}/1", "map", "50%", "5"] in out
    assert ["llm@2", "answer", "cond", "0%", "never"] in out
    assert ["from", "10", "sample", "runs;", "0.25", "s", "of", "each", "request", "outside", "of", "components"] in out
    assert ["affinity", "thread_id:"] in [line[:2] for line in out]
    assert '  n_s__a__1[("s@{a}/1<br/>pgvector<br/>2 per request")]' in to_mermaid(SAMPLED)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"why?"\nwhy not\n', "line 2: not JSON (Expecting value at column 1); write one JSON value a line"),
        ("\n", "holds no inputs; write one JSON value a line"),
        ('{"input": "a", "config": 3}\n', "line 1: config must be an object"),
    ],
)
def test_inputs_that_are_no_json_lines_are_told_before_anything_is_started(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_process, "_run", lambda *_: pytest.fail("a builder was started"))
    inputs = tmp_path / "questions.jsonl"
    inputs.write_text(content)
    assert run(["inspect", "examples/vanilla_rag.py", "--inputs", str(inputs)]) == 2
    (first, *_) = capsys.readouterr().err.splitlines()
    assert str(inputs) in first
    assert expected in first


def test_a_file_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "examples/vanilla_rag.py", "--inputs", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl cannot be read (FileNotFoundError)" in capsys.readouterr().err
