"""What the stack decides, on a clock that jumps, against the simulator: the same requests, and none of the machine's noise between."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from kit.virtual_stack import Part, VirtualStack
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.simulate import SETUPS, ComponentPlan, closed_loop, simulate, unloaded_s
from patchwork_scheduler.workload import Path, Site, Step, Way, Workload, poisson
from patchwork_serving.components.emulated_replies import Wish, answer_of

LLM = TokenCost(base_s=0.035, prefill_s=1.1e-4, sequence_s=4e-5, context_s=3.6e-7, call_s=0.076)
YES = 0.7
PARTS = {
    "search": Part(BatchCost((1.0, 8.0), (0.14, 0.98)), 1, 4),
    "grader": Part(LLM, 1, 8, Wish(n_in=2950, n_out=4, answers={"yes": YES, "no": 1 - YES})),
    "web": Part(BatchCost((1.0, 8.0), (0.2, 1.6)), 1, 1),
    "generator": Part(LLM, 2, 4, Wish(n_in=314, n_out=(32, 96))),
}
CHAIN = Workload(
    "search",
    [
        Site("search", "search", ways=(Way("grader", 1.0),)),
        Site(
            "grader", "grader", prompt_tokens=2950, output_tokens=4, ways=(Way("generator", YES), Way("web", 1 - YES))
        ),
        Site("web", "web", ways=(Way("generator", 1.0),)),
        Site("generator", "generator", prompt_tokens=314, output_tokens=64),
    ],
)
PLAN = {
    name: ComponentPlan(
        part.replicas, max_batch=part.batch, max_sequences=part.batch,
        enter_s=part.cost.call_s if isinstance(part.cost, TokenCost) else 0.0,
    )
    for name, part in PARTS.items()
}  # fmt: skip
COSTS = {name: part.cost for name, part in PARTS.items()}
REQUESTS, LEAD = 260, 60
SEEDS = (7, 8, 9, 10)
#: One by one, before the load: neither side knows anything when it begins.
ALONE, APART_S = 10, 8.0


def prompt(number: int, component: str) -> str:
    return f"question {number} for {component}"


def drawn(number: int) -> Path:
    """What the emulated engines will answer to the prompts of this request."""

    def answer(component: str) -> tuple[str, int]:
        body = {"messages": [{"role": "user", "content": prompt(number, component)}]}
        found = answer_of(body, PARTS[component].wish)
        return found.text, found.output_tokens

    grade, graded = answer("grader")
    web = [("web", 0)] if grade == "no" else []
    stops = [("search", 0), ("grader", graded), *web, ("generator", answer("generator")[1])]
    return tuple(Step(CHAIN.sites[name], 0, tokens) for name, tokens in stops)


PATHS = [drawn(number) for number in range(REQUESTS)]
Taken = list[float | None]  #: seconds of each request, None: refused


def served(policy: str, times: list[float], slo: SloClass) -> Taken:
    async def main(loop: VirtualLoop) -> Taken:
        stack = VirtualStack(loop, PARTS, slo, policy=policy, admission="off" if policy == "fifo" else "refuse")
        await stack.start()
        began, taken = loop.time(), [None] * len(times)

        async def one(number: int, at: float) -> float | None:
            await asyncio.sleep(began + at - loop.time())
            arrived = loop.time()
            request = stack.enter(f"r{number}", arrived)
            if request is None:
                return None
            for step in PATHS[number]:
                await stack.call(request, step.site.component, prompt(number, step.site.component))
            stack.leave(request)
            return loop.time() - arrived

        taken = await asyncio.gather(*(one(number, at) for number, at in enumerate(times)))
        await stack.close()
        return list(taken)

    return run_virtually(main)


def simulated(policy: str, times: list[float], slo: SloClass) -> Taken:
    numbers, taken = itertools.count(), dict[float, float | None]()
    simulate(
        CHAIN, PLAN, COSTS, times, slo, setup=SETUPS[policy], paths=lambda rng: PATHS[next(numbers)], samples=0,
        seen=lambda request, ended: taken.__setitem__(request.arrived, None if ended is None else ended - request.arrived),
    )  # fmt: skip
    return [taken[at] for at in times]


@pytest.mark.parametrize("policy", ["fifo", "least_slack"])
@pytest.mark.parametrize("load", [0.6, 1.0, 1.5])
def test_the_stack_decides_as_the_simulator_does(policy: str, load: float) -> None:
    closed = closed_loop(CHAIN, PLAN, COSTS, in_flight=40, span_s=200.0, setup=SETUPS["fifo"])
    # the less is promised, the more requests end about at their deadline, where a per cent of their time decides
    slo = SloClass("s", 2.0 * unloaded_s(CHAIN, PLAN, COSTS), target_share=0.9)
    real, model = list[Taken](), list[Taken]()
    for seed in SEEDS:  # a request more or less let in changes all that follow
        arrivals = itertools.islice(poisson(load * closed.offered / closed.end, seed=seed), REQUESTS - ALONE)
        times = [APART_S * n for n in range(ALONE)] + [APART_S * ALONE + at for at in arrivals]
        real.append(served(policy, times, slo)[LEAD:])
        model.append(simulated(policy, times, slo)[LEAD:])

    def attained(runs: list[Taken]) -> float:
        return float(np.mean([one is not None and one <= slo.deadline_s for taken in runs for one in taken]))

    assert attained(model) == pytest.approx(attained(real), abs=0.02)
    for share in (50, 95):
        mine, theirs = (
            float(np.percentile([s for taken in runs for s in taken if s is not None], share)) for runs in (model, real)
        )
        assert mine == pytest.approx(theirs, rel=0.05)
