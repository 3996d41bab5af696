"""State that a chain keeps between requests: it lives in the process that runs the chain, and a request must come back to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from patchwork_adapters.parts import names_of
from patchwork_adapters.walk import Walk

#: The affinity of a chain that is one conversation: its interface has no name for another one.
ALL = "*"

#: base class -> (what is kept, name in the request that it is found again by; None: nothing is found again)
_KEPT: dict[str, tuple[str, str | None]] = {
    "langgraph.checkpoint.memory.InMemorySaver": ("checkpoints, by thread_id", "thread_id"),
    "langgraph.checkpoint.sqlite.SqliteSaver": ("checkpoints in a file of its machine, by thread_id", "thread_id"),
    "langgraph.checkpoint.sqlite.aio.AsyncSqliteSaver": ("checkpoints in a file of its machine, by thread_id", "thread_id"),
    "langgraph.store.memory.InMemoryStore": ("a store of memories", ALL),
    "langchain_classic.base_memory.BaseMemory": ("the memory of one conversation", ALL),
    "langchain_core.chat_history.InMemoryChatMessageHistory": ("the history of one conversation", ALL),
    "llama_index.core.chat_engine.types.BaseChatEngine": ("the memory of one conversation", ALL),
    "llama_index.core.memory.types.BaseMemory": ("the memory of one conversation", ALL),
    "workflows.workflow.Workflow": ("the context of each run, until it ends", None),
    "langchain_core.rate_limiters.BaseRateLimiter": ("a rate limit, counted in each process by itself", None),
    "langchain_core.caches.InMemoryCache": ("a cache of answers, in each process by itself", None),
}  # fmt: skip
_HISTORY = "langchain_core.runnables.history.RunnableWithMessageHistory"


@dataclass(frozen=True, slots=True)
class Kept:
    """Something of the chain that remembers."""

    path: str
    what: str
    affinity: str | None  #: name in the request; :data:`ALL`; None: any orchestrator serves as well


def kept_by(walk: Walk) -> tuple[Kept, ...]:
    """What the chain's parts keep, in the order of the walk. A store of others (Postgres, Redis) keeps its own."""
    return tuple(kept for path, part in walk.parts for kept in _kept(path, part))


def affinity_of(kept: tuple[Kept, ...]) -> str | None:
    """One name for all: ``thread_id``, ``session_id``, several of one history joined by ``+``, or :data:`ALL`; None without state.

    Two parts that are found again by different names cannot both be come back to unless all requests come to one place.
    """
    names = {one.affinity for one in kept if one.affinity is not None}
    return ALL if len(names) > 1 else next(iter(names), None)


def notes_of(kept: tuple[Kept, ...]) -> Iterator[str]:
    for one in kept:
        yield f"state lives in the orchestrator process: {one.path} keeps {one.what}"


def _kept(path: str, part: Any) -> Iterator[Kept]:
    names = names_of(part)
    if _HISTORY in names:
        keys = "+".join(spec.id for spec in part.history_factory_config) or "session_id"
        yield Kept(path, f"the history of each conversation, by {keys}, unless its history is kept elsewhere", keys)
        return
    found = next((_KEPT[name] for name in _KEPT if name in names), None)
    if found is not None:
        yield Kept(path, *found)
