"""Engines of the simulator: they take the time that a cost model says and know nothing of deadlines.

``SimulatedContinuous`` steps as vLLM's scheduler does: a step has a budget of tokens; sequences that decode take one each, prefills
under way take the next part of it, and what is left goes to waiting calls in the order of their key. Stretches in which everybody
decodes are jumped over at once.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

from patchwork_scheduler.cost import TokenCost


@dataclass(slots=True, eq=False)
class Sequence:
    """A call inside the engine."""

    call_id: str
    prompt: int
    output: int
    left: int = 0  #: prompt tokens not yet prefilled
    began: int = -1  #: engine step of its first token
    ends: int = 0  #: engine step of its last token


class SimulatedContinuous:
    """Drive it with :meth:`add`, then ``end = start(now)``, and at ``end`` :meth:`finish`."""

    def __init__(self, cost: TokenCost, *, max_sequences: int = 256, token_budget: int = 8192) -> None:
        self.cost = cost
        self.max_sequences = max_sequences
        self.token_budget = token_budget
        self.work_s = 0.0  #: seconds spent stepping
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, Sequence]] = []
        self._prefilling: list[Sequence] = []
        self._decoding: list[tuple[int, int, Sequence]] = []
        self._inside: dict[str, Sequence] = {}
        self._steps = 0
        self._context = 0
        self._stepping: tuple[float, float, int] | None = None  # began, seconds per step, steps
        self._chunks: list[tuple[Sequence, int]] = []

    def __len__(self) -> int:
        return len(self._inside)

    @property
    def stepping(self) -> bool:
        return self._stepping is not None

    def generated(self, call_id: str) -> int:
        """Tokens that the call has given so far."""
        sequence = self._inside[call_id]
        return 0 if sequence.began < 0 else self._steps - sequence.began + 1

    def add(self, call_id: str, prompt: int, output: int, key: float, now: float) -> float | None:
        """A call comes in; lower ``key`` is scheduled earlier. Returns the new end of the stretch under way if that is shortened."""
        sequence = Sequence(call_id, prompt, max(output, 1), left=prompt)
        self._inside[call_id] = sequence
        heapq.heappush(self._waiting, (key, next(self._order), sequence))
        return self.interrupt(now)

    def remove(self, call_id: str) -> None:
        """The caller left: from the next step on nothing of the call is computed. Unknown ids are no error."""
        sequence = self._inside.pop(call_id, None)
        if sequence is None:
            return
        if sequence.began >= 0:
            self._context -= sequence.prompt + self._steps - sequence.began + 1
        self._prefilling = [one for one in self._prefilling if one is not sequence]
        self._chunks = [(one, chunk) for one, chunk in self._chunks if one is not sequence]
        self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
        self._decoding = [entry for entry in self._decoding if entry[2] is not sequence]
        heapq.heapify(self._waiting)
        heapq.heapify(self._decoding)

    def interrupt(self, now: float) -> float | None:
        """End a stretch of decoding steps with the step under way at ``now``; None when nothing changes."""
        if self._stepping is None:
            return None
        began, step_s, steps = self._stepping
        done = max(1, math.ceil((now - began) / step_s - 1e-9))
        if done >= steps:
            return None
        self._stepping = (began, step_s, done)
        return began + done * step_s

    def start(self, now: float, *, most_steps: int = 1_000_000) -> float | None:
        """Begin the next step, or stretch of equal steps; returns its end, None when there is nothing to do."""
        if not self._inside or self._stepping is not None:
            return None
        decoding = len(self._decoding)
        budget = self.token_budget - decoding
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self._prefilling:
            if budget <= 0:
                break
            chunk = sequence.left if sequence.left < budget else budget
            chunks.append((sequence, chunk))
            budget -= chunk
        while self._waiting and budget > 0 and decoding + len(self._prefilling) < self.max_sequences:
            _, _, sequence = heapq.heappop(self._waiting)
            self._prefilling.append(sequence)
            chunk = sequence.left if sequence.left < budget else budget
            chunks.append((sequence, chunk))
            budget -= chunk
        self._chunks = chunks
        tokens = sum(chunk for _, chunk in chunks)
        steps = 1
        if not chunks:
            steps = max(
                1, min(self._decoding[0][0] - self._steps, most_steps, 32)
            )  # the context grows: not too far at once
        step_s = self.cost.step_s(tokens, decoding, self._context)
        self._stepping = (now, step_s, steps)
        return now + step_s * steps

    def finish(self) -> tuple[list[str], list[str]]:
        """The stretch under way is over: ids of the calls that gave their first token, and of those that are done."""
        assert self._stepping is not None
        _, step_s, steps = self._stepping
        self._stepping = None
        self.work_s += step_s * steps
        self._steps += steps
        self._context += len(self._decoding) * steps
        first, done = [], []
        if self._chunks:
            for sequence, chunk in self._chunks:
                sequence.left -= chunk
                if sequence.left <= 0:
                    first.append(sequence.call_id)
                    self._context += sequence.prompt + 1
                    sequence.began, sequence.ends = self._steps, self._steps + sequence.output - 1
                    heapq.heappush(self._decoding, (sequence.ends, next(self._order), sequence))
            self._prefilling = [sequence for sequence in self._prefilling if sequence.left > 0]
            self._chunks = []
        while self._decoding and self._decoding[0][0] <= self._steps:
            _, _, sequence = heapq.heappop(self._decoding)
            self._context -= sequence.prompt + sequence.output
            del self._inside[sequence.call_id]
            done.append(sequence.call_id)
        return first, done
