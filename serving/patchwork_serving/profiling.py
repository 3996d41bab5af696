"""Measuring a component: which batches, when more stops paying, and what the points say. Pure but for the calls it asks for."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.cost import BatchCost
from patchwork_scheduler.profile_model import Measured, Point
from patchwork_serving.components.measuring import Run
from patchwork_serving.release import ComponentSpec
from patchwork_serving.sample_payloads import frame_of, limited, longer, tokens_in_out, varied

#: Runs frames on a replica of the component, so many at once.
Measure = Callable[[Sequence[bytes], int], Awaitable[Run]]
#: Told how many calls are at once now.
Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Search:
    """When the search for a batch stops."""

    max_batch: int = 64
    least_gain: float = (
        0.1  #: of throughput, from one batch to the next, twice as large (paper, section 3.2), or to the one after it
    )
    budget_s: float = 40.0  #: for one component, at most
    total_s: float = (
        105.0  #: for all components together; with start, samples and stop five of them take less than four minutes
    )
    enough_s: float = 1.0  #: of measuring at one batch
    least_rounds: int = 2  #: where a round takes no more than a tenth of the budget: prompts differ
    most_rounds: int = 100
    alike: float = 0.1  #: two long batches that differ by no more of each other need no third

    def within(self, left_s: float) -> Search:
        """The search where so much time is left: for half of what is foreseen at least, and for as long as was asked for, where it was."""
        if math.isinf(self.total_s):
            return self
        return replace(self, total_s=max(self.total_s / 2, min(self.total_s, left_s)))

    def for_one(self, spent_s: float, components_left: int) -> Search:
        """The search of the next component: what those before left over is shared by those that follow."""
        share_s = max(0.0, self.total_s - spent_s) / components_left
        return replace(self, budget_s=min(self.budget_s, share_s))


@dataclass(frozen=True, slots=True)
class Sample:
    """All that was measured at one batch and length."""

    batch: int
    seconds: tuple[float, ...]
    tokens: float | None
    rss_bytes: int
    cores: float  #: kept busy
    n_in: float = 0.0
    n_out: float = 0.0

    @property
    def typical_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def point(self) -> Point:
        return Point(self.batch, max(self.typical_s, 1e-6), self.tokens, self.rss_bytes)


@dataclass(slots=True)
class Sweep:
    """The measurement of one component."""

    spec: ComponentSpec
    calls: Sequence[LeafCall]  #: of the samples, at least one
    measure: Measure
    search: Search
    told: Told = lambda _: None
    clock: Callable[[], float] = time.monotonic
    _number: int = field(default=0, init=False)

    async def run(self, cold_start_s: float) -> Measured:
        """Raises what the component raises."""
        until = self.clock() + self.search.budget_s
        await self._one(1, 1, self._frames)  # the first call of all is not like the others
        samples = await self._batches(until)
        longs = [] if samples[0].tokens is None else await self._longs(samples, until)
        rows = await self._rows(samples) if self._speaks_tokens(samples) else ()
        largest = samples[-1]
        hardware, cpus, gpus = _occupies(self.spec, largest.cores)
        return Measured(
            hardware, tuple(s.point for s in _apart([*samples, *longs])), cpus=cpus, gpus=gpus,
            cold_start_s=round(cold_start_s, 3), fit_error=fit_error(samples), rows=tuple(rows),
        )  # fmt: skip

    async def _batches(self, until: float) -> list[Sample]:
        """Twice as many at once, until two steps together gain too little or time is up: one step may be an unlucky measurement."""
        samples = [await self._enough(1)]
        paid = samples[0]
        while (batch := samples[-1].batch * 2) <= self.search.max_batch:
            each_s = 2 * samples[-1].typical_s  # at worst
            if self.clock() + each_s * max(1, self._rounds(each_s)) > until:
                break
            samples.append(await self._enough(batch))
            if gain(paid, samples[-1]) >= self.search.least_gain:
                paid = samples[-1]
            elif samples[-1].batch > 2 * paid.batch:
                break
        return samples

    async def _longs(self, samples: Sequence[Sample], until: float) -> list[Sample]:
        """Texts of twice the length, at the smallest and the largest batch: how much tokens matter."""
        found = []
        for sample in dict.fromkeys((samples[0], samples[-1])):
            if self.clock() + 2.5 * sample.typical_s < until:
                found.append(await self._one(sample.batch, 1, lambda count: self._frames(count, longer)))
        return found

    async def _rows(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """What ``cost.fit_cost`` fits an engine with continuous batching from: answers of one token, of two lengths; and whole answers."""
        prefills = [
            await self._one(1, 2, lambda count: self._frames(count, lambda c: limited(c, 1))),
            await self._one(1, 2, lambda count: self._frames(count, lambda c: limited(longer(longer(c)), 1))),
        ]
        return [
            {"n_in": round(s.n_in), "n_out": round(s.n_out), "batch": s.batch, "seconds": s.typical_s}
            for s in [*prefills, *samples]
            if s.n_in and s.n_out
        ]

    async def _enough(self, batch: int) -> Sample:
        """Again and again until enough time was measured, or often enough: short batches are noisy."""
        self.told(batch)
        sample = await self._one(batch, 1, self._frames)
        rounds = self._rounds(sample.typical_s)
        if rounds < 2:
            return sample
        if sample.typical_s >= self.search.enough_s:
            again = await self._one(batch, 1, self._frames)
            if abs(again.typical_s - sample.typical_s) <= self.search.alike * sample.typical_s:
                return _both(sample, again)
        # the first round of a batch size may allocate: it counts only when there is no other
        return await self._one(batch, rounds, self._frames)

    def _rounds(self, typical_s: float) -> int:
        """Of a batch that takes so long."""
        rounds = min(self.search.most_rounds, math.ceil(self.search.enough_s / max(typical_s, 1e-4)))
        affordable = typical_s * 10 < self.search.budget_s
        return max(rounds, self.search.least_rounds) if affordable else rounds

    async def _one(self, batch: int, rounds: int, frames: Callable[[int], list[tuple[LeafCall, bytes]]]) -> Sample:
        sent = frames(batch * rounds)
        run = await self.measure([frame for _, frame in sent], batch)
        counted = [tokens_in_out(call, self.spec, reply) for (call, _), reply in zip(sent, run.replies, strict=False)]
        known = [c for c in counted if c is not None]
        n_in, n_out = (statistics.fmean(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
        cores = run.cpu_s / run.wall_s if run.wall_s > 0 else 0.0
        return Sample(batch, run.seconds, n_in + n_out if known else None, run.rss_bytes, cores, n_in, n_out)

    def _frames(
        self, count: int, change: Callable[[LeafCall], LeafCall] = lambda call: call
    ) -> list[tuple[LeafCall, bytes]]:
        made = []
        for _ in range(count):
            self._number += 1
            call = change(self.calls[self._number % len(self.calls)])
            call = varied(call, self._number) if self.spec.kind == "llm" else call
            made.append((call, frame_of(call, self._number)))
        return made

    def _speaks_tokens(self, samples: Sequence[Sample]) -> bool:
        return self.spec.kind == "llm" and self.spec.way != "own" and bool(samples[0].n_out)


def _both(one: Sample, other: Sample) -> Sample:
    """Two rounds as one sample."""
    tokens = None if one.tokens is None or other.tokens is None else (one.tokens + other.tokens) / 2
    return replace(
        other, seconds=one.seconds + other.seconds, tokens=tokens,
        n_in=(one.n_in + other.n_in) / 2, n_out=(one.n_out + other.n_out) / 2,
    )  # fmt: skip


def gain(before: Sample, after: Sample) -> float:
    """By how much more calls are completed in a second."""
    return (after.batch / after.typical_s) / (before.batch / before.typical_s) - 1.0


def fit_error(samples: Sequence[Sample]) -> float:
    """Mean relative error of the piecewise-linear fit: of single batches, and of points from the line of their neighbours."""
    rows = [{"batch": s.batch, "seconds": one} for s in samples for one in s.seconds]
    cost = BatchCost.fit(rows)
    errors = [abs(cost(row["batch"]) - row["seconds"]) / row["seconds"] for row in rows]
    for index in range(1, len(samples) - 1):
        others = BatchCost.fit(
            [{"batch": s.batch, "seconds": s.typical_s} for i, s in enumerate(samples) if i != index]
        )
        errors.append(abs(others(samples[index].batch) - samples[index].typical_s) / samples[index].typical_s)
    return round(statistics.fmean(errors), 4)


def _apart(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of one batch with equal tokens are one point: the first."""
    tokens_known = all(s.tokens is not None for s in samples)
    kept: dict[tuple[int, float | None], Sample] = {}
    for sample in samples:
        tokens = round(sample.tokens, 1) if tokens_known and sample.tokens is not None else None
        kept.setdefault((sample.batch, tokens), replace(sample, tokens=tokens))
    return list(kept.values())


def _occupies(spec: ComponentSpec, cores: float) -> tuple[str, float, float]:
    """Hardware, cores and GPUs of one replica; of an emulated one, those that its profile stands for."""
    if spec.engine == "emulated":
        return "gpu", 0.0, 1.0
    if spec.emulate is not None:
        return "cpu", 1.0, 0.0
    busy = max(0.05, math.ceil(cores * 20) / 20)
    return ("gpu", busy, spec.num_gpus) if spec.num_gpus else ("cpu", busy, 0.0)
