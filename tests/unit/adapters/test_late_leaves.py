"""Leaves that the user's functions construct as they run: a component has them, and each call sees a new one."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.check import check
from patchwork_adapters.checking.process import LeafProcess
from patchwork_adapters.inspection import inspect_chain
from patchwork_adapters.own import runner_of
from patchwork_adapters.placement import ByProtocol, place
from patchwork_adapters.swap import swap
from patchwork_adapters.walk import Walk, find_leaves
from tests.kit.twins import Twins

from .fakes import FakeCluster

SHAPES = Path(__file__).parents[2] / "kit" / "shapes"


@pytest.fixture(scope="module")
def process() -> Iterator[LeafProcess]:
    with LeafProcess() as process:
        yield process


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "inputs", "local"),
    [
        ("late.py:lambdas", [" why apples?"], set()),
        ("late.py:graph", [{"question": "why?"}], {"a new langchain_leaves.HashEmbeddings.embed_query"}),
        ("late_llama.py:engine", ["apples"], set()),
        ("late_llama.py:workflow", [{"query": "apples"}], set()),
    ],
)
def test_a_chain_that_constructs_its_leaves_is_equal_in_every_mode(
    process: LeafProcess, shape: str, inputs: list[Any], local: set[str]
) -> None:
    result = check(str(SHAPES / shape), inputs, process=process, timeout_s=60)
    lines = [f"{run.mode}: {line}" for run in result.runs for line in run.differences]
    assert set(result.modes().values()) == {"equal"}, lines
    assert {what for what, _ in result.local} == local
    assert result.notes == ()


class Tool:
    """What does the work, and takes long to load."""

    loaded = 0

    def __init__(self) -> None:
        type(self).loaded += 1
        self.lock = threading.Lock()


class Loading(BaseChatModel):
    """Loads its weights when it is first asked, and counts what it was asked."""

    name_: str = "loading"
    key: str = "sk-very-secret"
    asked: int = 0
    notes: dict[str, list[int]] = Field(default_factory=dict)
    tool: Any = None

    @property
    def _llm_type(self) -> str:
        return "loading"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.tool = self.tool or Tool()
        self.asked += 1
        self.notes.setdefault("asked", []).append(self.asked)
        text = f"{self.asked} {self.notes} {threading.get_ident()}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])


def asks(question: str) -> list[str]:
    model = Loading(name_="a")
    return [str(model.invoke(question).text).rpartition(" ")[0] for _ in range(2)]


def asks_by_name(question: str) -> str:
    return str(Loading(name_=question).invoke(question).text)


async def asks_on_the_loop(question: str) -> str:
    return asks_by_name(question)


def two_of_them(question: str) -> list[Any]:
    return [Loading(name_="a"), Loading(name_="b"), Loading(name_="a")]


def taken(chain: Any, twins: Twins, bridge: Bridge) -> tuple[Walk, Any]:
    walk = find_leaves(chain)
    placed = place(walk.leaves, ByProtocol())
    twins.runners.update(
        {placed.assignments[leaf.path].component: runner_of(find_leaves(chain).leaf(leaf.path)) for leaf in walk.leaves}
    )
    return walk, swap(walk.leaves, placed.assignments, bridge, late_classes=walk.late_classes)


def test_each_constructed_model_is_new_and_the_weights_are_loaded_once() -> None:
    chain, twins = RunnableLambda(asks), Twins()
    Tool.loaded = 0
    with Bridge(twins) as bridge:
        _, made = taken(chain, twins, bridge)
        answers = [chain.invoke("x") for _ in range(3)]
        made.undo()
    assert answers == [["1 {'asked': [1]}", "2 {'asked': [1, 2]}"]] * 3
    assert len(twins.calls) == 6
    assert Tool.loaded == 1


def test_objects_with_equal_arguments_are_one_leaf() -> None:
    walk = find_leaves(RunnableLambda(two_of_them))
    assert [leaf.path for leaf in walk.leaves] == ["chain.func::Loading()", "chain.func::Loading()[1]"]
    assert [len(leaf.late.where) for leaf in walk.leaves if leaf.late is not None] == [1, 1]


def test_after_the_undo_objects_are_constructed_as_before() -> None:
    before = vars(Loading).get("__init__")
    twins = Twins()
    with Bridge(twins) as bridge:
        _, made = taken(RunnableLambda(asks), twins, bridge)
        assert type(Loading(name_="a")) is not Loading
        assert type(Loading(name_="other")) is Loading
        made.undo()
    assert type(Loading(name_="a")) is Loading
    assert vars(Loading).get("__init__") is before


def test_one_that_is_constructed_with_what_is_known_only_then_is_named_with_its_line_and_stays() -> None:
    chain, twins = RunnableLambda(asks_by_name), Twins()
    with Bridge(twins) as bridge:
        walk, made = taken(chain, twins, bridge)
        answer = chain.invoke("x")
        made.undo()
    line = asks_by_name.__code__.co_firstlineno + 1
    assert [opaque.why for opaque in walk.opaque] == [
        f"constructs a Loading at test_late_leaves.py:{line} with what is known only then: it runs in the orchestrator"
    ]
    assert answer.startswith("1 ")
    assert twins.calls == []


def test_one_that_stays_lets_the_loop_go_on_when_it_is_called_there() -> None:
    chain, twins = RunnableLambda(asks_by_name, afunc=asks_on_the_loop), Twins()
    with Bridge(twins) as bridge, asyncio.Runner() as runner:
        install_portal(runner.get_loop())
        _, made = taken(chain, twins, bridge)
        swapped = runner.run(chain.ainvoke("x"))
        made.undo()
        plain = runner.run(chain.ainvoke("x"))
    here = str(threading.get_ident())
    assert plain.endswith(here)
    assert not swapped.endswith(here)


def test_what_is_constructed_shows_its_line_and_none_of_its_arguments() -> None:
    text = str(inspect_chain(RunnableLambda(keyed)).to_json())
    assert f"test_late_leaves.py:{keyed.__code__.co_firstlineno + 1}" in text
    assert "sk-other" not in text


def keyed(question: str) -> str:
    return str(Loading(key="sk-other").invoke(question).text)


class Refusing(Embeddings):
    def __init__(self, why: str) -> None:
        raise ValueError(why)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return []

    def embed_query(self, text: str) -> list[float]:
        return []


def refused(question: str) -> Any:
    return Refusing("sk-secret").embed_query(question)


class Pretrained(Refusing):
    """Made as Hugging Face's classes are."""

    def __init__(self, weights: str) -> None:
        self.weights = weights

    @classmethod
    def from_pretrained(cls, name: str) -> Pretrained:
        return cls(f"the weights of {name}")


