"""The port between a component's host (queue, batches, deadlines) and what does the work.

There are two shapes. A :class:`BatchEngine` runs several calls at once and ends them together: embedders, rerankers, vector searches. A
:class:`ContinuousEngine` batches inside (vLLM, llama.cpp): calls enter and leave at any time, and the host bounds what is in.
Payloads and replies are those of ``patchwork_adapters.transport``.

What an engine has besides is told by what it offers: one that works token by token (:class:`TokenEngine`) has its work bounded by the
deadlines of those inside, one with a queue of its own (:class:`PriorityEngine`) is given the host's order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class Progress(Protocol):
    """What a token engine tells its host about a call inside it. Neither method waits or raises."""

    def generated(self, tokens: int = 1) -> None:
        """So many more tokens came out; the first ones also say that the prompt is done."""
        ...

    def used(self, prompt_tokens: int, output_tokens: int) -> None:
        """The engine's own count of the whole call, once it knows it."""
        ...


class _Silent:
    def generated(self, tokens: int = 1) -> None: ...

    def used(self, prompt_tokens: int, output_tokens: int) -> None: ...


SILENT: Progress = _Silent()


@dataclass(frozen=True, slots=True)
class EngineCall:
    id: str
    leaf: str
    method: str
    payload: bytes
    size: int = 1  #: work items inside
    deadline: float | None = (
        None  #: when the work is to be stopped; absolute, seconds of ``time.monotonic()`` in the replica
    )
    stream: bool = False
    priority: int = 0  #: lower is earlier, comparable within one replica (vLLM's ``priority``)
    prompt_tokens: int = 0  #: predicted; 0 where the engine is no LLM
    output_tokens: int = 0  #: predicted
    progress: Progress = SILENT


class Engine(Protocol):
    """What both shapes share. Constructors only build; ``start`` loads and may take long; ``close`` is idempotent."""

    async def start(self) -> None:
        """Load what is needed and answer one real call; raises ServingError with the remedy."""
        ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        """Facts for people: model, dimension, threads, memory; no secrets."""
        ...


@runtime_checkable
class BatchEngine(Engine, Protocol):
    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        """One reply per call, in order. A call that fails alone is an exception in its place; raising fails the whole batch."""
        ...


@runtime_checkable
class ContinuousEngine(Engine, Protocol):
    slots: int  #: calls that may be inside at once

    def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        """Frames of one reply; exactly one when ``call.stream`` is false. Closing the iterator aborts the work in the engine."""
        ...


@runtime_checkable
class TokenEngine(ContinuousEngine, Protocol):
    """Works in steps that prefill prompts and decode a token of each sequence; tells ``call.progress`` how far each call is."""

    step_tokens: int  #: most tokens of one step (``n_batch``, ``max_num_batched_tokens``)


@runtime_checkable
class ShardedEngine(TokenEngine, Protocol):
    """Several engines on cores of their own, which prefill side by side."""

    shards: int


@runtime_checkable
class PriorityEngine(ContinuousEngine, Protocol):
    """Has a queue of its own, which must go by ``EngineCall.priority``: the host checks it at start."""

    scheduling_policy: str  #: as the started engine has it; anything but ``priority`` is refused


@runtime_checkable
class MortalEngine(Engine, Protocol):
    """Can end by itself while its replica lives on, because its work is done in another process."""

    def check(self) -> None:
        """EngineDied when it will never answer again: the replica is then replaced. Neither waits nor asks the engine."""
        ...
