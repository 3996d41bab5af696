"""What must hold whatever comes: hosts with engines that take virtual time, under arrivals, departures and failures of any kind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import PATIENCE_S, Call
from patchwork_scheduler.policies import policy_names, rank_at
from patchwork_serving.components.engine import EngineCall
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.components.hosting import host_of
from patchwork_serving.errors import EngineRefused
from patchwork_serving.release import ComponentSpec
from patchwork_serving.wire import CallFrame, ReplyFrame

BATCH = BatchCost((1.0, 8.0), (0.1, 0.3))
TOKENS = TokenCost(base_s=0.02, prefill_s=0.0005, sequence_s=0.002)


@dataclass(frozen=True)
class Caller:
    """Someone who calls, and perhaps does not wait for the end."""

    after_s: float  #: the one before
    due_s: float | None = None
    gives_up_s: float | None = None  #: the deadline
    leaves_s: float | None = None
    size: int = 1
    bad: bool = False
    ahead_s: float = 0.0


class Engine:
    """What both kinds of engine note down."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.inside: set[str] = set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        return {}

    def enter(self, *ids: str) -> None:
        self.runs.update(ids)
        self.inside |= set(ids)


class Batches(Engine):
    async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
        ids = [call.id for call in batch]
        self.enter(*ids)
        try:
            await asyncio.sleep(BATCH(sum(call.size for call in batch)))
        finally:
            self.inside -= set(ids)
        return [EngineRefused("bad") if call.payload == b"bad" else b"done" for call in batch]


class Steps(Engine):
    """As many seconds per token as there are calls inside, which is what a busy engine feels like."""

    slots = 4
    step_tokens = 512

    async def generate(self, call: EngineCall) -> AsyncIterator[bytes]:
        self.enter(call.id)
        try:
            await asyncio.sleep(TOKENS.step_s(call.prompt_tokens, len(self.inside)))
            if call.payload == b"bad":
                raise EngineRefused("bad")
            for _ in range(8):
                call.progress.generated()
                await asyncio.sleep(TOKENS.step_s(0, len(self.inside)))
            yield b"done"
        finally:
            self.inside.discard(call.id)


