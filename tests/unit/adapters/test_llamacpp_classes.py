"""llama-cpp-python's classes, swapped: what they would have asked of their model is asked of the component, and no model is loaded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.spec import Facts, install_construct_hooks, spec_for

from .engine_twin import swapped

pytestmark = pytest.mark.filterwarnings("ignore")

GGUF = "/models/some.gguf"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    undo = install_construct_hooks()
    yield
    undo()


def llm(**fields: Any) -> Any:
    from langchain_community.llms import LlamaCpp

    return LlamaCpp(model_path=GGUF, **fields)


def chat(**fields: Any) -> Any:
    from langchain_community.chat_models.llamacpp import ChatLlamaCpp

    return ChatLlamaCpp(model_path=GGUF, **fields)


def facts(leaf: Any) -> Facts:
    spec = spec_for(type(leaf))
    assert spec is not None
    return spec.facts(leaf)


@pytest.mark.parametrize("make", [llm, chat])
def test_its_constructor_loads_no_model_and_leaves_no_trace(make: Any) -> None:
    before = sys.modules.get("llama_cpp")
    leaf = make(n_ctx=64)
    assert isinstance(leaf.client, Deferred)
    assert leaf.client.deferred_settings["n_ctx"] == 64
    assert sys.modules.get("llama_cpp") is before


@pytest.mark.parametrize("streaming", [True, False])
def test_a_completion_asks_for_what_the_class_would(streaming: bool) -> None:
    leaf = llm(temperature=0.5, max_tokens=7, stop=["END"], seed=3, streaming=streaming)
    with swapped(leaf) as engine:
        assert leaf.invoke("four") == "4 characters"
    [(operation, body)] = engine.asked
    assert operation == "complete"
    assert body == {
        "prompt": "four", "temperature": 0.5, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.1,
        "repetition_penalty": 1.1, "max_tokens": 7, "stop": ["END"], "seed": 3, **({"stream": True} if streaming else {}),
    }  # fmt: skip


def test_the_users_checks_and_every_mode_stay() -> None:
    leaf = llm(stop=["END"])
    with swapped(leaf) as engine:
        with pytest.raises(ValueError, match="`stop` found in both"):
            leaf.invoke("four", stop=["."])
        assert not engine.asked
        assert "".join(leaf.stream("four")) == "4 characters"
        assert leaf.batch(["a", "bb"]) == ["1 characters", "2 characters"]
        assert asyncio.run(leaf.ainvoke("four")) == "4 characters"


def test_a_subclasss_own_method_still_runs() -> None:
    from langchain_community.llms import LlamaCpp

    class Shouting(LlamaCpp):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            return super()._call(*args, **kwargs).upper()

    leaf = Shouting(model_path=GGUF)
    with swapped(leaf):
        assert leaf.invoke("four") == "4 CHARACTERS"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_chat_model_keeps_its_messages_in_both_forms(streaming: bool) -> None:
    leaf = chat(max_tokens=7, streaming=streaming)
    with swapped(leaf) as engine:
        answer = leaf.invoke([("system", "be brief"), ("human", "four")])
        assert answer.content == "4 characters"
        assert answer.response_metadata["finish_reason"] == "stop"
        assert "".join(piece.content for piece in leaf.stream("four")) == "4 characters"
        assert asyncio.run(leaf.ainvoke("four")).content == "4 characters"
    operation, body = engine.asked[0]
    assert operation == "chat"
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "four"}]
    assert (body["max_tokens"], body["temperature"], body["repeat_penalty"]) == (7, 0.8, 1.1)


def test_a_tool_that_must_be_called_is_an_answer_in_the_form_of_its_arguments() -> None:
    """As llama-cpp-python does it, whatever the model's template knows of tools."""
    leaf = chat()
    bound = leaf.bind_tools([WEATHER, CLOCK], tool_choice={"type": "function", "function": {"name": "clock"}})
    with swapped(leaf) as engine:
        called = bound.invoke("what time is it")
        streamed = None
        for piece in bound.stream("what time is it"):
            streamed = piece if streamed is None else streamed + piece
        leaf.bind_tools([WEATHER, CLOCK]).invoke("what time is it")
    (_, forced), _, (_, free) = engine.asked
    assert forced["response_format"]["json_schema"]["schema"] == CLOCK["function"]["parameters"]  # type: ignore[index]
    assert "tools" not in forced
    (call,) = called.additional_kwargs["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("clock", "15 characters")
    (call,) = streamed.tool_call_chunks
    assert (call["name"], call["args"]) == ("clock", "15 characters")
    assert len(free["tools"]) == 2
    assert "response_format" not in free


def test_a_grammar_goes_along(tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes"')
    for leaf in (llm(grammar='root ::= "yes"'), llm(grammar_path=tmp_path / "yes.gbnf")):
        with swapped(leaf) as engine:
            leaf.invoke("is it")
        assert engine.asked[0][1]["grammar"] == 'root ::= "yes"'


def test_what_changes_answers_is_told_to_the_engine() -> None:
    found = facts(llm(n_ctx=1024, n_gpu_layers=-1, model_kwargs={"flash_attn": True}))
    assert (found.model, found.why_own) == (GGUF, None)
    # LangChain's own defaults replace what the file says of the rotary embedding
    assert found.options == {"n_ctx": 1024, "rope_freq_base": 10000.0, "rope_freq_scale": 1.0}


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (lambda: llm(lora_path="/adapter"), "llama.cpp: lora_path"),
        (lambda: llm(logprobs=3), "sampling: logprobs"),
        (lambda: llm(echo=True), "sampling: echo"),
        (lambda: llm(suffix="tail"), "sampling: suffix"),
        (lambda: chat(model_kwargs={"chat_format": "chatml"}), "llama.cpp: chat_format"),
    ],
)
def test_what_an_engine_cannot_stand_in_for_runs_as_it_is(leaf: Any, why: str) -> None:
    assert facts(leaf()).why_own == why


