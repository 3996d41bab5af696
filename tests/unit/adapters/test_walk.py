"""The walk finds every leaf, by the same path in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel
from langchain_core.vectorstores import InMemoryVectorStore

from patchwork_adapters.walk import Walk, find_leaves

CHAINS = Path(__file__).parent / "chains"


def model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([]))


def store() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(["a", "b"], DeterministicFakeEmbedding(size=4))


def paths(chain: Any, /, **names: Any) -> list[str]:
    return [leaf.path for leaf in walk(chain, **names).leaves]


def walk(chain: Any, /, **names: Any) -> Walk:
    module = ModuleType("user")
    vars(module).update(names)
    return find_leaves(chain, module if names else None)


def test_a_leaf_is_named_by_its_global_else_by_its_place() -> None:
    a, b = model(), model()
    chain = RunnableLambda(str) | a | b
    assert paths(chain, llm=b, chain=chain) == ["llm", "chain.steps[1]"]


def test_a_global_that_the_chain_does_not_use_is_no_leaf_of_it() -> None:
    a, b = model(), model()
    chain = a | RunnableLambda(str)
    assert paths(chain, llm=a, other=b, chain=chain) == ["llm"]


def test_a_store_and_its_embedder_are_two_leaves_and_its_retriever_none() -> None:
    found = walk(store().as_retriever() | RunnableLambda(str)).leaves
    assert [(leaf.kind, leaf.path) for leaf in found] == [
        ("retriever", "chain.steps[0].vectorstore"),
        ("embedder", "chain.steps[0].vectorstore.embedding"),
    ]


def test_an_empty_store_stays_where_it_is() -> None:
    empty = InMemoryVectorStore(DeterministicFakeEmbedding(size=4))
    assert [leaf.kind for leaf in walk(empty.as_retriever() | RunnableLambda(str)).leaves] == ["embedder"]


class Pipeline:
    __slots__ = ("__hidden", "parts")
    shared = model()

    def __init__(self) -> None:
        self.__hidden = model()
        self.parts = {"x": [model()], 1: (model(),)}

    def run(self, x: Any) -> Any:
        return self.shared.invoke(x)


def test_containers_slots_and_class_attributes_are_looked_into() -> None:
    pipeline = Pipeline()
    found = paths(RunnableLambda(pipeline.run), pipe=pipeline)
    assert found == ["pipe._Pipeline__hidden", "pipe.shared", "pipe.parts['x'][0]", "pipe.parts[1][0]"]


def test_functions_are_looked_into() -> None:
    captured, default, bound = model(), model(), model()

    def closure(x: Any, llm: Any = default) -> Any:
        return captured.invoke(llm.invoke(x))

    def with_argument(llm: Any, x: Any) -> Any:
        return llm.invoke(x)

    chain = RunnableLambda(closure) | RunnableLambda(partial(with_argument, bound))
    assert paths(chain) == ["chain.steps[0].func::captured", "chain.steps[0].func::llm", "chain.steps[1].func.args[0]"]


GLOBAL_LLM = model()


def uses_global(x: Any) -> Any:
    return (lambda y: GLOBAL_LLM.invoke(y))(x)


def test_globals_that_bytecode_loads_are_found_even_in_nested_code() -> None:
    assert paths(RunnableLambda(uses_global)) == ["chain.func::GLOBAL_LLM"]


def test_branches_fallbacks_and_alternatives_that_were_never_taken_are_found() -> None:
    a, b, c = model(), model(), model()
    branch = RunnableBranch((lambda x: True, a), b.with_fallbacks([c]))
    chain = RunnableParallel(left=branch, right=RunnableLambda(str))
    assert paths(chain, a=a, b=b, c=c) == ["a", "b", "c"]


class Wrapper(GenericFakeChatModel):
    inner: Any = None


def test_a_model_that_is_built_on_another_is_glue() -> None:
    inner = model()
    assert paths(Wrapper(messages=iter([]), inner=inner) | RunnableLambda(str), inner=inner) == ["inner"]


def test_raw_clients_are_named_as_opaque() -> None:
    import httpx

    client = httpx.Client()

    def ask(x: Any) -> Any:
        return client.get(x)

    (opaque,) = walk(RunnableLambda(ask)).opaque
    assert opaque.where == "chain.func::client"
    assert "an HTTP client" in opaque.why
    client.close()


def constructs(x: Any) -> Any:
    return GenericFakeChatModel(messages=iter(["a"])).invoke(x)


def test_a_function_that_constructs_a_model_per_call_is_named() -> None:
    (opaque,) = walk(RunnableLambda(constructs)).opaque
    assert (opaque.where, opaque.why) == (
        "chain.func",
        "constructs a GenericFakeChatModel at test_walk.py:141 with what is known only then: it runs in the orchestrator",
    )


def test_a_graphs_leaves_are_found_through_its_nodes() -> None:
    graph = pytest.importorskip("langgraph.graph")
    llm = model()

    def answer(state: dict[str, Any]) -> dict[str, Any]:
        return {"x": llm.invoke(state["x"])}

    builder = graph.StateGraph(dict)
    builder.add_node("answer", answer)
    builder.add_edge(graph.START, "answer")
    assert len(paths(builder.compile())) == 1


_DESCRIBE = """
import importlib, json, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
from patchwork_adapters.stores import fingerprint
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.inspection import inspect_chain
from patchwork_adapters.walk import find_leaves
loaded = load_target(parse_target(sys.argv[1]))
walk = find_leaves(loaded.chain, loaded.module, loaded.root)
graph = inspect_chain(loaded.chain, loaded.module, target="t", root=loaded.root).to_json()
marks = [fingerprint(leaf.spec, leaf.obj) for leaf in walk.leaves if leaf.spec.export]
print(json.dumps([[(leaf.path, leaf.kind, leaf.cls) for leaf in walk.leaves], graph, marks]))
"""


@pytest.mark.parametrize("name", ["lcel.py", "graph.py", "llama.py"])
def test_every_process_finds_the_same_leaves_and_graph(name: str) -> None:
    if name == "llama.py":
        pytest.importorskip("llama_index.core")
    # one process has imported frameworks before, which draw ids of their own while they are imported
    before = {"0": (), "1": (), "4242": ("langchain_openai", "langgraph.graph", "llama_index.core")}
    found = {_describe(CHAINS / name, seed, *modules) for seed, modules in before.items()}
    assert len(found) == 1
    leaves, _, marks = json.loads(found.pop())
    assert len(leaves) >= 3
    assert len(marks) == 1


def _describe(path: Path, hash_seed: str, *before: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", _DESCRIBE, str(path), *before], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]
