"""What a call costs in an engine, fitted from profile rows.

``BatchCost``: engines that run a batch to its end; seconds piecewise linear in the batch size.
``TokenCost``: continuous batching; seconds of one step of the engine from what is in it.

A step reads the weights once, whatever it computes: a small prefill costs no less than that (it *saturates* at a few hundred
tokens), and beyond, each token costs the same. Sequences that decode in the same step add a little each, and a little for every
token of context that they attend to.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from patchwork_scheduler.errors import IncompleteProfile


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Seconds of one batch by its size: straight lines between the profiled points, beyond the last one along the last slope."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.seconds):
            raise IncompleteProfile("a batch cost needs at least one point, and as many sizes as seconds")
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.seconds) < 0:
            raise IncompleteProfile("a batch cost needs increasing sizes and seconds that are not negative")

    @classmethod
    def constant(cls, seconds: float) -> BatchCost:
        return cls((1.0,), (seconds,))

    @classmethod
    def fit(cls, rows: Iterable[Mapping[str, Any]], *, n_in: int | None = None) -> BatchCost:
        """From rows ``{"batch", "seconds"[, "n_in"]}``: median per batch size, made not to fall as batches grow.

        With ``n_in``, only the rows of the nearest profiled length at or above it (else the longest) count.
        """
        rows = list(rows)
        if n_in is not None and rows:
            lengths = sorted({row["n_in"] for row in rows})
            length = next((one for one in lengths if one >= n_in), lengths[-1])
            rows = [row for row in rows if row["n_in"] == length]
        points: dict[float, list[float]] = {}
        for row in rows:
            points.setdefault(float(row["batch"]), []).append(float(row["seconds"]))
        if not points:
            raise IncompleteProfile("no rows to fit a batch cost from; profile the component first")
        sizes = sorted(points)
        # A larger batch that was measured faster is noise: a running maximum would keep an outlier at batch 1 for ever, so the
        # running minimum from the right is taken.
        seconds = np.minimum.accumulate([float(np.median(points[s])) for s in sizes][::-1])[::-1]
        return cls(tuple(sizes), tuple(float(s) for s in seconds))

    def __call__(self, size: float) -> float:
        sizes, seconds = self.sizes, self.seconds
        if size <= sizes[0] or len(sizes) == 1:
            return seconds[0]
        i = min(bisect.bisect_left(sizes, size), len(sizes) - 1)
        slope = (seconds[i] - seconds[i - 1]) / (sizes[i] - sizes[i - 1])
        return seconds[i - 1] + slope * (size - sizes[i - 1])

    def scaled(self, factor: float) -> BatchCost:
        """The same engine, ``factor`` times as slow."""
        return BatchCost(self.sizes, tuple(factor * one for one in self.seconds))

    def per_item_s(self, max_batch: int) -> float:
        """Seconds per item at the best batch size up to ``max_batch``: what an item costs when many wait."""
        points = {1.0, float(max_batch), *(s for s in self.sizes if 1 <= s <= max_batch)}
        return min(self(size) / size for size in points)


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Seconds of one engine step."""

    base_s: float  #: reading the weights: the shortest step
    prefill_s: float  #: per token prefilled
    sequence_s: float  #: per sequence that decodes
    context_s: float = 0.0  #: per token of context attended to by the sequences that decode
    call_s: float = 0.0  #: once per call, outside the engine's steps (hand-over, tokenising, first schedule)
    overhead_s: float = 0.0  #: of the host process, per step
    prefill_overhead_s: float = 0.0  #: more of it for a step that prefills (it does not run as one captured graph)

    def step_s(self, prefill_tokens: int, sequences: int, context_tokens: int = 0) -> float:
        """One step that prefills ``prefill_tokens`` and decodes one token of each of ``sequences``."""
        seconds = self.overhead_s + self.sequence_s * sequences + self.context_s * context_tokens
        if not prefill_tokens:
            return seconds + self.base_s
        compute = self.prefill_s * prefill_tokens
        return seconds + self.prefill_overhead_s + (compute if compute > self.base_s else self.base_s)

    def alone_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """A call with the engine to itself."""
        steps = max(output_tokens, 1) - 1
        context = prompt_tokens + output_tokens / 2
        return self.call_s + self.step_s(prompt_tokens, 0) + steps * (
            self.overhead_s + self.base_s + self.sequence_s + self.context_s * context
        )  # fmt: skip

    def occupied_s(self, prompt_tokens: int, output_tokens: int, *, chunk: int = 1024) -> float:
        """What a call takes from a busy engine: the seconds by which the work of everyone else is delayed.

        ``chunk`` is the prefill per step at which the engine is run when busy. The steps themselves are paid for by prefills.
        """
        per_token = self.step_s(chunk, 0) / chunk
        context = prompt_tokens + output_tokens / 2
        return prompt_tokens * per_token + output_tokens * (self.sequence_s + self.context_s * context)

    def prefill_within(self, step_s: float, sequences: int, context_tokens: int = 0) -> float:
        """Most prefill tokens that a step of ``step_s`` seconds can hold beside ``sequences``; 0 when even the shortest is longer."""
        left = step_s - self.overhead_s - self.sequence_s * sequences - self.context_s * context_tokens
        left -= self.prefill_overhead_s
        if left < self.base_s:
            return 0.0
        return math.inf if self.prefill_s == 0.0 else left / self.prefill_s

    @property
    def shortest_step_s(self) -> float:
        return self.base_s + self.overhead_s

    def scaled(self, factor: float) -> TokenCost:
        """The same engine, ``factor`` times as slow."""
        return TokenCost(*(getattr(self, field.name) * factor for field in fields(self)))

    def with_overhead(self, overhead_s: float, prefill_overhead_s: float = 0.0) -> TokenCost:
        """The same engine behind a host process that takes so much for each step, and so much more for one that prefills."""
        return replace(self, overhead_s=overhead_s, prefill_overhead_s=prefill_overhead_s)

    @classmethod
    def fit(cls, rows: Iterable[Mapping[str, Any]]) -> TokenCost:
        """From rows ``{"n_in", "n_out", "batch", "seconds"}``: whole batches submitted at once.

        Rows with ``n_out == 1`` give prefill, the others decode, after the prefill predicted for them is taken off. IncompleteProfile
        when either kind is missing.
        """
        rows = list(rows)
        prefills = [row for row in rows if row["n_out"] == 1]
        decodes = [row for row in rows if row["n_out"] > 1]
        if len({row["n_in"] * row["batch"] for row in prefills}) < 2 or len(decodes) < 2:
            raise IncompleteProfile(
                "a token cost needs rows of one token out at two sizes, and two rows of more tokens out"
            )
        prefill_s, floor_s = _fit_prefill(prefills)
        base_s, sequence_s, context_s = _fit_decode(decodes, prefill_s, floor_s)
        return cls(base_s, prefill_s, sequence_s, context_s, max(0.0, floor_s - base_s))