def pretrained(question: str) -> Any:
    return Pretrained.from_pretrained("small").embed_query(question)


def test_one_that_a_class_method_constructs_is_named_with_its_line_and_lets_the_loop_go_on() -> None:
    walk = find_leaves(RunnableLambda(pretrained))
    line = pretrained.__code__.co_firstlineno + 1
    assert [opaque.why for opaque in walk.opaque] == [
        f"constructs a Pretrained at test_late_leaves.py:{line} by from_pretrained: it runs in the orchestrator"
    ]
    assert tuple(walk.late_classes) == (Pretrained,)


def test_a_constructor_that_raises_beforehand_leaves_the_function_as_it_is() -> None:
    (opaque,) = find_leaves(RunnableLambda(refused)).opaque
    assert "which raised ValueError beforehand" in opaque.why
    assert "sk-secret" not in opaque.why


def asks_openai(question: str) -> str:
    from langchain_openai import ChatOpenAI

    return str(ChatOpenAI(model="small", base_url="http://localhost:1/v1", api_key="k").invoke(question).text)  # type: ignore[arg-type]


async def asks_openai_async(question: str) -> str:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="small", base_url="http://localhost:1/v1", api_key="k")  # type: ignore[arg-type]
    return str((await model.ainvoke(question)).text)


