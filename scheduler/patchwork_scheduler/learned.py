"""What a replica learns of its engine while it serves. Single-owner objects, pure: times and counts are arguments.

A profile, where there is one, says how cost grows; what is learnt is how this machine, now, compares with it. Without one, the cost
itself is learnt, and nothing is predicted until enough was seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.errors import IncompleteProfile
from patchwork_scheduler.estimate import Learned

#: Batches remembered per size: their median is believed, so that a hiccup of the machine is not.
RECENT = 15
#: Busy stretches of a token engine that are remembered, and how many are needed before anything is believed.
STRETCHES = 64
ENOUGH_STRETCHES = 8
#: A stretch is closed at the first event after so many seconds: many steps, yet short enough that their company hardly changes.
STRETCH_S = 0.25
#: Weight of the assumption that company costs a step nothing, against stretches that tell: it decides where none had any company.
ALONE_PRIOR = 0.1
#: What an engine tells of one step comes within so many seconds.
SAME_STEP_S = 0.002
#: Output tokens of a call about which nothing is known.
SOME_TOKENS = 128
TOKENS_PER_BYTE = 0.25  #: English text; replaced by what the engine counts


def cost_of(document: Mapping[str, Any]) -> BatchCost | TokenCost:
    """A cost model from its fields as plain data; IncompleteProfile when they are those of neither kind."""
    if document.keys() == {"sizes", "seconds"}:
        return BatchCost(tuple(document["sizes"]), tuple(document["seconds"]))
    known = {one.name for one in fields(TokenCost)}
    if {"base_s", "prefill_s", "sequence_s"} <= document.keys() <= known:
        return TokenCost(**document)
    raise IncompleteProfile(
        f"a cost has the fields sizes and seconds (batch engines), or {', '.join(sorted(known))} (token engines), "
        f"not {', '.join(sorted(document)) or 'none'}"
    )


class _Size:
    """Batches of about one size."""

    def __init__(self) -> None:
        self._sizes: deque[float] = deque(maxlen=RECENT)
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self.point = (0.0, 0.0)  #: (mean size, median seconds)

    def add(self, size: float, seconds: float) -> None:
        self._sizes.append(size)
        self._seconds.append(seconds)
        count = len(self._sizes)
        self.point = (sum(self._sizes) / count, sorted(self._seconds)[count // 2])


class LearnedBatchCost:
    """Seconds of a batch by its size, from batches that ran; 0 while nothing is known. Sizes are remembered in steps of about 40 %.

    ``seed``: from a profile. Sizes that were not seen are answered from it, times the ratio measured on those that were.
    """

    def __init__(self, seed: BatchCost | None = None) -> None:
        self._seed = seed
        self._ratio = Learned(mean=1.0)
        self._seen: dict[int, _Size] = {}
        self._cost: BatchCost | None = seed

    def __call__(self, size: float) -> float:
        return 0.0 if self._cost is None else self._cost(size)

    def per_item_s(self, max_batch: int) -> float:
        """Seconds per item when many wait."""
        return 0.0 if self._cost is None else self._cost.per_item_s(max_batch)

    def observe(self, size: int, seconds: float) -> None:
        """A batch of ``size`` items took ``seconds``."""
        step = _step(size)
        seen = self._seen.get(step)
        if seen is None:
            seen = self._seen[step] = _Size()
        seen.add(size, seconds)
        if self._seed is not None and (expected := self._seed(size)) > 0.0:
            self._ratio.observe(seconds / expected, decay=0.05)
        self._cost = self._fitted()

    def _fitted(self) -> BatchCost:
        points = dict(one.point for one in self._seen.values())
        if self._seed is not None:
            unseen = (size for size in self._seed.sizes if _step(size) not in self._seen)
            points |= {size: self._seed(size) * self._ratio.mean for size in unseen}
        sizes = sorted(points)
        # A larger batch that was faster is noise, or the machine was busy before: the cheaper one is believed.
        seconds: list[float] = []
        lowest = math.inf
        for size in reversed(sizes):
            lowest = min(lowest, points[size])
            seconds.append(lowest)
        return BatchCost(tuple(sizes), tuple(reversed(seconds)))


def _step(size: float) -> int:
    """Sizes that are learnt together: each up to 3, then two steps per doubling."""
    return int(size) if size < 4 else round(2.0 * math.log2(size))


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of an engine's busy time."""

    seconds: float
    steps: float  #: tokens that each of the sequences inside got
    decoded: float  #: tokens of all of them
    prefilled: float  #: prompt tokens
    context: float = 0.0  #: tokens of context of all sequences that decoded, on average
    prefills: int = 0  #: steps in which prompts came to their end
    mixed: int = 0  #: those of them in which others decoded
    idle: bool = False  #: it began when a call came to an idle engine


