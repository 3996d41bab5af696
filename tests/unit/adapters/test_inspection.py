"""The static component graph: components that share a model, and the edges that the structure shows."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from patchwork_adapters.errors import NoChainFound
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.inspection import inspect_chain
from patchwork_adapters.placement import ByProtocol, component_id, is_local_url
from patchwork_adapters.sites import leaf_of


def model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([]))


def store() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=4))


def edges(chain: Any, **names: Any) -> set[str]:
    """``source > target`` for data, with the kind for the others, in the names given; leaves only, without their places."""
    module = type(sys)("user")
    vars(module).update(names)
    graph = inspect_chain(chain, module)
    mark = {"data": ">", "cond": "?>", "loop": "@>", "map": "*>"}
    return {
        f"{leaf_of(e.source)} {mark[e.kind]} {leaf_of(e.target)}".replace("__start__", "^").replace("__end__", "$")
        for e in graph.edges
    }


def test_a_sequence_is_a_line_and_a_store_embeds_first() -> None:
    s, llm = store(), model()
    chain = {"context": s.as_retriever(), "question": RunnablePassthrough()} | RunnableLambda(str) | llm
    assert edges(chain, emb=s.embedding, store=s, llm=llm) == {"^ > emb", "emb > store", "store > llm", "llm > $"}


def test_parallel_parts_join_again() -> None:
    a, b, c = model(), model(), model()
    chain = RunnableParallel(x=a, y=b) | RunnableLambda(str) | c
    assert edges(chain, a=a, b=b, c=c) == {"^ > a", "^ > b", "a > c", "b > c", "c > $"}


def test_branches_are_conditional_and_may_be_passed() -> None:
    a, b, c = model(), model(), model()
    chain = a | RunnableBranch((lambda x: True, b), RunnableLambda(str)) | c
    assert edges(chain, a=a, b=b, c=c) == {"^ > a", "a ?> b", "b > c", "a > c", "c > $"}


def test_fallbacks_are_conditional() -> None:
    a, b, c = model(), model(), model()
    chain = a.with_fallbacks([b]) | RunnableLambda(str) | c
    assert edges(chain, a=a, b=b, c=c) == {"^ > a", "a ?> b", "a > c", "b > c", "c > $"}


def test_bindings_and_functions_are_looked_through() -> None:
    a, b = model(), model()

    def ask(x: Any) -> Any:
        return a.invoke(x)

    assert edges(RunnableLambda(ask) | b.bind(stop=["x"]).with_retry(), a=a, b=b) == {"^ > a", "a > b", "b > $"}


@pytest.fixture
def chains() -> Iterator[None]:
    folder = str(Path(__file__).parent / "chains")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    for name in ("graph", "llama"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("chains")
def test_a_langgraph_shows_conditions_and_loops_and_skips_nodes_without_leaves() -> None:
    module = importlib.import_module("graph")
    assert edges(module.app, **{n: v for n, v in vars(module).items() if not n.startswith("_")}) == {
        "^ > store.embedding", "store.embedding > store", "store > grader", "grader ?> writer", "writer @> store.embedding", "writer > $",
    }  # fmt: skip


@pytest.mark.usefixtures("chains")
def test_a_query_engine_shows_retrieval_reranking_and_answer() -> None:
    pytest.importorskip("llama_index.core")
    module = importlib.import_module("llama")
    graph = inspect_chain(module.query_engine, module, root="query_engine")
    assert graph.framework == "llamaindex"
    assert [(c.kind, c.engine) for c in graph.components] == [
        ("embedder", "own"), ("retriever", "pgvector"), ("llm", "own"), ("llm", "own"),
    ]  # fmt: skip
    steps = {(leaf_of(e.source), leaf_of(e.target)) for e in graph.edges}
    kinds = {leaf: c.kind for c in graph.components for leaf in c.leaves}
    assert {(kinds.get(a, a), kinds.get(b, b)) for a, b in steps} == {
        ("__start__", "embedder"), ("embedder", "retriever"), ("retriever", "llm"), ("llm", "llm"), ("llm", "__end__"),
    }  # fmt: skip


def openai_chain(**urls: str) -> tuple[Any, dict[str, Any]]:
    names: dict[str, Any] = {
        "strict": ChatOpenAI(model="small", temperature=0, base_url="http://localhost:1/v1", api_key="k"),  # type: ignore[arg-type]
        "loose": ChatOpenAI(model="small", temperature=1, base_url="http://localhost:1/v1", api_key="k"),  # type: ignore[arg-type]
        "hosted": ChatOpenAI(model="gpt-x", base_url="https://api.openai.com/v1", api_key="k"),  # type: ignore[arg-type]
        "embed": OpenAIEmbeddings(model="mini", base_url="http://localhost:1/v1", api_key="k"),  # type: ignore[arg-type]
    }
    chain = RunnableLambda(names["embed"].embed_query) | names["strict"] | names["loose"] | names["hosted"]
    return chain, names


def graph_of_openai_chain(**options: Any) -> ComponentGraph:
    chain, names = openai_chain()
    module = type(sys)("user")
    vars(module).update(names)
    return inspect_chain(chain, module, **options)


def test_leaves_with_one_model_share_a_component_and_a_hosted_api_stays_external() -> None:
    graph = graph_of_openai_chain()
    assert [(c.id, c.way, c.leaves) for c in graph.components] == [
        ("llm-small", "protocol", ("strict", "loose")),
        ("llm-gpt-x", "external", ("hosted",)),
        ("embedder-mini", "protocol", ("embed",)),
    ]
    assert [s.component for s in graph.call_sites] == ["llm-small", "llm-small", "llm-gpt-x", "embedder-mini"]


def test_a_hosted_url_with_a_model_that_we_can_host_is_ours() -> None:
    graph = graph_of_openai_chain(resolver=ByProtocol(frozenset({"gpt-x"})))
    assert graph.component("llm-gpt-x").way == "protocol"


def test_the_graph_is_the_document_of_the_contract_and_comes_back_from_it() -> None:
    graph = graph_of_openai_chain(target="x.py:chain")
    document = graph.to_json()
    assert {"target", "framework", "components", "call_sites", "edges", "opaque"} <= document.keys()
    assert {"id", "kind", "class", "engine", "external"} <= document["components"][0].keys()
    assert ComponentGraph.from_json(document) == graph
    assert "k" not in [v for c in document["components"] for v in c.values()]


def test_other_objects_are_no_chains() -> None:
    with pytest.raises(NoChainFound, match="a dict is not a chain"):
        inspect_chain({})


def test_ids_are_readable_and_never_taken_twice() -> None:
    assert component_id("llm", "Org/My Model.v2") == "llm-org-my-model-v2"
    assert component_id("llm", "m", {"llm-m", "llm-m-2"}) == "llm-m-3"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://0.0.0.0:1", True),
        ("https://api.openai.com/v1", False),
        ("http://10.0.0.7/v1", False),
        ("http://localhost.evil.com", False),
    ],
)
def test_local_urls(url: str, expected: bool) -> None:
    assert is_local_url(url) is expected


_found: dict[str, Any] = {}  #: LlamaIndex's settings before the first of the next two tests


def test_a_module_may_set_llamaindexs_settings() -> None:
    settings = pytest.importorskip("llama_index.core").Settings
    _found.update(vars(settings))
    settings.embed_model, settings.chunk_size = pytest.importorskip("llama_index.core").MockEmbedding(4), 77
    assert vars(settings) != _found


def test_and_the_next_test_finds_them_as_they_were() -> None:
    """Else the leaves of chains that have nothing to do with the module would be found in them."""
    if not _found:
        pytest.skip("runs after the test before it")
    assert vars(pytest.importorskip("llama_index.core").Settings) == _found
