"""The port between a component's host (queue, batches, deadlines) and what does the work.

There are two shapes. A :class:`BatchEngine` runs several calls at once and ends them together: embedders, rerankers, vector searches. A
:class:`ContinuousEngine` batches inside (vLLM, llama.cpp): calls enter and leave at any time, and the host only bounds how many are in.
Payloads and replies are those of ``patchwork_adapters.transport``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class EngineCall:
    id: str
    leaf: str
    method: str
    payload: bytes
    size: int = 1  #: work items inside
    deadline: float | None = None  #: absolute, seconds of ``time.monotonic()`` in the replica
    stream: bool = False


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