class LearnedTokenCost:
    """The cost of an engine's steps, from stretches of its busy time; ``cost`` is None while too few were seen.

    With a ``seed`` the cost stays the profile's, and ``predicted_s`` compares it with a stretch (for ``WorkBound.stepped``).
    """

    def __init__(self, seed: TokenCost | None = None) -> None:
        self._seed = seed
        self._stretches: deque[Stretch] = deque(maxlen=STRETCHES)
        self._fresh = 0
        self.cost: TokenCost | None = seed

    def observe(self, stretch: Stretch) -> None:
        if self._seed is not None:
            return
        self._stretches.append(stretch)
        self._fresh += 1
        if len(self._stretches) >= ENOUGH_STRETCHES and self._fresh >= ENOUGH_STRETCHES // 2:
            self._fresh = 0
            self.cost = _fitted(self._stretches, 0.0 if self.cost is None else self.cost.call_s)

    def predicted_s(self, stretch: Stretch) -> float:
        """What the cost says that the stretch takes; 0 while it is unknown."""
        cost = self.cost
        if cost is None:
            return 0.0
        compute = max(stretch.prefilled * cost.prefill_s, stretch.prefills * cost.base_s)
        return (
            _only_decoding(stretch) * cost.shortest_step_s
            + stretch.steps * cost.context_s * stretch.context
            + stretch.decoded * cost.sequence_s
            + stretch.prefills * (cost.overhead_s + cost.prefill_overhead_s)
            + compute
            + (cost.call_s if stretch.idle else 0.0)
        )


def _fitted(stretches: deque[Stretch], call_s: float) -> TokenCost:
    """Least squares of the relative error; what comes out negative is left out. ``call_s`` is kept where no stretch tells of it.

    Of calls that ran alone nobody can tell what a step costs from what each sequence in it does. Then it is the step, as in engines
    that read their weights: who takes the company to be dear lets none in, and never learns better.
    """
    rows = np.array([(_only_decoding(one), one.decoded, one.prefilled, one.idle) for one in stretches], float)
    rows /= np.array([[one.seconds] for one in stretches])
    prior = [0.0, ALONE_PRIOR * float(np.linalg.norm(rows[:, 1])), 0.0, 0.0]
    rows, ones = np.vstack([rows, prior]), np.append(np.ones(len(stretches)), 0.0)
    tells = any(one.idle for one in stretches)
    free = [0, 1, 2, 3] if tells else [0, 1, 2]
    solution = np.linalg.lstsq(rows[:, free], ones, rcond=None)[0]
    while len(free) > 1 and solution.min() < 0.0:
        free.pop(int(solution.argmin()))
        solution = np.linalg.lstsq(rows[:, free], ones, rcond=None)[0]
    found = [0.0, 0.0, 0.0, 0.0 if tells else call_s]
    for column, value in zip(free, solution, strict=True):
        found[column] = max(float(value), 0.0)
    return TokenCost(base_s=found[0], prefill_s=found[2], sequence_s=found[1], call_s=found[3])


def _only_decoding(stretch: Stretch) -> float:
    """Steps that prefill take as long as their prefill, whoever decodes in them."""
    return max(stretch.steps - stretch.mixed, 0.0)


