"""LangChain's ``VLLM``, swapped: what it would have asked of its engine is asked of the component, and no engine is built."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.spec import install_construct_hooks, spec_for
from patchwork_adapters.swap import swap
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import find_leaves

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def hooks() -> Iterator[None]:
    undo = install_construct_hooks()
    yield
    undo()


class Completions:
    """A transport to a component that answers each prompt with its length."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def call(self, call: LeafCall) -> bytes:
        assert call.method == "complete"
        body = codec.decode(call.payload)["body"]
        self.asked.append(body)
        return codec.encode_outcome({"choices": [{"text": f" {len(body['prompt'])}"}]})

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        yield await self.call(call)


@contextmanager
def swapped(leaf: Any) -> Iterator[Completions]:
    cluster = Completions()
    walk = find_leaves(leaf, root="leaf")
    with Bridge(cluster) as bridge:
        in_force = swap(walk.leaves, {found.path: Assignment("llm", "engine") for found in walk.leaves}, bridge)
        yield cluster
        in_force.undo()


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
        assert leaf.invoke("four", stop=["."]) == " 4"
    [body] = component.asked
    assert body == {
        "model": "org/model", "prompt": "four", "temperature": 0.5, "top_p": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.0,
        "max_tokens": 7, "stop": ["."], "ignore_eos": False,
    }  # fmt: skip


def test_several_prompts_keep_their_order_in_both_colours(hooks: None) -> None:
    leaf = vllm(top_k=5)
    prompts = ["a", "bb", "ccc"]
    with swapped(leaf) as component:
        assert leaf.batch(prompts) == [" 1", " 2", " 3"]
        assert asyncio.run(leaf.abatch(prompts)) == [" 1", " 2", " 3"]
        assert leaf.bind(seed=4, max_tokens=1).invoke("a") == " 1"
    assert (component.asked[-1]["seed"], component.asked[-1]["max_tokens"], component.asked[-1]["top_k"]) == (4, 1, 5)


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