# ---- LlamaIndex


@pytest.fixture
def index_llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The real class; the package that it imports, which has to be compiled, is a name only."""
    package = ModuleType("llama_cpp")
    package.Llama = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    llama_cpp = pytest.importorskip("llama_index.llms.llama_cpp")
    (tmp_path / "some.gguf").touch()

    def make(**fields: Any) -> Any:
        fields = {"completion_to_prompt": lambda prompt: f"<{prompt}>", **fields}
        return llama_cpp.LlamaCPP(model_path=str(tmp_path / "some.gguf"), verbose=False, **fields)

    return make


def test_llamaindexs_class_answers_in_every_mode(index_llm: Any) -> None:
    from llama_index.core.llms import ChatMessage

    leaf = index_llm(max_new_tokens=9, temperature=0.0, generate_kwargs={"top_k": 5})
    assert leaf.metadata.context_window == leaf.context_window
    with swapped(leaf) as engine:
        assert leaf.complete("four").text == "6 characters"
        assert asyncio.run(leaf.acomplete("four", formatted=True)).text == "4 characters"
        pieces = list(leaf.stream_complete("four"))
        assert [(piece.delta, piece.text) for piece in pieces[:2]] == [("6", "6"), (" characters", "6 characters")]
        assert "characters" in leaf.chat([ChatMessage("hi")]).message.content
        assert "characters" in asyncio.run(leaf.achat([ChatMessage("hi")])).message.content
    _, body = engine.asked[0]
    assert body == {
        "prompt": "<four>", "temperature": 0.0, "top_p": 0.95, "min_p": 0.05, "top_k": 5, "repeat_penalty": 1.0,
        "repetition_penalty": 1.0, "max_tokens": 9,
    }  # fmt: skip


def test_llamaindexs_class_says_how_long_its_context_is(index_llm: Any) -> None:
    assert facts(index_llm(context_window=1024)).options == {"n_ctx": 1024}
    assert facts(index_llm(model_kwargs={"lora_path": "/adapter"})).why_own == "llama.cpp: lora_path"
