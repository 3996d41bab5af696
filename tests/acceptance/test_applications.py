"""The larger examples, without Patchwork: that they take the ways that their papers describe. The models are rules (``kit.ruled_api``)."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kit.ruled_api import RuledApi, ruled_api

#: one loop for all: the clients of the modules keep their connections
pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = ("grader", "rewriter", "generator", "reasoner", "extractor", "memory")
QUESTION = "What does the finally clause of a try statement do?"


@pytest.fixture(scope="module")
def api() -> Iterator[RuledApi]:
    with ruled_api() as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", served.url)
        patch.setenv("OPENAI_API_KEY", "none")
        for part in PARTS:
            patch.setenv(f"{part.upper()}_MODEL", part)
        patch.syspath_prepend(str(EXAMPLES))
        yield served
        for name in [n for n, m in sys.modules.items() if str(EXAMPLES) in str(getattr(m, "__file__", ""))]:
            del sys.modules[name]


def example(name: str) -> Any:
    return importlib.import_module(name)


def counted(api: RuledApi, rules: dict[str, str]) -> RuledApi:
    api.rules = rules
    api.asked.clear()
    return api


@pytest.fixture
def crag(api: RuledApi, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABASE_URL", postgres_dsn)
    return example("crag")


@pytest.mark.postgres
async def test_crag_answers_from_the_passages_that_its_grader_accepts(crag: Any, api: RuledApi) -> None:
    counted(api, {"yes or no": "Yes.", "using only the context": "It runs last."})
    state = await crag.graph.ainvoke({"question": QUESTION})
    assert state["answer"] == "It runs last."
    assert [document for _, document in sorted(state["relevant"], key=lambda r: r[0])] == state["documents"]
    assert api.asked == {"grader": 4, "generator": 1}


@pytest.mark.postgres
async def test_crag_asks_its_second_source_when_no_passage_is_accepted(crag: Any, api: RuledApi) -> None:
    counted(api, {"yes or no": "No.", "search query": "finally clause try statement"})
    state = await crag.graph.ainvoke({"question": QUESTION})
    assert api.asked == {"grader": 4, "rewriter": 1, "generator": 1}
    assert state["relevant"]
    assert any("finally" in document.page_content for _, document in state["relevant"])


@pytest.mark.postgres
def test_processes_of_a_server_may_make_the_second_source_at_once(
    api: RuledApi, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_dsn)
    fulltext = example("fulltext")
    monkeypatch.setattr(fulltext, "TABLE", "made_at_once")
    for name in ("CREATE", "INDEX", "FILL", "SEARCH"):
        monkeypatch.setattr(
            fulltext, name, getattr(fulltext, name).replace("python_reference_sections", "made_at_once")
        )
    together = threading.Barrier(8)

    def made() -> int:
        together.wait()
        return len(fulltext.full_text_search().invoke("finally clause"))

    with ThreadPoolExecutor(8) as threads:
        assert [one.result() for one in [threads.submit(made) for _ in range(8)]] == [2] * 8


async def test_ircot_reasons_and_retrieves_in_turn_until_it_has_the_answer(api: RuledApi) -> None:
    graph = example("ircot").graph
    counted(api, {"next sentence": "So the answer is that it runs last."})
    assert len((await graph.ainvoke({"question": QUESTION}))["thoughts"]) == 1
    assert api.asked == {"reasoner": 1, "generator": 1}
    counted(api, {"next sentence": "The try statement has clauses."})
    assert len((await graph.ainvoke({"question": QUESTION}))["thoughts"]) == 3
    assert api.asked == {"reasoner": 3, "generator": 1}


async def test_hipporag_reaches_passages_that_share_terms_with_the_question(api: RuledApi) -> None:
    module = example("hipporag")
    counted(api, {"separated by commas": "finally, try"})
    await module.chain.ainvoke(QUESTION)
    assert api.asked == {"extractor": 1, "generator": 1}
    found = module.reached(module.term_index.get_by_ids([f"term-{module.terms.index('finally')}"]))
    assert sum("finally" in document.page_content for document in found) >= 2


async def test_memorag_searches_for_each_clue_and_keeps_each_passage_once(api: RuledApi) -> None:
    module = example("memorag")
    counted(api, {"three short phrases": "1. finally clause\n2. try statement\n3. exceptions\n4. too many"})
    await module.chain.ainvoke(QUESTION)
    assert api.asked == {"memory": 1, "generator": 1}
    assert module.lines("1. finally clause\n\n2. try") == ["finally clause", "try"]
    found = module.retriever.batch(["finally clause", "finally clause"])
    assert [d.id for d in module.merged(found)] == [d.id for d in found[0]]


async def test_self_rag_generates_again_what_is_not_supported_and_rewrites_what_is_not_useful(api: RuledApi) -> None:
    graph = example("self_rag").graph
    counted(api, {"yes or no": "yes"})
    assert (await graph.ainvoke({"question": QUESTION}))["generated"] == 1
    counted(api, {"support it": "no", "yes or no": "yes"})
    assert (await graph.ainvoke({"question": QUESTION}))["generated"] == 2
    counted(api, {"is it about": "no", "Is it about": "no", "yes or no": "yes", "other words": "Asked differently?"})
    state = await graph.ainvoke({"question": QUESTION})
    assert (state["rewritten"], state["documents"]) == (2, [])


@pytest.mark.parametrize(("verdict", "retrievals"), [("A", 0), ("B", 1), ("C", 2)])
async def test_adaptive_rag_looks_up_as_often_as_the_question_needs(
    api: RuledApi, verdict: str, retrievals: int
) -> None:
    graph = example("adaptive_rag").graph
    counted(api, {"A, B or C": verdict, "looked up": "exceptions"})
    assert (await graph.ainvoke({"question": QUESTION}))["steps"] == retrievals


async def test_the_router_splits_a_comparison_and_asks_one_index_else(api: RuledApi) -> None:
    pytest.importorskip("llama_index.llms.openai_like")
    engine = example("llamaindex_router").query_engine
    comparison = "comparisons: how does one thing differ from another"
    counted(api, {})
    plain = await engine.aquery("statements of Python: while")
    assert sum(api.asked.values()) == 1
    assert plain.source_nodes
    counted(api, {})
    await engine.aquery(comparison)
    assert sum(api.asked.values()) == 3
