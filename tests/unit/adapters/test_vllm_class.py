"""The vLLM classes of both frameworks, swapped: what they would ask of their engine is asked of the component, and none is built."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.spec import install_construct_hooks, spec_for
from patchwork_adapters.placement import can_be_mapped

from .engine_twin import swapped

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hooks() -> Iterator[None]:
    undo = install_construct_hooks()
    yield
    undo()


def vllm(**fields: Any) -> Any:
    from langchain_community.llms import VLLM

    return VLLM(model="org/model", **fields)


def test_its_constructor_builds_no_engine_and_leaves_no_trace(hooks: None) -> None:
    before = sys.modules.get("vllm")
    leaf = vllm(vllm_kwargs={"max_model_len": 64})
    assert isinstance(leaf.client, Deferred)
    assert leaf.client.deferred_settings["max_model_len"] == 64
    assert sys.modules.get("vllm") is before


def test_its_parameters_are_those_of_a_completion(hooks: None) -> None:
    leaf = vllm(temperature=0.5, max_new_tokens=7, top_k=-1, presence_penalty=0.5, stop=["never looked at"])
    with swapped(leaf) as component:
        assert leaf.invoke("four", stop=["."]) == "4 characters"
    [(_, body)] = component.asked
    assert body == {
        "model": "org/model", "prompt": "four", "temperature": 0.5, "top_p": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.0,
        "max_tokens": 7, "stop": ["."], "ignore_eos": False,
    }  # fmt: skip


def test_several_prompts_keep_their_order_in_both_colours(hooks: None) -> None:
    leaf = vllm(top_k=5)
    prompts = ["a", "bb", "ccc"]
    with swapped(leaf) as component:
        assert leaf.batch(prompts) == ["1 characters", "2 characters", "3 characters"]
        assert asyncio.run(leaf.abatch(prompts)) == ["1 characters", "2 characters", "3 characters"]
        assert leaf.bind(seed=4, max_tokens=1).invoke("a") == "1 characters"
    _, body = component.asked[-1]
    assert (body["seed"], body["max_tokens"], body["top_k"]) == (4, 1, 5)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"use_beam_search": True}, "beam search"),
        ({"best_of": 4}, "best_of"),
        ({"vllm_kwargs": {"quantization": "awq"}}, "vllm_kwargs: quantization"),  # other weights
        ({"vllm_kwargs": {"gpu_memory_utilization": 0.5}}, None),
    ],
)
def test_what_an_engine_cannot_stand_in_for_runs_as_it_is(hooks: None, fields: dict[str, Any], why: str | None) -> None:
    leaf = vllm(**fields)
    spec = spec_for(type(leaf))
    assert spec is not None
    facts = spec.facts(leaf)
    assert (facts.model, facts.why_own) == ("org/model", why)


def test_a_subclass_with_its_own_version_of_what_an_engine_would_do_runs_as_it_is(hooks: None) -> None:
    from langchain_community.llms import VLLM

    class Shouting(VLLM):
        def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> Any:
            return super()._generate([prompt.upper() for prompt in prompts], *args, **kwargs)

    class Named(VLLM):
        @property
        def _llm_type(self) -> str:
            return "named"

    spec = spec_for(Shouting)
    assert spec is not None
    assert spec.facts(Shouting(model="org/model")).why_own == "its class has its own _generate"
    named = Named(model="org/model")
    assert spec.facts(named).why_own is None
    with swapped(named):
        assert spec.facts(named).why_own is None  # our own layer is not the user's
        assert named.invoke("four") == "4 characters"


# ---- LlamaIndex


def index_vllm(name: str = "Vllm", **fields: Any) -> Any:
    package = pytest.importorskip("llama_index.llms.vllm")
    return getattr(package, name)(model="org/model", **fields)


def test_llamaindexs_engine_is_asked_as_the_class_would(hooks: None) -> None:
    from llama_index.core.llms import ChatMessage

    leaf = index_vllm(temperature=0.5, max_new_tokens=7, stop=["."], vllm_kwargs={"gpu_memory_utilization": 0.5})
    assert isinstance(leaf._client, Deferred)
    with swapped(leaf) as component:
        assert leaf.complete("four", seed=4).text == "4 characters"
        assert asyncio.run(leaf.acomplete("four")).text == "4 characters"
        assert leaf.chat([ChatMessage("hi")]).message.content.endswith(" characters")
        assert asyncio.run(leaf.achat([ChatMessage("hi")])).message.content.endswith(" characters")
        with pytest.raises(ValueError, match="Not Implemented"):
            leaf.stream_complete("four")
    operation, body = component.asked[0]
    assert operation == "complete"
    assert body == {
        "model": "org/model", "prompt": "four", "temperature": 0.5, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "max_tokens": 7, "seed": 4, "stop": ["."], "ignore_eos": False,
    }  # fmt: skip


@pytest.mark.parametrize(("openai_like", "said"), [(False, "four4 characters"), (True, "4 characters")])
def test_llamaindexs_client_of_a_server_gets_what_that_server_says(openai_like: bool, said: str) -> None:
    """The old demonstration server gives the prompt back before the text."""
    from llama_index.core.llms import ChatMessage

    leaf = index_vllm("VllmServer", openai_like=openai_like, max_new_tokens=7)
    with swapped(leaf) as component:
        assert leaf.complete("four").text == said
        assert asyncio.run(leaf.acomplete("four")).text == said
        pieces = list(leaf.stream_complete("four"))
        assert (pieces[-1].text, "".join(piece.delta for piece in pieces)) == (said, "4 characters")
        assert asyncio.run(_collected(leaf.astream_complete("four"))) == ["4", " characters"]
        assert asyncio.run(leaf.achat([ChatMessage("hi")])).message.content.endswith(" characters")
        assert asyncio.run(_collected(leaf.astream_chat([ChatMessage("hi")])))[-1] == " characters"
    operation, body = component.asked[0]
    assert (operation, body["max_tokens"]) == ("chat" if openai_like else "complete", 7)


async def _collected(stream: Any) -> list[str]:
    return [piece.delta async for piece in await stream]


@pytest.mark.parametrize(
    ("fields", "mapped"),
    [
        ({}, True),  # the class's own default: http://localhost:8000
        ({"api_url": "https://llm.example.com/generate"}, False),  # it has its own model, whatever has that name here
    ],
)
def test_a_server_elsewhere_keeps_its_calls(fields: dict[str, Any], mapped: bool) -> None:
    leaf = index_vllm("VllmServer", **fields)
    spec = spec_for(type(leaf))
    assert spec is not None
    assert can_be_mapped(spec, spec.facts(leaf)) is mapped


def test_an_engine_with_another_model_than_its_name_says_runs_as_it_is(hooks: None) -> None:
    leaf = index_vllm(vllm_kwargs={"quantization": "awq"})
    spec = spec_for(type(leaf))
    assert spec is not None
    assert spec.facts(leaf).why_own == "vllm_kwargs: quantization"
