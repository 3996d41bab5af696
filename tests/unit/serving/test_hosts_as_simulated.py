"""A replica's host around an emulated engine, on a clock that jumps, against the same in the simulator: equal, request by request."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.learned import LearnedBatchCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_scheduler.simulate import SETUPS, ComponentPlan, simulate
from patchwork_scheduler.workload import Site, Workload, poisson
from patchwork_serving.components.batch_host import BatchHost
from patchwork_serving.components.continuous_host import ContinuousHost
from patchwork_serving.components.emulated import BatchTimes, EmulatedEmbedder
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.wire import CallFrame

PROMPT, OUTPUT, SLO_S = 3000, 4, 6.0
LLM = TokenCost(base_s=0.035, prefill_s=1.1e-4, sequence_s=4e-5, context_s=3.6e-7, call_s=0.076)
BATCHES = BatchCost((1.0, 8.0), (0.14, 0.98))


def simulated(cost: BatchCost | TokenCost, plan: ComponentPlan, policy: str, times: Sequence[float]) -> list[float]:
    tokens = (PROMPT, OUTPUT) if isinstance(cost, TokenCost) else (0, 0)
    workload = Workload("it", [Site("it", "it", prompt_tokens=tokens[0], output_tokens=tokens[1])])
    took: dict[float, float] = {}
    setup = dataclasses.replace(SETUPS[policy], admission="open")
    simulate(
        workload, {"it": plan}, {"it": cost}, times, SloClass("s", SLO_S), setup=setup,
        seen=lambda request, ended: took.__setitem__(request.arrived, (ended or 0.0) - request.arrived),
    )  # fmt: skip
    return [took[at] for at in times]


async def served(loop: VirtualLoop, host: ComponentHost, frame: CallFrame, times: Sequence[float]) -> list[float]:
    await host.start()
    began, took = loop.time(), [0.0] * len(times)

    async def one(number: int, at: float) -> None:
        await asyncio.sleep(began + at - loop.time())
        reply = await host.call(dataclasses.replace(frame, id=f"c{number}"))
        assert reply.error is None, reply.error
        took[number] = loop.time() - began - at

    await asyncio.gather(*(one(number, at) for number, at in enumerate(times)))
    await host.close()
    return took


def frame(route: str, body: dict[str, Any], ahead_s: float, tokens: tuple[int, int]) -> CallFrame:
    payload = encode_request(HttpRequest("POST", route, {}, orjson.dumps(body)))
    return CallFrame(
        "c", "r", "leaf", f"POST {route}", payload, site="it", remaining_s=1000.0, due_s=SLO_S, ahead_s=ahead_s, after_s=0.0,
        prompt_tokens=tokens[0], output_tokens=tokens[1],
    )  # fmt: skip


def llm(clock: VirtualLoop, policy: str) -> ComponentHost:
    order = policy_by_name(policy)
    engine = EmulatedLlm(LLM, Wish(n_in=PROMPT, n_out=OUTPUT), name="it", profile="it", slots=8, clock=clock.time)
    return ContinuousHost(
        engine, CallQueue(order, max_batch=1), order, replica="r", slots=8, cost=LLM, bounded=SETUPS[policy].bounded,
        clock=clock.time,
    )  # fmt: skip


def embedder(clock: VirtualLoop, policy: str) -> ComponentHost:
    order, cost = policy_by_name(policy), LearnedBatchCost(BATCHES)
    rows = [{"batch": size, "seconds": seconds} for size, seconds in zip(BATCHES.sizes, BATCHES.seconds, strict=True)]
    engine = EmulatedEmbedder(BatchTimes(rows), name="it", profile="it", dim=4, wish=Wish(), clock=clock.time)
    queue = CallQueue(order, max_batch=4, cost=cost if order.heeds_deadlines else None)
    return BatchHost(engine, queue, order, cost, replica="r", max_batch=4, clock=clock.time)


CHAT, EMBED = {"messages": [{"role": "user", "content": "q"}]}, {"input": "q", "model": "it"}
CALLS = {
    llm: frame("/v1/chat/completions", CHAT, LLM.alone_s(PROMPT, OUTPUT), (PROMPT, OUTPUT)),
    embedder: frame("/v1/embeddings", EMBED, BATCHES(1), (0, 0)),
}
PLANS: dict[Any, tuple[BatchCost | TokenCost, ComponentPlan]] = {
    llm: (LLM, ComponentPlan(1, max_sequences=8, enter_s=LLM.call_s)),
    embedder: (BATCHES, ComponentPlan(1, max_batch=4)),
}


@pytest.mark.parametrize("policy", ["fifo", "edf", "paper", "least_slack"])
@pytest.mark.parametrize(
    ("made", "rate"), [(llm, 1.0), (llm, 2.0), (llm, 3.0), (embedder, 4.0), (embedder, 7.0), (embedder, 9.0)]
)
def test_a_host_serves_as_the_simulator_says(
    made: Callable[[VirtualLoop, str], ComponentHost], rate: float, policy: str
) -> None:
    times = list(itertools.islice(poisson(rate, 5), 120))
    took = run_virtually(lambda loop: served(loop, made(loop, policy), CALLS[made], times))
    cost, plan = PLANS[made]
    # the engine's clock is rounded, and what it learns of itself is within a hundredth of the truth
    assert took == pytest.approx(simulated(cost, plan, policy, times), abs=1e-3)