class TokenMeter:
    """Cuts an engine's busy time into stretches, between two of its steps: what is told of one step is not divided.

    Each method returns the stretch that is over, if one is.
    """

    def __init__(self, stretch_s: float = STRETCH_S) -> None:
        self._stretch_s = stretch_s
        self._prompts: dict[str, int] = {}  # calls that have given no token yet
        self._decoding: dict[str, int] = {}  # with their prompt tokens
        self._context = 0
        self._since = 0.0  # when the stretch began
        self._looked = 0.0
        self._weighted = 0.0  # sequence-seconds of decoding
        self._weighted_context = 0.0
        self._decode_s = 0.0  # seconds in which any sequence decoded
        self._decoded = 0.0
        self._prefilled = 0.0
        self._prefills = self._mixed = 0
        self._idle = False
        self._stepped = 0.0  # when the engine last told of a step
        self._prefill_at = -math.inf  # when a prompt last came to its end

    def started(self, call_id: str, prompt_tokens: int, now: float) -> None:
        if not self._prompts and not self._decoding:
            self._begin(now)
            self._idle = True
        self._advance(now)
        self._prompts[call_id] = prompt_tokens

    def generated(self, call_id: str, tokens: int, now: float) -> Stretch | None:
        is_next = now - self._stepped > SAME_STEP_S
        stretch = self._cut(self._stepped) if is_next and self._stepped - self._since >= self._stretch_s else None
        self._advance(now)
        self._stepped = now
        prompt = self._prompts.pop(call_id, None)
        if prompt is not None:
            if now - self._prefill_at > SAME_STEP_S:
                self._prefill_at = now
                self._prefills += 1
                self._mixed += bool(self._decoding)
            self._decoding[call_id] = prompt
            self._context += prompt
            self._prefilled += prompt
            tokens -= 1  # the first one is made by the prefill
        self._decoded += tokens
        return stretch

    def finished(self, call_id: str, now: float) -> Stretch | None:
        """Left, done or not."""
        self._advance(now)
        given_up = self._prompts.pop(call_id, None)
        self._context -= self._decoding.pop(call_id, 0)
        if given_up is not None:
            self._begin(now)  # how much of it was prefilled is unknown
            return None
        return self._cut(now) if not self._prompts and not self._decoding else None

    def _begin(self, now: float) -> None:
        self._since = self._looked = self._stepped = now
        self._prefills, self._mixed, self._idle = 0, 0, False
        self._weighted = self._weighted_context = self._decode_s = self._decoded = self._prefilled = 0.0

    def _advance(self, now: float) -> None:
        elapsed, self._looked = now - self._looked, now
        if self._decoding:
            self._decode_s += elapsed
            self._weighted += elapsed * len(self._decoding)
            self._weighted_context += elapsed * self._context

    def _cut(self, now: float) -> Stretch | None:
        seconds, decoded, prefilled = now - self._since, self._decoded, self._prefilled
        sequences = self._weighted / self._decode_s if self._decode_s > 0.0 else 1.0
        context = self._weighted_context / self._decode_s if self._decode_s > 0.0 else 0.0
        prefills, mixed, idle = self._prefills, self._mixed, self._idle
        self._begin(now)
        if seconds < self._stretch_s / 10 or decoded + prefilled <= 0.0:
            return None
        return Stretch(seconds, decoded / max(sequences, 1.0), decoded, prefilled, context, prefills, mixed, idle)


class TokenCounts:
    """How many tokens a call will have, where its sender does not say: by the bytes of its request and the call-site's past answers."""

    def __init__(self) -> None:
        self._per_byte = Learned(mean=TOKENS_PER_BYTE)
        self._outputs: dict[str, Learned] = {}

    def prompt(self, request_bytes: int) -> int:
        return max(1, round(request_bytes * self._per_byte.mean))

    def output(self, site: str, limit: int | None) -> int:
        """At most ``limit``, what the request itself allows."""
        known = self._outputs.get(site)
        expected = SOME_TOKENS if known is None else max(1, round(known.mean))
        return expected if limit is None else max(1, min(expected, limit))

    def observe(self, site: str, request_bytes: int, prompt_tokens: int, output_tokens: int) -> None:
        if prompt_tokens > 0 and request_bytes > 0:
            self._per_byte.observe(prompt_tokens / request_bytes)
        self._outputs.setdefault(site, Learned()).observe(output_tokens)