def fit_cost(rows: Iterable[Mapping[str, Any]]) -> TokenCost | BatchCost:
    """The cost of an engine from its profile rows: those with tokens out are of an engine with continuous batching."""
    rows = list(rows)
    if any("n_out" in row for row in rows):
        return TokenCost.fit(rows)
    return BatchCost.fit(rows)


def _fit_prefill(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds per token in the saturated part, and the shortest prefill seen (a call's hand-over included)."""
    tokens = np.array([row["n_in"] * row["batch"] for row in rows], float)
    seconds = np.array([row["seconds"] for row in rows], float)
    # The smallest rows are floor, not compute; of the rest, the one with most tokens is nine tenths of the truth, so
    # the median of the upper half by size is taken.
    upper = tokens >= np.median(tokens)
    return float(np.median(seconds[upper] / tokens[upper])), float(seconds.min())


def _fit_decode(rows: Sequence[Mapping[str, Any]], prefill_s: float, floor_s: float) -> tuple[float, float, float]:
    """base, per sequence, per token of context: least squares of the relative error, none of them negative."""
    design, target = [], []
    for row in rows:
        steps = row["n_out"] - 1
        prefill = max(floor_s, prefill_s * row["n_in"] * row["batch"])
        step = max((row["seconds"] - prefill) / steps, 1e-6)
        context = row["batch"] * (row["n_in"] + row["n_out"] / 2)
        design.append([1.0 / step, row["batch"] / step, context / step])
        target.append(1.0)
    matrix, ones = np.array(design), np.array(target)
    free = (
        [0, 1, 2] if len({row["n_in"] for row in rows}) > 1 else [0, 1]
    )  # one length cannot tell sequences from context
    while True:
        solution = np.linalg.lstsq(matrix[:, free], ones, rcond=None)[0]
        if len(free) == 1 or solution.min() >= 0.0:
            break
        free.pop(int(solution.argmin()))
    fitted = [0.0, 0.0, 0.0]
    for column, value in zip(free, solution, strict=True):
        fitted[column] = max(float(value), 0.0)
    return fitted[0], fitted[1], fitted[2]
