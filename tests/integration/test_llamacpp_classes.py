"""llama-cpp-python's classes on the llama.cpp engine that stands in for them: it takes what they ask for, and answers in their shapes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from kit.one_engine import OneEngine
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.leaves.spec import install_construct_hooks
from patchwork_adapters.swap import swap
from patchwork_adapters.walk import find_leaves
from patchwork_serving.assign import assign
from patchwork_serving.components.engine import ContinuousEngine
from patchwork_serving.components.factory import build_engine
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import EngineRefused
from patchwork_serving.import_routing import ImportRouter
from patchwork_serving.models.fetch import pull

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]

#: LangChain's class replaces the model's own base by 10,000 where nobody says otherwise, and this model's is 100,000.
ROPE = {"rope_freq_base": 100_000.0}
GREEDY = {"temperature": 0.0, "top_k": 1, "max_tokens": 12, "n_ctx": 512, "verbose": False, **ROPE}


@pytest.fixture(scope="module")
def gguf() -> str:
    path = pull("smollm2-135m-instruct", {}, Paths.from_env()).path
    assert path is not None
    return str(path)


@contextmanager
def deployed(make: Callable[[], Any]) -> Iterator[Any]:
    """The leaf as a deployment assigns and runs it, but for Ray."""
    undo = install_construct_hooks()
    try:
        leaf = make()
    finally:
        undo()
    walk = find_leaves(leaf, root="leaf")
    (spec,) = assign(walk.leaves, Config(), ImportRouter(Config(), Paths.from_env()).find).specs
    assert (spec.way, spec.engine) == ("engine", "llamacpp")
    engine = build_engine(spec, Config())
    assert isinstance(engine, ContinuousEngine)
    transport = OneEngine(engine)
    with Bridge(transport) as bridge:
        in_force = swap(walk.leaves, {found.path: Assignment(spec.id, "engine") for found in walk.leaves}, bridge)
        try:
            yield leaf
        finally:
            in_force.undo()
            transport.close()


def test_a_completion_model_answers_streams_and_minds_its_grammar_and_its_context(gguf: str) -> None:
    from langchain_community.llms import LlamaCpp

    with deployed(lambda: LlamaCpp(model_path=gguf, **GREEDY)) as llm:
        prompt = "The capital of France is"
        answer = llm.invoke(prompt)
        assert "Paris" in answer
        assert "".join(llm.stream(prompt)) == answer
        assert asyncio.run(llm.ainvoke(prompt)) == answer
        assert llm.invoke(f"{prompt} Paris. Is it?", grammar='root ::= "no" | "never"') in ("no", "never")
        assert "." not in llm.invoke(prompt, stop=["."])
        with pytest.raises(EngineRefused, match="context"):
            llm.invoke("word " * 600)


def test_a_chat_model_answers_streams_and_fills_a_schema(gguf: str) -> None:
    from langchain_community.chat_models.llamacpp import ChatLlamaCpp

    class Capital(BaseModel):
        """A capital."""

        city: Literal["Paris", "Lyon"]

    fields = {**GREEDY, "max_tokens": 96, "streaming": False}
    with deployed(lambda: ChatLlamaCpp(model_path=gguf, **fields)) as llm:
        question = "What is the capital of France?"
        answer = llm.invoke(question)
        assert "Paris" in answer.content
        assert answer.response_metadata["token_usage"]["completion_tokens"] > 0
        assert "".join(piece.content for piece in llm.stream(question)) == answer.content
        filled = llm.with_structured_output(Capital, include_raw=True).invoke(question)
        assert isinstance(filled["parsed"], Capital), filled["raw"]
