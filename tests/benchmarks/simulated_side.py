"""The simulated sides of ``bench_simulated_real``: what is run, the simulator, and the stack's decisions on a clock that jumps."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from bench_plan_real import CHAINS, SHAPES, profiled

from kit.virtual_stack import Part, VirtualStack
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal, Plan
from patchwork_scheduler.resources import Resources
from patchwork_scheduler.simulate import SETUPS, ComponentPlan, closed_loop, simulate
from patchwork_scheduler.simulated_hosts import Cost, Request
from patchwork_scheduler.workload import Path as Way
from patchwork_scheduler.workload import Site, Step, Workload
from patchwork_scheduler.workload import Way as Branch
from patchwork_serving.bench.arrivals import schedule
from patchwork_serving.components.emulated_factory import _wish
from patchwork_serving.components.emulated_replies import Wish, answer_of
from patchwork_serving.config import load_config

GLUE = "(chain)"
#: Replicas, and calls in a batch or inside an engine at once.
FIXED = {
    "retriever-search": (1, 4), "llm-grader": (1, 8), "llm-rewriter": (1, 8), "retriever-web": (1, 1), "llm-generator": (2, 4),
}  # fmt: skip
SLO_TIMES = 2.0
#: Tokens of answers: drawn between these.
ANSWERS = [32, 96]
PASSAGES = ("Red apples grow on trees.", "Green pears do too.")
WEB = ("Somebody wrote about it.",)


# -- what is run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """All that both sides are given."""

    config: dict[str, Any]
    plan: Plan
    costs: Mapping[str, Cost]
    wishes: Mapping[str, Wish]
    slo: SloClass
    capacity: float
    times: list[float]
    windows: dict[float, tuple[float, float]]  #: load -> seconds in which arrivals count
    alone: int  #: the first so many come one by one
    end_s: float

    def question(self, number: int) -> str:
        return f"question {number} of this experiment"


def configured(slower: float) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CHAINS / "crag.yaml").read_text(encoding="utf-8"))
    for model in document["models"].values():
        model["engine_args"]["slower"] = slower
    document["models"]["generator"]["engine_args"]["n_out"] = ANSWERS
    for component in document["components"].values():
        component["emulate"]["slower"] = slower
    return document


def experiment(options: argparse.Namespace, folder: Path) -> Experiment:
    document = configured(options.slower)
    file = folder / "patchwork.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    config = load_config(file)
    profile = profiled(SHAPES["crag"], config)
    fixed = {name: Fixed(batch=batch, min_replicas=count, max_replicas=count) for name, (count, batch) in FIXED.items()}
    plan = make_plan(profile, Resources.machine(cpus=8, gpus=8), Goal(fixed=fixed), marginals=False)
    costs: dict[str, Cost] = {}
    for name, model in config.models.items():
        costs[f"llm-{name}"] = TokenCost.fit(model.engine_args["rows"]).scaled(options.slower)
    for name, component in config.components.items():
        assert component.emulate is not None
        assert component.emulate.rows is not None
        costs[name] = BatchCost.fit(component.emulate.rows).scaled(component.emulate.slower)
    wishes = {name: _wish(model.engine_args, name) for name, model in config.models.items()}
    made = Experiment(document, plan, costs, wishes, SloClass("default", 1.0), 1.0, [], {}, options.alone, 0.0)
    side = Simulation(made, {}, 0.0)
    alone = side.unloaded_s()
    closed = closed_loop(
        side.workload, side.plan, side.costs, in_flight=40, span_s=400.0, setup=dataclasses.replace(SETUPS["fifo"])
    )
    slo = SloClass("default", SLO_TIMES * alone)
    return timetable(
        dataclasses.replace(made, slo=slo, capacity=closed.offered / closed.end, windows={}), alone, options
    )


def timetable(made: Experiment, alone_s: float, options: argparse.Namespace) -> Experiment:
    """One by one, far apart; then each load with a lead that is not counted, and a pause in which what waits is served."""
    times = [number * 1.7 * alone_s for number in range(options.alone)]
    now = options.alone * 1.7 * alone_s
    windows: dict[float, tuple[float, float]] = {}
    for number, load in enumerate(options.loads):
        span = options.lead + options.window
        times += [
            now + at for at in schedule("poisson", load * made.capacity, span, None, seed=11 + number, limit=100_000)
        ]
        windows[load] = (now + options.lead, now + span)
        now += span + (2.0 + max(load - 0.7, 0.0) * 6.0) * alone_s
    return dataclasses.replace(made, times=times, windows=windows, end_s=now)


# -- simulated ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """One request, on either side."""

    at: float
    latency_s: float | None = None  #: None: refused, or failed
    refused: bool = False
    stages: dict[str, float] = field(default_factory=dict)  #: seconds by component, and GLUE


class Simulation:
    """The experiment in the simulator, with what the stack adds."""

    def __init__(self, made: Experiment, hops: Mapping[str, float], glue_s: float) -> None:
        self.made = made
        self.glue_s = max(glue_s, 1e-6)
        replicas = {one.id: (one.replicas, one.placements[0].batch) for one in made.plan.components}
        self.costs: dict[str, Cost] = {**made.costs, GLUE: BatchCost.constant(self.glue_s)}
        self.plan = {GLUE: ComponentPlan(unlimited=True)}
        for name, (count, batch) in replicas.items():
            cost = made.costs[name]
            enter_s = (
                cost.call_s if isinstance(cost, TokenCost) else 0.0
            )  # an emulated engine waits it before its steps
            self.plan[name] = ComponentPlan(
                count, max_batch=batch, max_sequences=batch, hop_s=max(hops.get(name, 0.0), 0.0), enter_s=enter_s
            )
        self.sites = self._sites()
        self.workload = Workload(GLUE, self.sites.values())

    def _sites(self) -> dict[str, Site]:
        wishes = self.made.wishes

        def site(name: str, ways: Sequence[tuple[str, float]], tokens: tuple[int, int] = (0, 0)) -> Site:
            return Site(
                name,
                name,
                prompt_tokens=tokens[0],
                output_tokens=tokens[1],
                ways=tuple(Branch(*way) for way in ways),
            )

        def tokens(name: str) -> tuple[int, int]:
            wish = wishes[name]
            out = wish.n_out if isinstance(wish.n_out, int) else round(statistics.fmean(ANSWERS))
            return wish.n_in or 0, out

        yes = wishes["grader"].answers["yes"]
        found = [
            site(GLUE, [("retriever-search", 1.0)]),
            site("retriever-search", [("llm-grader", 1.0)]),
            site("llm-grader", [("llm-generator", yes), ("llm-rewriter", 1.0 - yes)], tokens("grader")),
            site("llm-rewriter", [("retriever-web", 1.0)], tokens("rewriter")),
            site("retriever-web", [("llm-generator", 1.0)]),
            site("llm-generator", [("__end__", 1.0)], tokens("generator")),
        ]
        return {one.id: one for one in found}

    def way(self, number: int) -> Way:
        """What request ``number`` will do."""
        return tuple(Step(self.sites[name], 0, tokens) for name, _, tokens in self.stops(number))

    def stops(self, number: int) -> list[tuple[str, str, int]]:
        """Component, prompt and tokens of each call: the chain's own prompts, and what the emulated engines make of them."""

        def ask(model: str, prompt: str) -> tuple[str, int]:
            answer = answer_of({"messages": [{"role": "user", "content": prompt}]}, self.made.wishes[model])
            return answer.text, answer.output_tokens

        question = self.made.question(number)
        found = "\n".join(f"{passage} ({question})" for passage in PASSAGES)
        grading = f"Does this answer {question}?\n{found}"
        grade, graded = ask("grader", grading)
        stops = [(GLUE, "", 0), ("retriever-search", question, 0), ("llm-grader", grading, graded)]
        if grade != "yes":
            asking = f"Ask better: {question}"
            asked, tokens = ask("rewriter", asking)
            found += "\n".join(f"{passage} ({asked})" for passage in WEB)
            stops += [("llm-rewriter", asking, tokens), ("retriever-web", asked, 0)]
        prompt = f"{found}\n\n{question}"
        return [*stops, ("llm-generator", prompt, ask("generator", prompt)[1])]

    def engine_s(self, step: Step) -> float:
        """Seconds of a call in an engine that has nothing else to do, the hand-over included."""
        cost = self.made.costs[step.site.component]
        if isinstance(cost, BatchCost):
            return cost(1)
        return cost.alone_s(step.site.prompt_tokens, step.output_tokens)

    def unloaded_s(self) -> float:
        return statistics.fmean(
            sum(self.engine_s(step) for step in self.way(number) if step.site.id != GLUE) for number in range(200)
        )

    def run(self, policy: str) -> list[Seen]:
        numbers = iter(range(len(self.made.times)))
        seen: list[Seen] = []

        def told(request: Request, ended: float | None) -> None:
            one = Seen(request.arrived, refused=ended is None)
            if ended is not None:
                one.latency_s = ended - request.arrived
                ends = [visit.started for visit in request.visits[1:]] + [ended]
                for visit, end in zip(request.visits, ends, strict=True):
                    one.stages[visit.component] = one.stages.get(visit.component, 0.0) + end - visit.started
            seen.append(one)

        simulate(
            self.workload, self.plan, self.costs, self.made.times, self.made.slo, setup=SETUPS[policy],
            paths=lambda rng: self.way(next(numbers)), seen=told, samples=0,
        )  # fmt: skip
        return sorted(seen, key=lambda one: one.at)

    def run_virtually(self, policy: str) -> list[Seen]:
        """The stack's own decisions on a clock that jumps: what differs from :meth:`run` is decided otherwise, not the machine's doing."""
        made = self.made
        parts = {
            name: Part(
                made.costs[name],
                count,
                batch,
                made.wishes.get(name.removeprefix("llm-"), Wish()),
                self.plan[name].hop_s,
            )
            for name, (count, batch) in FIXED.items()
        }

        async def main(loop: VirtualLoop) -> list[Seen]:
            stack = VirtualStack(
                loop, parts, made.slo, policy=policy, admission="off" if policy == "fifo" else "refuse"
            )
            await stack.start()

            async def one(number: int, at: float) -> Seen:
                await asyncio.sleep(at - loop.time())
                arrived, seen = loop.time(), Seen(at)
                request = stack.enter(f"r{number}", arrived)
                seen.refused = request is None
                for component, prompt, _ in self.stops(number) if request is not None else ():
                    assert request is not None
                    began = loop.time()
                    if component == GLUE:
                        await asyncio.sleep(self.glue_s)
                    else:
                        await stack.call(request, component, prompt)
                    seen.stages[component] = loop.time() - began
                if request is not None:
                    stack.leave(request)
                    seen.latency_s = loop.time() - arrived
                return seen

            found = await asyncio.gather(*(one(number, at) for number, at in enumerate(made.times)))
            await stack.close()
            return list(found)

        return run_virtually(main)
