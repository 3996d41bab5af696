"""Engines of batches that take as long as a measured profile says, on a machine without the GPU: to load everything around them for real.

Gateway, orchestrator, Ray Serve, queues and routing run as they always do; only the work inside the engine is waited for instead of done.
What used one of these engines says so (``docs/decisions/emulated-engines.md``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchwork_adapters.errors import CodecError
from patchwork_scheduler.cost import BatchCost
from patchwork_serving.components.embedder import OnnxEmbedder, Vectors
from patchwork_serving.components.emulated_llm import EMULATED, Clock
from patchwork_serving.components.emulated_replies import Wish, scores_of, tokens_of, vectors_of
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine, EngineCall
from patchwork_serving.components.reranker import RerankerEngine
from patchwork_serving.errors import EngineRefused, ServingError
from patchwork_serving.models.registry import ModelFiles

#: A batch that begins this soon after the last one takes over what the timer overslept; after a pause nothing is owed.
BUSY_GAP_S = 0.02


class BatchTimes:
    """Seconds of a batch by its size, and where the profile knows it, by the tokens of its longest text."""

    def __init__(self, rows: Iterable[Mapping[str, float]], slower: float = 1.0) -> None:
        rows = [{**row, "seconds": row["seconds"] * slower} for row in rows]
        lengths = sorted({row["n_in"] for row in rows if "n_in" in row})
        self._costs = [(n, BatchCost.fit([r for r in rows if r.get("n_in") == n])) for n in lengths]
        if not self._costs:
            self._costs = [(0.0, BatchCost.fit(rows))]

    def __call__(self, size: int, tokens: int = 0) -> float:
        return next((cost for n, cost in self._costs if n >= tokens), self._costs[-1][1])(size)


class Pace:
    """Makes batches end when they should, one after the other: what the timer oversleeps, the next batch of a busy engine sleeps less."""

    def __init__(self, clock: Clock) -> None:
        self.late_s = 0.0
        self._clock = clock
        self._woke = 0.0
        self._owed = 0.0

    def end(self, seconds: float) -> float:
        """When a batch that begins now should end."""
        now = self._clock()
        owed = self._owed if now - self._woke < BUSY_GAP_S else 0.0
        self._owed = 0.0
        return now + seconds - owed

    async def until(self, end: float) -> None:
        left = end - self._clock()
        if left > 0:
            await asyncio.sleep(left)
        self._woke = self._clock()
        self._owed = self._woke - end
        self.late_s = max(self.late_s, self._owed)


class _Paced:
    """In front of a real engine's class: its words, without its network, in the time of a profile."""

    def _pace_by(self, times: BatchTimes, profile: str, wish: Wish, clock: Clock) -> None:
        self._times = times
        self._profile = profile
        self._wish = wish
        self._pace = Pace(clock)
        self._longest = 0  #: tokens of the longest text of a batch

    async def start(self) -> None:
        """Nothing to load."""

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        self._longest = 0
        replies: Sequence[bytes | Exception] = super()._run(batch)  # type: ignore[misc]  # of the real engine's class
        await self._pace.until(self._pace.end(self._times(sum(call.size for call in batch), self._longest)))
        return replies

    def _described(self, name: str, **more: Any) -> dict[str, Any]:
        facts = {"engine": EMULATED, "model": name, "profile": self._profile, **more}
        return {**facts, "late_s": round(self._pace.late_s, 4)}


class EmulatedEmbedder(_Paced, OnnxEmbedder):
    """A BatchEngine that speaks as the real embedder does, with vectors that follow a text's words."""

    def __init__(
        self, times: BatchTimes, *, name: str, profile: str, dim: int, wish: Wish, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(_no_files, name=name)
        self._pace_by(times, profile, wish, clock)
        self._dim = dim

    def describe(self) -> Mapping[str, Any]:
        return self._described(self._name, dimension=self._dim)

    def _embed(self, texts: Sequence[str], stop: Any = None) -> tuple[Vectors, Any]:
        import numpy as np

        tokens = np.array([self._wish.n_in or tokens_of(text) for text in texts], dtype=np.int64)
        self._longest = int(tokens.max(initial=0))
        return vectors_of(texts, self._dim, self._wish.seed), tokens

    def _text_of(self, ids: list[object]) -> str:
        return " ".join(f"token{token}" for token in ids)


class EmulatedReranker(_Paced, RerankerEngine):
    """A BatchEngine that speaks as the real cross-encoder does; a text's score is the share of the query's words in it."""

    def __init__(
        self, times: BatchTimes, *, name: str, profile: str, wish: Wish, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(_no_files, name=name)
        self._pace_by(times, profile, wish, clock)
        self._score = self._scored

    def describe(self) -> Mapping[str, Any]:
        return self._described(self._name)

    def _scored(self, pairs: Sequence[tuple[str, str]], stop: Any = None) -> Any:
        self._longest = self._wish.n_in or max((tokens_of(query + text) for query, text in pairs), default=0)
        return scores_of(pairs)


class EmulatedTime:
    """A BatchEngine around a component's own engine: its real replies, no sooner than the profile says."""

    def __init__(
        self, inner: BatchEngine | ContinuousEngine, times: BatchTimes, *, profile: str, clock: Clock = time.monotonic
    ) -> None:
        self._inner = inner
        self._times = times
        self._profile = profile
        self._pace = Pace(clock)

    async def start(self) -> None:
        await self._inner.start()

    async def close(self) -> None:
        await self._inner.close()

    def describe(self) -> Mapping[str, Any]:
        inner = dict(self._inner.describe())
        return {
            **inner,
            "emulates": inner.get("engine", ""),
            "engine": EMULATED,
            "profile": self._profile,
            "late_s": round(self._pace.late_s, 4),
        }

    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        end = self._pace.end(self._times(sum(call.size for call in batch)))
        replies = await self._answered(batch)
        await self._pace.until(end)
        return replies

    async def _answered(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        inner = self._inner
        if isinstance(inner, BatchEngine):
            return await inner.run(batch)
        return list(await asyncio.gather(*(_one(inner, call) for call in batch)))


async def _one(engine: ContinuousEngine, call: EngineCall) -> bytes | Exception:
    if call.stream:
        return EngineRefused("a component that is emulated in its own time does not stream; leave out `emulate` for it")
    try:
        return b"".join([frame async for frame in engine.generate(call)])
    except (ServingError, CodecError) as error:
        return error


def _no_files() -> ModelFiles:
    raise AssertionError("an emulated engine loads nothing")