def maybe(seconds: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | seconds


seconds = st.floats(0.01, 5.0)
callers = st.lists(
    st.builds(
        Caller, after_s=st.floats(0.0, 0.3), due_s=maybe(seconds), gives_up_s=maybe(seconds), leaves_s=maybe(seconds),
        size=st.integers(1, 10), bad=st.booleans(), ahead_s=st.floats(0.0, 2.0),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


async def serve(loop: VirtualLoop, host: ComponentHost, come: Sequence[Caller]) -> Counter[str]:
    """Outcomes of all callers, by the names that the rest of the system uses."""
    await host.start()
    tasks = []
    for n, caller in enumerate(come):
        await asyncio.sleep(caller.after_s)
        tasks.append(asyncio.create_task(outcome(loop, host, f"c{n}", caller)))
    outcomes = Counter(await asyncio.gather(*tasks))
    await asyncio.sleep(0.1)  # what was cancelled has ended
    host._queue.check_invariants()
    assert host.load() == type(host.load())(0, 0, 0.0, 0.0)
    await host.close()
    return outcomes


async def outcome(loop: VirtualLoop, host: ComponentHost, name: str, caller: Caller) -> str:
    frame = CallFrame(
        name, "r", "l", "m", b"bad" if caller.bad else b"good", size=caller.size, ahead_s=caller.ahead_s,
        remaining_s=caller.gives_up_s, due_s=caller.due_s, prompt_tokens=100, output_tokens=8,
    )  # fmt: skip
    began = loop.time()
    work = asyncio.create_task(host.call(frame))
    done, _ = await asyncio.wait({work}, timeout=caller.leaves_s)
    if not done:
        work.cancel()
        await asyncio.wait({work})
        return "cancelled"
    return judged(work.result(), loop.time() - began, caller)


def judged(reply: ReplyFrame, took_s: float, caller: Caller) -> str:
    if reply.error is not None:
        return {"EngineRefused": "failed", "DeadlinePassed": "missed"}[reply.error.kind]
    assert reply.payloads == (b"done",)
    return "attained" if caller.due_s is None or took_s <= caller.due_s else "missed"


def spec(**fields: Any) -> ComponentSpec:
    return ComponentSpec(id="c", kind="llm", way="engine", engine="fake", **fields)


class Watch:
    """Between events: a batch engine has work while any waits, a continuous one is never empty while any waits."""

    def __init__(self, host: ComponentHost, loop: VirtualLoop) -> None:
        self.host = host
        loop.at_rest = self.check

    def check(self) -> None:
        load = self.host.load()
        if load.queued:
            assert load.running, "calls wait for an idle engine"


@settings(max_examples=60, deadline=None)
@given(callers, st.sampled_from(policy_names()), st.integers(1, 3), st.sampled_from([0.0, 0.2]))
def test_every_call_to_a_batch_engine_has_one_outcome_and_runs_at_most_once(
    come: list[Caller], policy: str, parallel: int, max_wait_s: float
) -> None:
    async def story(loop: VirtualLoop) -> None:
        engine = Batches()
        chosen = spec(policy=policy, max_batch=8, max_wait_s=max_wait_s)
        host = host_of(chosen, engine, replica="r", parallel_batches=parallel, clock=loop.time)
        Watch(host, loop)
        outcomes = await serve(loop, host, come)
        assert is_told(outcomes, come, host)
        assert ran_once(outcomes, come, engine)

    run_virtually(story)


@settings(max_examples=60, deadline=None)
@given(callers, st.sampled_from(policy_names()), st.booleans())
def test_every_call_to_a_continuous_engine_has_one_outcome_and_runs_at_most_once(
    come: list[Caller], policy: str, profiled: bool
) -> None:
    async def story(loop: VirtualLoop) -> None:
        engine = Steps()
        cost = {"base_s": 0.02, "prefill_s": 0.0005, "sequence_s": 0.002} if profiled else None
        host = host_of(spec(policy=policy, cost=cost), engine, replica="r", clock=loop.time)
        Watch(host, loop)
        outcomes = await serve(loop, host, come)
        assert is_told(outcomes, come, host)
        assert ran_once(outcomes, come, engine)

    run_virtually(story)


def is_told(outcomes: Counter[str], come: Sequence[Caller], host: ComponentHost) -> bool:
    """Nothing is lost: offered = attained + missed + refused + failed + cancelled (the door refuses, not a host)."""
    return sum(outcomes.values()) == len(come) == host.counts.report()["arrived"]


def ran_once(outcomes: Counter[str], come: Sequence[Caller], engine: Engine) -> bool:
    """Nothing runs twice, what was answered ran, and nothing runs still."""
    answered = outcomes["attained"] + outcomes["failed"]
    return set(engine.runs.values()) <= {1} and answered <= len(engine.runs) <= len(come) and not engine.inside


@settings(max_examples=60, deadline=None)
@given(callers, st.sampled_from(policy_names()))
def test_no_call_that_stays_behind_had_less_slack_than_one_that_went(come: list[Caller], policy: str) -> None:
    async def story(loop: VirtualLoop) -> None:
        host = host_of(spec(policy=policy, max_batch=8), Batches(), replica="r", clock=loop.time)
        queue, cut = host._queue, host._queue.next_batch

        def watched(now: float, *, limit: int | None = None) -> tuple[Call, ...]:
            batch = cut(now, limit=limit)
            ranks = [rank_at(host._policy, call, now) for call in batch]
            assert ranks == sorted(ranks)
            assert all(rank_at(host._policy, call, now) >= ranks[-1] for call in queue)
            return batch

        queue.next_batch = watched  # type: ignore[method-assign]
        await serve(loop, host, come)

    run_virtually(story)


def test_a_call_without_a_deadline_is_served_in_a_replica_that_is_always_full_of_urgent_ones() -> None:
    async def story(loop: VirtualLoop) -> float:
        host = host_of(spec(max_batch=1), Batches(), replica="r", clock=loop.time)
        await host.start()

        async def urgent() -> None:  # a third more than the engine can do, and all of it due soon
            for n in range(2000):
                tasks.add(
                    asyncio.create_task(host.call(CallFrame(f"u{n}", "r", "l", "m", b"", due_s=1.0, remaining_s=5.0)))
                )
                await asyncio.sleep(0.075)

        tasks: set[asyncio.Task[ReplyFrame]] = set()
        coming = asyncio.create_task(urgent())
        await asyncio.sleep(1.0)
        began = loop.time()
        reply = await host.call(CallFrame("patient", "r", "l", "m", b""))
        took = loop.time() - began
        coming.cancel()
        assert reply.error is None
        await host.close()
        await asyncio.gather(*tasks)
        return took

    assert run_virtually(story) <= PATIENCE_S + 5.0


def test_a_batch_grows_only_as_far_as_its_tightest_call_can_bear_once_the_cost_is_known() -> None:
    async def story(loop: VirtualLoop) -> list[int]:
        sizes: list[int] = []

        class Noted(Batches):
            async def run(self, batch: Sequence[EngineCall]) -> Sequence[bytes | Exception]:
                sizes.append(len(batch))
                return await super().run(batch)

        seed = {"sizes": list(BATCH.sizes), "seconds": list(BATCH.seconds)}
        host = host_of(spec(max_batch=8, cost=seed), Noted(), replica="r", clock=loop.time)
        await host.start()
        first = asyncio.create_task(host.call(CallFrame("first", "r", "l", "m", b"")))
        await asyncio.sleep(0.01)
        tight = CallFrame("tight", "r", "l", "m", b"", due_s=0.09 + 0.16)  # a batch of 3 takes 0.157 s, of 4 0.186 s
        calls = [host.call(tight), *(host.call(CallFrame(f"c{n}", "r", "l", "m", b"", due_s=9.0)) for n in range(7))]
        await asyncio.gather(first, *calls)
        await host.close()
        return sizes

    assert run_virtually(story) == [1, 3, 5]