async def test_an_openai_model_that_is_constructed_in_a_function_has_a_component() -> None:
    pytest.importorskip("langchain_openai")
    chain, cluster = RunnableLambda(asks_openai, afunc=asks_openai_async), FakeCluster()
    walk = find_leaves(chain)
    placed = place(walk.leaves, ByProtocol())
    assert [(c.id, c.way) for c in placed.components] == [("llm-small", "protocol")]
    with Bridge(cluster) as bridge:
        made = swap(walk.leaves, placed.assignments, bridge, late_classes=walk.late_classes)
        answers = [await asyncio.to_thread(chain.invoke, "hi"), await chain.ainvoke("hi")]
        made.undo()
    assert answers == ["echo of 1: hi"] * 2
    assert {(call.component, call.leaf) for call in cluster.calls} == {("llm-small", walk.leaves[0].path)}


def asks_a_client(question: str) -> str:
    from openai import OpenAI

    client = OpenAI(base_url="http://localhost:1/v1", api_key="sk-k")
    asked: Any = [{"role": "user", "content": question}]
    return str(client.chat.completions.create(model="small", messages=asked).choices[0].message.content)


def test_a_raw_client_that_is_constructed_in_a_function_is_a_leaf_for_each_model_that_it_is_asked_for() -> None:
    pytest.importorskip("openai")
    chain, cluster = RunnableLambda(asks_a_client), FakeCluster()
    walk = find_leaves(chain)
    assert [leaf.path for leaf in walk.leaves] == ["chain.func::OpenAI()('small')"]
    assert walk.opaque == ()
    placed = place(walk.leaves, ByProtocol())
    with Bridge(cluster) as bridge:
        made = swap(walk.leaves, placed.assignments, bridge, late_classes=walk.late_classes)
        assert chain.invoke("hi") == "echo of 1: hi"
        made.undo()
    assert [(call.component, call.leaf) for call in cluster.calls] == [("llm-small", walk.leaves[0].path)]


def test_samples_see_what_is_constructed_as_the_leaf_that_it_is() -> None:
    from patchwork_adapters.checking.cases import Case
    from patchwork_adapters.openai_cut import OpenAICut
    from patchwork_adapters.recorder import static_graph
    from patchwork_adapters.sample_runs import sample_graph
    from patchwork_adapters.target import LoadedTarget

    chain = RunnableLambda(asks_a_client) | RunnableLambda(asks)
    walk = find_leaves(chain)
    placed = place(walk.leaves, ByProtocol())
    loaded = LoadedTarget(sys.modules[__name__], "chain", chain, "langchain")
    static = static_graph("t", loaded, walk, placed.components)
    with Bridge(FakeCluster()) as bridge:
        cut = OpenAICut(bridge, lambda base_url, path, model: model)
        cut.install()
        graph = sample_graph(loaded, walk, placed, static, [Case("hi")]).graph
        cut.undo()
    line, client_line = (f.__code__.co_firstlineno for f in (asks, asks_a_client))
    assert {(site.id, site.component, site.visits) for site in graph.call_sites} == {
        (f"chain.steps[0].func::OpenAI()('small')@1/asks_a_client:{client_line + 5}", "llm-small", 1.0),
        (f"chain.steps[1].func::Loading()@2/asks:{line + 2}", "llm-chain-steps-1-func-loading", 2.0),
    }


class Pipeline:
    """Makes its models once, in its constructor and in a method that this calls."""

    def __init__(self) -> None:
        self.first = Loading(name_="first")
        self._prepare()

    def _prepare(self) -> None:
        self.second = Loading(name_="second")

    def run(self, question: str) -> str:
        return str(self.first.invoke(question).text) + str(self.second.invoke(question).text)


def test_what_an_object_constructed_when_it_was_made_needs_no_component_of_its_own() -> None:
    walk = find_leaves(RunnableLambda(Pipeline().run))
    assert [leaf.path.rpartition(".")[2] for leaf in walk.leaves if leaf.late is None] == ["first", "second"]
    assert [leaf.path.rpartition(".")[2] for leaf in walk.leaves if leaf.late is not None] == ["_prepare::Loading()"]
    placed = place(walk.leaves, ByProtocol())
    assert len(placed.components) == 2
