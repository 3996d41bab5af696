"""The host of an engine that batches inside: calls enter while there is room, and leave when they are done.

Room is a number of slots and, where the engine works token by token and its cost is known, what the deadlines of those inside can bear
(``WorkBound``): an engine that runs everything at once slows everyone (design D5).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from patchwork_adapters.errors import DeadlinePassed
from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.estimate import Learned
from patchwork_scheduler.learned import LearnedTokenCost, Stretch, TokenCounts, TokenMeter
from patchwork_scheduler.policies import Policy
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.workbound import WorkBound
from patchwork_serving.components.coalesce import coalesce
from patchwork_serving.components.engine import ContinuousEngine, PriorityEngine, ShardedEngine, TokenEngine
from patchwork_serving.components.host import ComponentHost, Estimate, Waiting, error_frame
from patchwork_serving.components.tokens import token_limit
from patchwork_serving.deadlines import until_deadline
from patchwork_serving.errors import ConfigError
from patchwork_serving.pacing import pause_s
from patchwork_serving.wire import CallFrame, ReplyFrame

#: While a call waits for room, after how many of the engine's steps it is asked again (ends and first tokens are noticed at once).
ASK_AGAIN_STEPS = 4
#: How much of the engine's time before the prefills inside are done the next one follows.
LEAD_STEPS = 1.5
ASK_AGAIN_AT_LEAST_S = 0.005
#: Silences of the engine that are looked at: shorter ones are nobody's concern, and every token ends one.
SILENCE_S = 0.25


@dataclass(slots=True, eq=False)
class _Inside:
    """A call inside the engine; implements ``Progress``."""

    host: ContinuousHost
    waiting: Waiting
    tokens: int = 0

    def generated(self, tokens: int = 1) -> None:
        first = not self.tokens
        self.tokens += tokens
        self.host.progressed(self, tokens, first)

    def used(self, prompt_tokens: int, output_tokens: int) -> None:
        self.waiting.prompt_tokens, self.waiting.output_tokens = prompt_tokens, output_tokens


class ContinuousHost(ComponentHost):
    """``bounded``: whether deadlines bound the work inside a token engine; if not, and for other engines, the slots alone do."""

    engine: ContinuousEngine

    def __init__(
        self,
        engine: ContinuousEngine,
        queue: CallQueue,
        policy: Policy,
        *,
        replica: str,
        slots: int | None = None,
        cost: TokenCost | None = None,
        bounded: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(engine, queue, policy, replica=replica, limit=slots or engine.slots, clock=clock)
        self._step_tokens = engine.step_tokens if isinstance(engine, TokenEngine) else 0
        self._bounded = bounded
        self._bound: WorkBound | None = None
        self._cost = LearnedTokenCost(cost)
        self._meter = TokenMeter()
        self._counts = TokenCounts()
        self._seconds = Learned()  # of a call, where nothing better is known
        self._inside: dict[str, _Inside] = {}
        self._streams = 0
        self._moved = 0.0  # when the engine last gave a token, or began to work
        self._set_bound()

    async def start(self) -> None:
        """Raises what the engine raises, and ConfigError when the engine's own queue would undo the order of this one."""
        await super().start()
        if isinstance(self.engine, TokenEngine):
            self._step_tokens = self.engine.step_tokens  # some know it only once they run
            self._set_bound()
        if isinstance(self.engine, PriorityEngine) and self.engine.scheduling_policy != "priority":
            await self.close()
            raise ConfigError(
                f"the engine of {self.replica} runs with the scheduling policy {self.engine.scheduling_policy!r}, which would undo the "
                "order of this replica's queue; leave scheduling_policy out of its engine_args, or set it to priority"
            )

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _call(self, frame: CallFrame) -> ReplyFrame:
        async with self._admitted(frame) as inside:
            payloads = [payload async for payload in self._generate(inside)]
        return ReplyFrame(tuple(payloads), self._report(inside.waiting))  # of what is there when it has left

    async def stream(self, frame: CallFrame) -> AsyncIterator[ReplyFrame]:
        try:
            async with self._admitted(frame) as inside:
                self._streams += 1
                first: float | None = None
                try:
                    groups = coalesce(self._generate(inside), lambda sent: pause_s(self._streams, sent))
                    async with contextlib.aclosing(groups):  # type: ignore[type-var]
                        async for group in groups:
                            if first is None:
                                first = self._clock() - inside.waiting.started
                            yield ReplyFrame(group, last=False)
                finally:
                    self._streams -= 1
            yield ReplyFrame(report=self._report(inside.waiting, first))
        except (Exception, DeadlinePassed) as error:  # noqa: BLE001  the loop top of a stream
            yield ReplyFrame(error=error_frame(error))

    @contextlib.asynccontextmanager
    async def _admitted(self, frame: CallFrame) -> AsyncIterator[_Inside]:
        """Wait for room in the engine and hold it."""
        with self._arrived(frame) as waiting:
            try:
                await self._outcome(waiting)
                inside = self._inside[frame.id]
                yield inside
                self._learn(inside)
            finally:
                self._out(frame.id)  # also when it was let in at the moment it gave up

    async def _generate(self, inside: _Inside) -> AsyncIterator[bytes]:
        deadline = inside.waiting.deadline
        frames = self.engine.generate(self._engine_call(inside.waiting, inside))
        try:
            remaining_s = (lambda: None) if deadline is None else (lambda: max(0.0, deadline - self._clock()))
            async for payload in until_deadline(frames, remaining_s):
                yield payload
        except TimeoutError:
            raise DeadlinePassed(f"the deadline passed in {self.replica}") from None
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    # -- room ------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> float | None:
        while self._running < self._limit and (head := self._queue.peek(now)) is not None:
            if self._bound is not None and not self._bound.has_room(head, now):
                step_s = self._bound.cost.shortest_step_s * self._bound.slowdown
                return self._bound.ask_again_at(now, max(ASK_AGAIN_AT_LEAST_S, ASK_AGAIN_STEPS * step_s))
            (call,) = self._queue.next_batch(now, limit=1)
            waiting = self._take(call, now, self._running + 1)
            if not waiting.done.done():  # else its caller gave up in this very turn of the loop, and is about to leave
                self._let_in(waiting, now)
        return None

    def _let_in(self, waiting: Waiting, now: float) -> None:
        call = waiting.call
        if not self._running:
            self._moved = now
        self._running += 1
        self._inside[call.id] = _Inside(self, waiting)
        for one in self._inside.values():  # the most company that a call had is what its seconds were paid with
            one.waiting.batch = max(one.waiting.batch, self._running)
        if self._step_tokens:
            self._meter.started(call.id, call.prompt_tokens, now)
        if self._bound is not None:
            self._bound.started(call, now)
        waiting.done.set_result(None)

    def _out(self, call_id: str) -> None:
        """Safe for a call that never was inside."""
        if self._inside.pop(call_id, None) is None:
            return
        self._running -= 1
        if self._bound is not None:
            self._bound.finished(call_id)
        if self._step_tokens:
            self._measured(self._meter.finished(call_id, self._clock()))
        self._wake.set()

    def progressed(self, inside: _Inside, tokens: int, first: bool) -> None:
        """The engine gave tokens of a call."""
        call_id = inside.waiting.call.id
        if call_id not in self._inside:
            return  # it was given up; the engine has not noticed yet
        now = self._clock()
        if now - self._moved > SILENCE_S:
            self._pace.lasted(self._silence_s(), now - self._moved)
        self._moved = now
        self._measured(self._meter.generated(call_id, tokens, now))
        if first:
            if self._bound is not None:
                self._bound.first_token(call_id)
            self._wake.set()  # there may be room for the next prompt

    # -- whether it moves ------------------------------------------------------------------------------------------

    def _is_stalled(self, now: float) -> bool:
        # an engine that tells nothing between the ends of calls, which may differ by any factor, is not judged
        return bool(self._inside and self._step_tokens) and self._pace.is_stalled(self._silence_s(), now - self._moved)

    def _silence_s(self) -> float:
        """Longest that a token engine is expected to give nothing: the prefill of all without a token; 0 while its cost is unknown."""
        cost = self._cost.cost
        if cost is None:
            return 0.0
        prompts = [one.waiting.estimate.prompt_tokens for one in self._inside.values() if not one.tokens]
        context = sum(one.waiting.estimate.prompt_tokens + one.tokens for one in self._inside.values() if one.tokens)
        slowdown = 1.0 if self._bound is None else self._bound.slowdown
        return slowdown * (cost.call_s + cost.step_s(sum(prompts), len(self._inside) - len(prompts), context))

    # -- what is learnt --------------------------------------------------------------------------------------------

    def _estimate(self, frame: CallFrame) -> Estimate:
        if not self._step_tokens:
            seconds = self._seconds.mean
            return Estimate(seconds, seconds / self._limit)
        prompt = frame.prompt_tokens or self._counts.prompt(len(frame.payload))
        output = frame.output_tokens or self._counts.output(frame.site, token_limit(frame))
        cost = self._cost.cost
        if cost is None:
            return Estimate(self._seconds.mean, self._seconds.mean / self._limit, prompt, output)
        slowdown = 1.0 if self._bound is None else self._bound.slowdown
        alone, occupied = cost.alone_s(prompt, output), cost.occupied_s(prompt, output, chunk=self._step_tokens)
        return Estimate(alone * slowdown, occupied * slowdown, prompt, output)

    def _modelled(self, waiting: Waiting) -> tuple[float, float]:
        cost = self._cost.cost
        if not self._step_tokens or cost is None:
            return 0.0, 0.0
        prompt, output = waiting.prompt_tokens or waiting.estimate.prompt_tokens, waiting.output_tokens
        return cost.alone_s(prompt, output), cost.occupied_s(prompt, output, chunk=self._step_tokens)

    def _running_s(self, now: float) -> float:
        """What is inside is taken to be done evenly over its tokens or, unknown, over its seconds."""
        return sum(one.waiting.estimate.occupied_s * self._left(one, now) for one in self._inside.values())

    def _left(self, inside: _Inside, now: float) -> float:
        estimate = inside.waiting.estimate
        if self._step_tokens:
            return max(0.0, 1.0 - inside.tokens / max(estimate.output_tokens, 1))
        return max(0.0, 1.0 - (now - inside.waiting.started) / estimate.alone_s) if estimate.alone_s else 0.0

    def _learn(self, inside: _Inside) -> None:
        """A call came to its end."""
        waiting = inside.waiting
        seconds = self._clock() - waiting.started
        self._seconds.observe(seconds)
        self.counts.served(waiting.batch, seconds, calls=1)
        if not self._step_tokens:
            return
        waiting.output_tokens = waiting.output_tokens or inside.tokens
        frame = waiting.frame
        self._counts.observe(frame.site, len(frame.payload), waiting.prompt_tokens, waiting.output_tokens)

    def _set_bound(self) -> None:
        """Once the cost is known; what is inside by then counts from here on."""
        cost = self._cost.cost
        if not (self._bounded and self._step_tokens) or cost is None:
            return
        self._bound = WorkBound(
            cost, max_sequences=self._limit, max_prefill_tokens=self._step_tokens, lead_s=LEAD_STEPS * cost.shortest_step_s + cost.call_s,
            shards=self.engine.shards if isinstance(self.engine, ShardedEngine) else 1,
            progress=lambda call_id: self._inside[call_id].tokens,
        )  # fmt: skip
        for inside in self._inside.values():
            self._bound.started(inside.waiting.call, inside.waiting.started)
            if inside.tokens:
                self._bound.first_token(inside.waiting.call.id)

    def _measured(self, stretch: Stretch | None) -> None:
        if stretch is None:
            return
        predicted_s = self._cost.predicted_s(stretch)
        self._pace.worked(predicted_s, stretch.seconds, self._clock())
        self._cost.observe(stretch)
        if self._bound is None:
            self._set_bound()
        elif self._cost.cost is self._bound.cost:
            self._bound.stepped(predicted_s, stretch.seconds)
        elif self._cost.cost is not None:
            self._bound.cost = self._cost.cost
