"""How much a continuous-batching engine may hold at once. Pure: ``now`` is an argument.

Such an engine takes what it is given and slows everyone: each prefill lengthens the steps in which the others decode. So the work
inside is bounded to what the deadlines of those running can bear; the rest waits outside, in the queue's order.

A running call that has n tokens to go and must be done in t seconds bears steps of t / n. The tightest of those is the longest step
allowed; the cost model says how many prefill tokens fit into it beside the sequences that decode. Calls that cannot be in time any
more do not count, nor do those without a deadline. Near its end a call has few tokens to go: it either bears much or is
the one that keeps new prefills out, for few steps.

Work conservation: while nothing is inside that a new call could harm, the head of the queue is let in, whatever its size. An engine that
consists of several, each on cores of its own, has one prompt for each of them where any may prefill at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.model import Call

#: Part of the bearable step that is used: the rest is for what the model does not know (measured fits are within 4 %).
USED = 0.9
#: How many step lengths are weighed against each other.
CANDIDATES = 12
#: How often the tightest step is looked for anew: about one engine step.
REFRESH_S = 0.01


@dataclass(slots=True)
class _Running:
    finish: float  #: by when the call must be done
    prompt: int
    output: int
    tokens: int = 0  #: generated so far


class WorkBound:
    """Admission of calls into one engine. Owned by one replica host.

    ``max_sequences``: what the engine is configured for. ``slowdown`` (learnt by :meth:`stepped`): measured over predicted step time.
    ``lead_s``: how long before the prefills inside are predicted to be done the next may follow, so that a host which hears of their end
    a little later leaves the engine no gap. ``shards``: engines inside, which prefill side by side. ``min_prefill_tokens``: the smallest
    allowance, where anything may be prefilled at all: smaller steps serve nobody.
    """

    def __init__(
        self,
        cost: TokenCost,
        *,
        max_sequences: int = 256,
        max_prefill_tokens: int = 8192,
        min_prefill_tokens: int = 256,
        lead_s: float = 0.0,
        shards: int = 1,
        progress: Callable[[str], int] | None = None,
    ) -> None:
        if max_sequences < 1:
            raise ValueError(f"max_sequences must be at least 1, not {max_sequences}")
        self.cost = cost
        self.slowdown = 1.0
        self._predicted_s = self._measured_s = 0.0  # means of late
        self._max_sequences = max_sequences
        self._max_prefill = max_prefill_tokens
        self._min_prefill = min_prefill_tokens
        self._lead_s = lead_s
        self._shards = shards
        self._prefilled_at = -math.inf  # when the prefills inside are predicted to be done
        self._progress = progress
        self._running: dict[str, _Running] = {}
        self._prefilling: dict[str, int] = {}
        self._prefill_tokens = 0
        self._context_tokens = 0
        self._step = math.inf
        self._looked = -math.inf

    def __len__(self) -> int:
        return len(self._running)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens inside of calls that have not given their first token."""
        return self._prefill_tokens

    def has_room(self, call: Call, now: float) -> bool:
        """Whether ``call`` may go into the engine now."""
        if not self._running:
            return True
        if len(self._running) >= self._max_sequences:
            return False
        allowed = self.allowance(now, call)
        if self._prefill_tokens + call.prompt_tokens <= allowed:
            return True
        if allowed > 0.0 and len(self._prefilling) < self._shards:
            return True
        # What is inside fills the step under way; the call waits for the next one. (Alone, a prompt may be longer than allowed.)
        within = len(self._prefilling) <= self._shards or self._prefill_tokens <= allowed
        return allowed > 0.0 and self._lead_s > 0.0 and within and self._prefilled_at - now <= self._lead_s + 1e-9

    def allowance(self, now: float, call: Call | None = None) -> float:
        """Prefill tokens that may be inside. At least one call may always prefill where no running deadline forbids it."""
        step = self._longest_step(now, call.prompt_tokens if call else 1) * USED / self.slowdown
        decoding = len(self._running) - len(self._prefilling)
        within = self.cost.prefill_within(step, decoding + 1, self._context_tokens)
        if within <= 0.0:
            return 0.0 if decoding else float(self._min_prefill)
        least, most = self._min_prefill, self._max_prefill
        allowed = least if within < least else most if within > most else within
        if call is not None and not self._prefill_tokens:
            # Alone it may be longer than the allowance: engines cut long prompts into chunks, and who bears one chunk bears a few.
            return max(allowed, call.prompt_tokens)
        return allowed

    def ask_again_at(self, now: float, at_most_s: float) -> float:
        """When a call that has no room may have it, if nothing is heard of those inside: after ``now``, within ``at_most_s``."""
        follows = self._prefilled_at - self._lead_s
        return follows if now < follows < now + at_most_s else now + at_most_s

    def started(self, call: Call, now: float) -> None:
        """The call went into the engine."""
        finish = math.inf if call.deadline is None else call.deadline - call.after_s
        self._running[call.id] = _Running(finish, call.prompt_tokens, max(call.output_tokens, 1))
        self._prefilling[call.id] = call.prompt_tokens
        self._prefill_tokens += call.prompt_tokens
        if self._lead_s <= 0.0:
            return
        step = self.cost.step_s(call.prompt_tokens, len(self._running), self._context_tokens) * self.slowdown
        self._prefilled_at = max(self._prefilled_at, now + self.cost.call_s * self.slowdown) + step

    def first_token(self, call_id: str) -> None:
        """The call's prompt has been prefilled."""
        tokens = self._prefilling.pop(call_id, None)
        if tokens is not None:
            self._prefill_tokens -= tokens
            self._context_tokens += tokens

    def generated(self, call_id: str, tokens: int = 1) -> None:
        """So many more tokens came out (unneeded where ``progress`` is given)."""
        running = self._running.get(call_id)
        if running is not None:
            running.tokens += tokens
            self.first_token(call_id)

    def finished(self, call_id: str) -> None:
        """The call left the engine, done or not. Safe to repeat."""
        self.first_token(call_id)
        running = self._running.pop(call_id, None)
        if running is not None:
            self._context_tokens -= running.prompt
            self._looked = -math.inf  # it may have been the tightest

    def stepped(self, predicted_s: float, measured_s: float) -> None:
        """Learn from a step (or any stretch of steps) how the engine compares with its profile.

        The ratio of means, not the mean of ratios: which of two stretches a step counts for must not matter.
        """
        if predicted_s > 0.0 and measured_s > 0.0:
            self._predicted_s += 0.05 * (predicted_s - self._predicted_s) if self._predicted_s else predicted_s
            measured_s = min(max(measured_s, 0.2 * predicted_s), 5.0 * predicted_s)
            self._measured_s += 0.05 * (measured_s - self._measured_s) if self._measured_s else self._predicted_s
            self.slowdown = self._measured_s / self._predicted_s

    def check_invariants(self) -> None:
        """Assert what must hold between calls; for tests."""
        assert self._prefilling.keys() <= self._running.keys()
        assert self._prefill_tokens == sum(self._prefilling.values())
        assert self._context_tokens == sum(r.prompt for i, r in self._running.items() if i not in self._prefilling)

    def _longest_step(self, now: float, prompt: int) -> float:
        """The step length that is worth most: calls kept in time inside, plus calls that prefill meanwhile.

        To keep the very tightest at any price would starve the queue, whose calls get tight by that and starve the next: each step
        length that some running call just bears is weighed by how many bear it and how many more it lets in.
        """
        if now - self._looked < REFRESH_S:
            return self._step
        self._looked = now
        bears: list[float] = []  # the longest step with which each call is in time, where there is one
        steps_left, progress, shortest = 0, self._progress, self.cost.shortest_step_s * self.slowdown
        for call_id, running in self._running.items():
            if progress is not None:
                running.tokens = progress(call_id)
            steps = running.output - running.tokens
            if steps > 0 and (step := (running.finish - now) / steps) >= shortest and step != math.inf:
                bears.append(step)
                steps_left += steps
        bears.sort()
        self._step = self._worth_most(bears, steps_left, max(prompt, 1))
        return self._step

    def _worth_most(self, bears: list[float], steps_left: int, prompt: int) -> float:
        if not bears:
            return math.inf
        count, decoding = len(bears), len(self._running) - len(self._prefilling) + 1
        horizon = steps_left / count * bears[count // 2]
        best, best_value = bears[0], -1.0
        for i in range(0, count, max(1, count // CANDIDATES)):
            step = bears[i] * USED / self.slowdown
            tokens = min(self.cost.prefill_within(step, decoding, self._context_tokens), self._max_prefill)
            value = count - i + horizon * tokens / (step * prompt)
            if value > best_value:
                best, best_value = bears[i], value
        return best
