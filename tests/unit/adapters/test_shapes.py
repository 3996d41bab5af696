"""Every shape of chain, in every mode that it has, with its leaves in another process: the same answers, the same leaf calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters import codec
from patchwork_adapters.check import CheckResult, check
from patchwork_adapters.checking.process import LeafProcess

SHAPES = Path(__file__).parents[2] / "kit" / "shapes"
QUESTIONS: list[Any] = ["why apples?", "list hard bread"]
HARD = {"question": "a hard one"}

LANGCHAIN: dict[str, list[Any]] = {
    "lcel.py:simple": QUESTIONS,
    "lcel.py:fan_out": QUESTIONS,
    "lcel.py:branch": [*QUESTIONS, "neither"],
    "lcel.py:dynamic": QUESTIONS,
    "lcel.py:assigned": [{"question": q} for q in QUESTIONS],
    "lcel.py:retrieval": [
        {"input": "apples", "chat_history": []},
        {"input": "and then?", "chat_history": [["human", "a"], ["ai", "b"]]},
    ],
    "lcel.py:compressed": QUESTIONS,
    "lcel.py:wrappers": [
        {"question": "easy"},
        HARD,
        {"input": HARD, "config": {"configurable": {"temperature": 0.9}}},
        {"input": HARD, "config": {"configurable": {"model": "other"}}},
    ],
    "lcel.py:unguarded": QUESTIONS,
    "lcel.py:custom_retriever": QUESTIONS,
    "lcel.py:with_history": [{"input": "a"}, {"input": "b"}],
    "opaque.py:decorated": QUESTIONS,
    "opaque.py:pipeline": QUESTIONS,
    "opaque.py:closures": QUESTIONS,
    "opaque.py:taken": QUESTIONS,
    "graphs.py:crag_graph": [{"question": q} for q in QUESTIONS],
    "graphs.py:map_reduce": [{"topics": ["a", "b", "c"]}],
    "graphs.py:interrupted": [{"input": {"messages": [["human", "hi"]]}, "resume": ["yes"]}],
    "graphs.py:functional": QUESTIONS,
    "graphs.py:agent": [{"messages": [["human", "find apples"]]}],
}
ENGINES = [
    "refine",
    "compact",
    "tree_summarize",
    "simple_summarize",
    "accumulate",
    "compact_accumulate",
    "no_text",
    "streaming",
    "summary",
    "settings_defaults",
    "reranked",
    "citation",
    "router",
    "multi_router",
    "sub_question",
    "multi_step",
    "retry",
    "retry_source",
    "fusion",
    "transformed",
    "flare",
    "own_retriever",
    "custom",
    "simple_chat",
    "condense_question",
    "context_chat",
    "condense_context",
    "function_agent",
    "agents",
]
LLAMAINDEX: dict[str, list[Any]] = {f"engines.py:{name}": ["what about apples?"] for name in ENGINES}
LLAMAINDEX["engines.py:workflow"] = [{"query": "apples"}]


@pytest.fixture(scope="module")
def process() -> Iterator[LeafProcess]:
    with LeafProcess() as process:
        yield process


def report(result: CheckResult) -> str:
    return "\n".join(f"{r.mode} {r.case} {r.verdict}: {line}" for r in result.runs for line in r.differences)


def verify(process: LeafProcess, shape: str, inputs: list[Any]) -> CheckResult:
    result = check(str(SHAPES / shape), inputs, process=process, timeout_s=60)
    assert set(result.modes().values()) == {"equal"}, report(result)
    assert sum(run.leaf_calls for run in result.runs) > 0
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", LANGCHAIN)
def test_a_langchain_shape_is_equal_in_every_mode(process: LeafProcess, shape: str) -> None:
    result = verify(process, shape, LANGCHAIN[shape])
    assert len(result.modes()) == (9 if shape.startswith("graphs") else 7)
    assert result.local == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", LLAMAINDEX)
def test_a_llamaindex_shape_is_equal_in_every_mode(process: LeafProcess, shape: str) -> None:
    pytest.importorskip("llama_index.core")
    result = verify(process, shape, LLAMAINDEX[shape])
    assert result.local == ()
    assert result.notes == ()  # an original that only raises would be equal, too


@pytest.mark.filterwarnings("ignore")
def test_a_codec_that_drops_usage_metadata_is_found_although_the_output_is_text(
    process: LeafProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = codec.decode_outcome

    def lossy(data: bytes, **options: Any) -> Any:
        value = exact(data, **options)
        for generation in getattr(value, "generations", ()):
            generation.message.usage_metadata = None
        return value

    monkeypatch.setattr(codec, "decode_outcome", lossy)
    result = check(str(SHAPES / "lcel.py:assigned"), [{"question": "q"}], process=process, modes=["invoke"])
    assert not result.is_equal
    assert "usage_metadata: originally" in report(result)
    assert "values" not in report(result).split("leaf call")[0]  # the output itself shows nothing


@pytest.mark.filterwarnings("ignore")
def test_a_codec_that_flattens_a_document_subclass_is_found(
    process: LeafProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_core.documents import Document

    exact = codec.encode

    def flat(value: Any) -> Any:
        if isinstance(value, Document):
            return Document(id=value.id, page_content=value.page_content, metadata=value.metadata)
        if isinstance(value, list | tuple):
            return type(value)(flat(item) for item in value)
        return value

    monkeypatch.setattr(codec, "encode", lambda value, **options: exact(flat(value), **options))
    result = check(str(SHAPES / "lcel.py:compressed"), ["apples"], process=process, modes=["invoke"])
    assert not result.is_equal
    assert "on its way" in report(result)
    assert "_DocumentWithState" in report(result)


@pytest.mark.filterwarnings("ignore")
def test_an_original_that_differs_from_itself_is_said_to(process: LeafProcess, tmp_path: Path) -> None:
    target = tmp_path / "dice.py"
    target.write_text(
        "import random\nfrom langchain_core.runnables import RunnableLambda\nchain = RunnableLambda(lambda x: random.random())\n"
    )
    result = check(f"{target}:chain", ["x"], process=process, modes=["invoke"])
    assert result.modes() == {"invoke": "nondeterministic"}
    assert result.is_equal
