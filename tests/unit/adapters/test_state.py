"""State that a chain keeps is named, with the name in the request that it is found again by."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.runnables import ConfigurableFieldSpec, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.store.memory import InMemoryStore

from patchwork_adapters.inspection import inspect_chain

pytestmark = pytest.mark.filterwarnings("ignore")


def model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([]))


def state_of(chain: Any) -> tuple[str | None, tuple[str, ...]]:
    graph = inspect_chain(chain, root="chain")
    return graph.affinity, tuple(
        note for note in graph.notes if note.startswith("state lives in the orchestrator process")
    )


def compiled(**options: Any) -> Any:
    builder = StateGraph(dict)
    builder.add_node("answer", RunnableLambda(str) | model())
    builder.add_edge(START, "answer")
    return builder.compile(**options)


def test_a_chain_without_state_may_run_anywhere() -> None:
    assert state_of(RunnableLambda(str) | model()) == (None, ())
    assert state_of(compiled()) == (None, ())


def test_checkpoints_in_memory_are_found_by_their_thread() -> None:
    affinity, (note,) = state_of(compiled(checkpointer=InMemorySaver()))
    assert affinity == "thread_id"
    assert note.endswith("chain.checkpointer keeps checkpoints, by thread_id")


def test_a_history_is_found_by_the_names_that_its_factory_takes() -> None:
    def history(session_id: str) -> Any:
        return InMemoryChatMessageHistory()

    def of_user(user: str, conversation: str) -> Any:
        return InMemoryChatMessageHistory()

    fields = [
        ConfigurableFieldSpec(id=name, annotation=str, name=None, description=None, default="")
        for name in ("user", "conversation")
    ]
    assert state_of(RunnableWithMessageHistory(model(), history))[0] == "session_id"
    assert (
        state_of(RunnableWithMessageHistory(model(), of_user, history_factory_config=fields))[0] == "user+conversation"
    )


def test_a_store_of_memories_has_no_name_so_all_requests_belong_together() -> None:
    assert state_of(compiled(checkpointer=InMemorySaver(), store=InMemoryStore()))[0] == "*"


def test_a_chat_engine_is_one_conversation() -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.chat_engine import SimpleChatEngine
    from llama_index.core.llms import MockLLM

    affinity, notes = state_of(SimpleChatEngine.from_defaults(llm=MockLLM()))
    assert affinity == "*"
    assert any("chain keeps the memory of one conversation" in note for note in notes)


def test_state_of_two_kinds_that_other_names_find_belongs_together() -> None:
    builder = StateGraph(dict)
    builder.add_node("answer", RunnableWithMessageHistory(model(), lambda session_id: InMemoryChatMessageHistory()))
    builder.add_edge(START, "answer")
    assert state_of(builder.compile(checkpointer=InMemorySaver()))[0] == "*"
