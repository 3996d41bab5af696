"""An LLM that takes as long as a measured profile says, on a machine without the GPU.

It steps as a real one with continuous batching does, all its sequences on one clock, so that more of them slow each other.
What used it says so (``docs/decisions/emulated-engines.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from patchwork_adapters import codec
from patchwork_adapters.protocol import HttpResponse, decode_request, encode_response
from patchwork_scheduler.cost import TokenCost
from patchwork_scheduler.simulated_engines import SimulatedContinuous
from patchwork_serving.components.emulated_replies import Answer, Wish, answer_of, chunks, whole
from patchwork_serving.components.engine import SILENT, EngineCall
from patchwork_serving.errors import EngineDied, EngineRefused

EMULATED = "emulated"
DEFAULT_SLOTS = 256  #: vLLM's own number of sequences
STEP_TOKENS = 8192  #: vLLM's ``max_num_batched_tokens`` on a large GPU
#: A stream is told of its tokens this often at least: an engine's steps are shorter, and the host coalesces anyway (design D9).
STREAM_EVERY_S = 0.02

_ROUTES = {"POST /v1/chat/completions": True, "POST /v1/completions": False, "chat": True, "complete": False}
_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8"}

Clock = Callable[[], float]


@dataclass(slots=True, eq=False)
class _Inside:
    """A call inside the engine, and how many of its tokens there are."""

    call: EngineCall
    output: int
    given: int = 0
    done: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


class StepClock:
    """The steps of one engine on the event loop's timers. A step ends when it should, not when the timer wakes."""

    def __init__(self, cost: TokenCost, max_sequences: int, clock: Clock) -> None:
        self.late_s = 0.0  #: the most that a step was told late: how far the emulation could be trusted
        self._engine = SimulatedContinuous(cost, max_sequences=max_sequences, token_budget=STEP_TOKENS)
        self._most_steps = max(1, int(STREAM_EVERY_S / cost.shortest_step_s))
        self._clock = clock
        self._inside: dict[str, _Inside] = {}
        self._watched: dict[str, _Inside] = {}  # those somebody is told about token by token
        self._timer: asyncio.TimerHandle | None = None
        self._end = 0.0

    def __len__(self) -> int:
        return len(self._inside)

    async def tokens(self, call: EngineCall, prompt: int, output: int) -> AsyncIterator[int]:
        """How many tokens a streamed call has, again and again until it has all; of others once, at the end. Closing it aborts the call."""
        inside = self._inside[call.id] = _Inside(call, output)
        if call.stream or call.progress is not SILENT:
            self._watched[call.id] = inside
        self._enter(call, prompt, output)
        try:
            told = 0
            while not inside.done:
                await inside.news.wait()
                inside.news.clear()
                if inside.given > told and not inside.done:
                    yield (told := inside.given)
            call.progress.used(prompt, output)
            yield output
        finally:
            self._watched.pop(call.id, None)
            if self._inside.pop(call.id, None) is not None:
                self._engine.remove(call.id)

    def close(self) -> None:
        """Stop stepping; idempotent. Whoever still waits is cancelled by the host."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enter(self, call: EngineCall, prompt: int, output: int) -> None:
        now = self._clock()
        shortened = self._engine.add(call.id, prompt, output, call.priority, now)
        if self._timer is None:
            self._begin(now)
        elif shortened is not None:
            self._timer.cancel()
            self._sleep_until(shortened)

    def _begin(self, now: float) -> None:
        end = self._engine.start(now, most_steps=self._most_steps if self._watched else 1_000_000)
        if end is None:
            self._timer = None
        else:
            self._sleep_until(end)

    def _sleep_until(self, end: float) -> None:
        self._end = end
        self._timer = asyncio.get_running_loop().call_later(max(0.0, end - self._clock()), self._step)

    def _step(self) -> None:
        self.late_s = max(self.late_s, self._clock() - self._end)
        _, done = self._engine.finish()
        for call_id in done:
            inside = self._inside.pop(call_id)
            self._watched.pop(call_id, None)
            inside.done = True
            self._tell(inside, inside.output)
        for call_id, inside in self._watched.items():
            self._tell(inside, self._engine.generated(call_id))
        self._begin(self._end)

    @staticmethod
    def _tell(inside: _Inside, given: int) -> None:
        if given > inside.given:
            inside.call.progress.generated(given - inside.given)
            inside.given = given
            if inside.call.stream or inside.done:
                inside.news.set()


class EmulatedLlm:
    """A TokenEngine and a PriorityEngine. Methods ``POST /v1/chat/completions``, ``POST /v1/completions``, ``chat`` and ``complete``."""

    def __init__(
        self,
        cost: TokenCost,
        wish: Wish,
        *,
        name: str,
        profile: str,
        slots: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.slots = slots or DEFAULT_SLOTS
        self.step_tokens = STEP_TOKENS
        self.scheduling_policy = "priority"
        self._cost = cost
        self._wish = wish
        self._name = name
        self._profile = profile
        self._clock = clock
        self._steps: StepClock | None = None

    async def start(self) -> None:
        self._steps = StepClock(self._cost, self.slots, self._clock)

    async def close(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def describe(self) -> Mapping[str, Any]:
        late_s = self._steps.late_s if self._steps else 0.0
        return {
            "engine": EMULATED,
            "model": self._name,
            "profile": self._profile,
            "slots": self.slots,
            "late_s": round(late_s, 4),
        }

    async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        if call.method not in _ROUTES:
            raise EngineRefused(f"{self._name} is emulated and answers {', '.join(_ROUTES)}, not {call.method!r}")
        frames = self._protocol(call) if call.method.startswith("POST ") else self._operation(call)
        async with contextlib.aclosing(frames):  # type: ignore[type-var]
            async for frame in frames:
                yield frame

    async def _protocol(self, call: EngineCall) -> AsyncIterator[bytes]:
        body = decode_request(call.payload).json()
        if (fault := _fault(body, chat=_ROUTES[call.method])) is not None:
            yield encode_response(HttpResponse(400, _JSON, fault))
            return
        if call.stream:
            yield encode_response(HttpResponse(200, _EVENTS))
            async for chunk in self._chunks(call, body):
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
            yield b"data: [DONE]\n\n"
            return
        yield encode_response(HttpResponse(200, _JSON, orjson.dumps(await self._whole(call, body))))

    async def _operation(self, call: EngineCall) -> AsyncIterator[bytes]:
        body = dict(codec.decode(call.payload)["body"])
        if (fault := _fault(body, chat=_ROUTES[call.method])) is not None:
            raise EngineRefused(orjson.loads(fault)["error"]["message"])
        if not call.stream:
            yield codec.encode_outcome(await self._whole(call, body))
            return
        async for chunk in self._chunks(call, body):
            yield codec.encode_outcome(chunk)

    async def _whole(self, call: EngineCall, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = answer_of(body, self._wish)
        async for _ in self._worked(call, answer):
            pass
        return whole(answer, body, str(body.get("model") or self._name), int(time.time()))

    async def _chunks(self, call: EngineCall, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        answer = answer_of(body, self._wish)
        model, created, told = str(body.get("model") or self._name), int(time.time()), 0
        async for given in self._worked(call, answer):
            for chunk in chunks(answer, body, model, created, told, given):
                yield chunk
            told = given

    async def _worked(self, call: EngineCall, answer: Answer) -> AsyncIterator[int]:
        if self._steps is None:
            raise EngineDied(f"{self._name} is not running; its replica is starting or shutting down")
        if self._cost.call_s > 0:  # hand-over and tokenising, outside the engine's steps
            await asyncio.sleep(self._cost.call_s)
        tokens = self._steps.tokens(call, answer.prompt_tokens, answer.output_tokens)
        async with contextlib.aclosing(tokens):  # type: ignore[type-var]
            async for given in tokens:
                yield given


def _fault(body: Mapping[str, Any], *, chat: bool) -> bytes | None:
    """An OpenAI-shaped refusal of what a real engine would refuse, or an emulated one cannot do."""
    message = None
    if chat and not (isinstance(body.get("messages"), list) and body["messages"]):
        message = "messages must be a list of messages, and not empty"
    elif not chat and not isinstance(body.get("prompt"), str | list):
        message = "prompt must be a text"
    elif (body.get("n") or 1) != 1:
        message = "an emulated engine gives one answer (n=1)"
    for name in ("max_tokens", "max_completion_tokens"):
        limit = body.get(name)
        if limit is not None and (type(limit) is not int or limit < 1):
            message = f"{name} must be an integer of at least 1"
    if message is None:
        return None
    return orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
