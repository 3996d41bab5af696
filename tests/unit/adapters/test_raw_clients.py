"""Raw openai clients are leaves, one for each model that the code names; other clients are told with the line that uses them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest

from patchwork_adapters.bridge import Bridge
from patchwork_adapters.placement import ByProtocol, place
from patchwork_adapters.swap import swap
from patchwork_adapters.walk import Walk, find_leaves

from .fakes import FakeCluster

PROGRAM = """
import sqlite3
import httpx
import requests
import openai
from langchain_core.runnables import RunnableLambda

client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="sk-secret", max_retries=0)
MODEL = "small"
web = httpx.Client()
db = sqlite3.connect(":memory:", check_same_thread=False)

def answer(question):
    vector = client.embeddings.create(model="embed", input=[question]).data[0].embedding
    db.execute("select 1")
    reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return reply.choices[0].message.content

def page(url):
    return requests.get(url), web.get(url)

def any_model(model):
    return late.responses.create(model=model, input="x")

late = openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="sk-secret")
chain = RunnableLambda(answer)
pages = RunnableLambda(page)
late_chain = RunnableLambda(any_model)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[ModuleType]:
    file = tmp_path / "raw_program.py"
    file.write_text(PROGRAM)
    spec = importlib.util.spec_from_file_location("raw_program", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["raw_program"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["raw_program"]
    module.web.close()
    module.db.close()


def walk(module: ModuleType, name: str) -> Walk:
    return find_leaves(getattr(module, name), module, name)


def why(found: Walk) -> dict[str, str]:
    return {opaque.where: opaque.why for opaque in found.opaque}


def test_each_model_that_a_client_is_asked_for_is_a_leaf(program: ModuleType) -> None:
    found = walk(program, "chain")
    assert [(leaf.path, leaf.kind, leaf.spec.facts(leaf.obj).model) for leaf in found.leaves] == [
        ("client('embed')", "embedder", "embed"), ("client('small')", "llm", "small"),
    ]  # fmt: skip
    placed = place(found.leaves, ByProtocol())
    assert [(c.id, c.way, c.cls) for c in placed.components] == [
        ("embedder-embed", "protocol", "openai.OpenAI"), ("llm-small", "protocol", "openai.OpenAI"),
    ]  # fmt: skip
    assert "sk-secret" not in repr(placed)


def test_calls_of_a_raw_client_go_to_the_component_of_their_model_and_name_their_line(program: ModuleType) -> None:
    from patchwork_adapters import sites

    found = walk(program, "chain")
    cluster = FakeCluster()
    with Bridge(cluster) as bridge:
        change = swap(found.leaves, place(found.leaves, ByProtocol()).assignments, bridge)
        follow = sites.install(found)
        try:
            assert program.chain.invoke("hi") == "echo of 1: hi"
        finally:
            follow()
            change.undo()
    assert [(c.component, c.leaf, c.site) for c in cluster.calls] == [
        ("embedder-embed", "client('embed')", "client('embed')@answer:14"),
        ("llm-small", "client('small')", "client('small')@answer:16"),
    ]


def test_the_machinery_of_a_client_that_is_cut_is_not_walked(program: ModuleType) -> None:
    from patchwork_adapters.inspection import inspect_chain
    from patchwork_adapters.openai_cut import OpenAICut

    before = walk(program, "chain")
    with Bridge(FakeCluster()) as bridge:
        cut = OpenAICut(bridge, lambda *_: None)
        assert cut.attach(program.client)
        found = walk(program, "chain")
        graph = inspect_chain(program.chain, program, root="chain")
        cut.undo()
    assert (found.opaque, [leaf.path for leaf in found.leaves]) == (
        before.opaque,
        [leaf.path for leaf in before.leaves],
    )
    assert {(e.source, e.target) for e in graph.edges} == {
        ("__start__", "client('embed')"), ("__start__", "client('small')"),
        ("client('embed')", "__end__"), ("client('small')", "__end__"),
    }  # fmt: skip


def test_other_clients_are_named_with_the_line_that_uses_them(program: ModuleType) -> None:
    assert why(walk(program, "chain")) == {
        "db": "a database connection (sqlite3.Connection): its calls stay in the orchestrator; used at raw_program.py:15",
    }
    assert why(walk(program, "pages")) == {
        "page": "calls requests.get at raw_program.py:20: it runs in the orchestrator",
        "web": "an HTTP client (httpx.Client): its calls stay in the orchestrator; used at raw_program.py:20",
    }


def test_a_client_whose_models_are_known_only_when_it_is_called_is_named(program: ModuleType) -> None:
    found = walk(program, "late_chain")
    assert found.leaves == ()
    assert why(found)["late"].endswith("others to their server; used at raw_program.py:23")


# ---- what the cut answers a raw client, as a server would


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def cut(cluster: FakeCluster) -> Iterator[None]:
    from patchwork_adapters.openai_cut import OpenAICut

    with Bridge(cluster) as bridge:
        cut = OpenAICut(bridge, lambda base_url, path, model: "llm-small" if model == "small" else None)
        cut.install()
        yield
        cut.undo()


def options() -> dict[str, Any]:
    return {"base_url": "http://127.0.0.1:9/v1", "api_key": "k", "max_retries": 1}


@pytest.mark.usefixtures("cut")
async def test_completions_and_responses_answer_plain_and_streamed_sync_and_async(cluster: FakeCluster) -> None:
    client, aclient = openai.OpenAI(**options()), openai.AsyncOpenAI(**options())
    assert client.completions.create(model="small", prompt="a b").choices[0].text == "echo: a b"
    assert (await aclient.completions.create(model="small", prompt="a b")).choices[0].text == "echo: a b"
    chunks = client.completions.create(model="small", prompt="a b", stream=True)
    assert "".join(c.choices[0].text for c in chunks) == "echo: a b "
    assert client.responses.create(model="small", input="a b").output_text == "echo: a b"
    assert (await aclient.responses.create(model="small", input="a b")).output_text == "echo: a b"
    events = [event.type async for event in await aclient.responses.create(model="small", input="a b", stream=True)]
    assert events == ["response.output_text.delta"] * 3
    assert {c.method for c in cluster.calls} == {"POST /v1/completions", "POST /v1/responses"}
    assert [c.stream for c in cluster.calls] == [False, False, True, False, False, True]


@pytest.mark.usefixtures("cut")
async def test_retries_and_errors_of_a_raw_client_are_those_of_a_server(cluster: FakeCluster) -> None:
    from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable

    client, aclient = openai.OpenAI(**options()), openai.AsyncOpenAI(**options())
    cluster.fail_with = [ComponentUnavailable("busy")]
    assert client.responses.create(model="small", input="x").output_text == "echo: x"  # its own retry
    assert len(cluster.calls) == 2
    cluster.fail_with = [ComponentFailed("broken")]
    with pytest.raises(openai.InternalServerError) as caught:
        await aclient.completions.create(model="small", prompt="x")
    assert caught.value.status_code == 502
    cluster.delay_s = 30.0
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05, max_retries=0).responses.create(model="small", input="x")
    with pytest.raises(openai.APITimeoutError):
        await aclient.with_options(timeout=0.05, max_retries=0).embeddings.create(model="small", input="x")


def test_a_raw_client_is_sampled_by_its_requests(program: ModuleType) -> None:
    from patchwork_adapters.checking.cases import Case
    from patchwork_adapters.openai_cut import OpenAICut
    from patchwork_adapters.recorder import static_graph
    from patchwork_adapters.sample_runs import sample_graph
    from patchwork_adapters.target import LoadedTarget

    found = walk(program, "chain")
    placed = place(found.leaves, ByProtocol())
    loaded = LoadedTarget(program, "chain", program.chain, "langchain")
    static = static_graph("raw_program.py", loaded, found, placed.components)
    with Bridge(FakeCluster()) as bridge:
        cut = OpenAICut(bridge, lambda base_url, path, model: f"component of {model}")
        assert cut.attach(program.client)
        graph = sample_graph(loaded, found, placed, static, [Case("hi")]).graph
        cut.undo()
    assert [(s.id, s.visits, s.prompt_tokens, s.output_tokens) for s in graph.call_sites] == [
        ("client('embed')@answer:14", 1.0, 1.0, None), ("client('small')@answer:16", 1.0, 3.0, 4.0),
    ]  # fmt: skip
