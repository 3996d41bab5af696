"""One experiment twice: in the simulator, and through the real stack with emulated engines. What both say, and where they differ.

    python tests/benchmarks/bench_simulated_real.py -o docs/benchmarks/simulated_real.json

CRAG's shape (``chains/crag.py``), one plan, one cost of each engine, ``patchwork bench``'s own load generator. Both sides get the same
arrivals, and each request the same branch and the same lengths: an emulated engine draws them from the prompt, so they are known
beforehand. Each policy is deployed once and meets everything in one run: requests one by one, then the loads, with pauses. Neither side
knows anything of requests when it begins.

What the stack adds is an argument of the simulation, measured on the requests that came one by one (medians): of each component, its
seconds over those of its engine; of a request, what it spent in no component. Nothing is fitted to the loads.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import yaml
from bench_plan_real import CHAINS, SHAPES, profiled

from kit.deployed import Home, a_home, deployed
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
from patchwork_serving.bench.apis import api
from patchwork_serving.bench.arrivals import schedule
from patchwork_serving.bench.observe import Observation
from patchwork_serving.bench.open_loop import OpenLoop
from patchwork_serving.components.emulated_factory import _wish
from patchwork_serving.components.emulated_replies import Wish, answer_of
from patchwork_serving.config import load_config

CHAIN = CHAINS / "crag.py"
GLUE = "(chain)"
#: Replicas, and calls in a batch or inside an engine at once.
FIXED = {
    "retriever-search": (1, 4), "llm-grader": (1, 8), "llm-rewriter": (1, 8), "retriever-web": (1, 1), "llm-generator": (2, 4),
}  # fmt: skip
#: Policies as both sides are told; ``least_slack`` is what a deployment does by itself.
POLICIES: dict[str, dict[str, Any]] = {"fifo": {"policy": "fifo", "admission": "off"}, "least_slack": {}}
SLO_TIMES = 2.0
#: Tokens of answers: drawn between these.
ANSWERS = [32, 96]
#: Of the requests that come one by one, these find things cold and are not measured.
COLD = 4
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
        """What request ``number`` will do: the chain's own prompts, and what the emulated engines make of them."""

        def ask(model: str, prompt: str) -> tuple[str, int]:
            answer = answer_of({"messages": [{"role": "user", "content": prompt}]}, self.made.wishes[model])
            return answer.text, answer.output_tokens

        question = self.made.question(number)
        found = "\n".join(f"{passage} ({question})" for passage in PASSAGES)
        grade, graded = ask("grader", f"Does this answer {question}?\n{found}")
        steps = [(GLUE, 0), ("retriever-search", 0), ("llm-grader", graded)]
        if grade != "yes":
            asked, tokens = ask("rewriter", f"Ask better: {question}")
            found += "\n".join(f"{passage} ({asked})" for passage in WEB)
            steps += [("llm-rewriter", tokens), ("retriever-web", 0)]
        steps.append(("llm-generator", ask("generator", f"{found}\n\n{question}")[1]))
        return tuple(Step(self.sites[name], 0, tokens) for name, tokens in steps)

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


# -- real --------------------------------------------------------------------------------------------------------------


@dataclass
class Busy:
    """How much of the machine was in use, each second."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, start: float, end: float) -> float | None:
        found = [share for at, share in self.samples if start <= at - began < end]
        return statistics.fmean(found) if found else None


@contextmanager
def watched() -> Iterator[Busy]:
    busy, over = Busy(), threading.Event()
    psutil.cpu_percent()

    def watch() -> None:
        while not over.wait(1.0):
            busy.samples.append((time.monotonic(), psutil.cpu_percent() / 100))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield busy
    finally:
        over.set()
        thread.join()


def really(home: Home, made: Experiment, policy: str) -> tuple[list[Seen], dict[str, float | None]]:
    """What the clients saw, and how busy the machine was in each window."""
    config, plan = home.path / f"{policy}.yaml", home.path / f"{policy}.plan.json"
    config.write_text(yaml.safe_dump({**made.config, "scheduler": POLICIES[policy]}), encoding="utf-8")
    made.plan.save(plan)
    given = ["--config", str(config), "--plan", str(plan), "--slo", f"{made.slo.deadline_s:.4f}s"]
    with deployed(home, str(CHAIN), *given) as url, watched() as busy:
        asked = api("langserve", url, stream=False, headers={})
        bodies = [asked.encoded(made.question(number)) for number in range(len(made.times))]
        loop = OpenLoop(asked, bodies, made.times, timeout_s=110.0, connections=1024, told=lambda sent, ended: None)
        began = time.monotonic()
        observed = asyncio.run(loop.run())
    shares = {f"{load:g}": busy.between(began, *window) for load, window in made.windows.items()}
    return [_seen(one) for one in observed], shares


def _seen(one: Observation) -> Seen:
    answer = one.answer
    if answer is None or not answer.is_whole:
        return Seen(one.intended, refused=answer is not None and answer.status == 429)
    stages = {name: seconds for name, seconds in answer.stages.items() if name not in ("total", "queue")}
    stages[GLUE] = one.latency_s - sum(stages.values())
    return Seen(one.intended, one.latency_s, stages=stages)


def check_draws(made: Experiment, side: Simulation, seen: Sequence[Seen]) -> None:
    """Exits when a request went another way than the one that is simulated."""
    for number, one in enumerate(seen):
        if one.latency_s is not None:
            expected = {step.site.component for step in side.way(number)}
            if one.stages.keys() != expected:
                raise SystemExit(
                    f"request {number} visited {sorted(one.stages)}, and is simulated as {sorted(expected)}"
                )


def measured_overhead(made: Experiment, side: Simulation, seen: Sequence[Seen]) -> tuple[dict[str, float], float]:
    """Of the requests that came one by one: seconds over the engine's by component, and outside all components."""
    over: dict[str, list[float]] = {}
    for number, one in enumerate(seen[: made.alone]):
        if number >= COLD and one.latency_s is not None:
            for step in side.way(number):
                name = step.site.component
                over.setdefault(name, []).append(one.stages[name] - (0.0 if name == GLUE else side.engine_s(step)))
    medians = {name: statistics.median(values) for name, values in over.items()}
    return medians, medians.pop(GLUE)


# -- compared ----------------------------------------------------------------------------------------------------------


def summary(made: Experiment, seen: Sequence[Seen], window: tuple[float, float]) -> dict[str, Any]:
    counted = [one for one in seen if window[0] <= one.at < window[1]]
    whole = [one for one in counted if one.latency_s is not None]
    taken = [one.latency_s for one in whole if one.latency_s is not None]
    attained = sum(seconds <= made.slo.deadline_s for seconds in taken)
    refused = sum(one.refused for one in counted)
    stages: dict[str, list[float]] = {}
    for one in whole:
        for name, seconds in one.stages.items():
            stages.setdefault(name, []).append(seconds)
    return {
        "offered": len(counted), "attained": attained, "missed": len(taken) - attained, "refused": refused,
        "failed": len(counted) - len(taken) - refused, "attained_share": attained / max(len(counted), 1),
        "latency_s": {f"p{q}": float(np.percentile(taken, q)) if taken else None for q in (50, 95)},
        "mean_s_by_stage": {name: statistics.fmean(values) for name, values in sorted(stages.items())},
    }  # fmt: skip


def difference(simulated: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    ratios = {
        q: simulated["latency_s"][q] / real["latency_s"][q] - 1.0
        for q in ("p50", "p95")
        if simulated["latency_s"][q] and real["latency_s"][q]
    }
    stages, others = simulated["mean_s_by_stage"], real["mean_s_by_stage"]
    return {
        "attained_points": 100.0 * (simulated["attained_share"] - real["attained_share"]),
        "latency": ratios,
        # where the seconds differ: simulated less real, mean of a request that goes there
        "seconds_by_stage": {name: stages[name] - others[name] for name in stages.keys() & others.keys()},
    }


def compare(home: Home, made: Experiment, policy: str) -> dict[str, Any]:
    plain = Simulation(made, {}, 0.0)
    real, busy = really(home, made, policy)
    check_draws(made, plain, real)
    hops, glue_s = measured_overhead(made, plain, real)
    simulated = Simulation(made, hops, glue_s).run(policy)
    rows = {}
    for load, window in made.windows.items():
        mine, theirs = summary(made, simulated, window), summary(made, real, window)
        rows[f"{load:g}"] = {
            "simulated": mine, "real": theirs, "difference": difference(mine, theirs), "machine_busy": busy[f"{load:g}"],
        }  # fmt: skip
    return {"overhead_s": {**hops, GLUE: glue_s}, "loads": rows}


def show(policy: str, found: Mapping[str, Any]) -> None:
    print(f"{policy}: the stack adds", {name: round(1000 * s, 1) for name, s in found["overhead_s"].items()}, "ms")
    for load, row in found["loads"].items():
        mine, theirs, apart = row["simulated"], row["real"], row["difference"]
        latencies = "  ".join(
            f"{q} {mine['latency_s'][q]:.2f}/{theirs['latency_s'][q]:.2f} s ({100 * ratio:+.0f} %)"
            for q, ratio in apart["latency"].items()
        )
        print(
            f"  load {load}: attained {100 * mine['attained_share']:.1f}/{100 * theirs['attained_share']:.1f} %"
            f" ({apart['attained_points']:+.1f})  refused {mine['refused']}/{theirs['refused']} of {theirs['offered']}"
            f"  {latencies}  machine {100 * (row['machine_busy'] or 0.0):.0f} % busy"
        )
        print(
            "    simulated less real, ms:", {n: round(1000 * s) for n, s in sorted(apart["seconds_by_stage"].items())}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--slower", type=float, default=10.0, help="times slower than the engines that were measured")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 1.0, 1.5], help="of capacity")
    parser.add_argument("--window", type=float, default=60.0, help="seconds of each load that count")
    parser.add_argument("--lead", type=float, default=12.0, help="seconds of each load before that")
    parser.add_argument("--alone", type=int, default=13, help="requests that come one by one, first")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--dry", action="store_true", help="only the simulation, without what a stack adds")
    options = parser.parse_args()
    if options.alone <= COLD:
        parser.error(f"--alone must be more than {COLD}: the first {COLD} are not measured")
    with a_home() as home:
        made = experiment(options, home.path)
        print(
            f"capacity {made.capacity:.2f}/s, SLO {made.slo.deadline_s:.2f} s, {len(made.times)} requests in {made.end_s:.0f} s"
        )
        if options.dry:
            dry(made, options.policies)
            return
        found = {}
        for policy in options.policies:
            found[policy] = compare(home, made, policy)
            show(policy, found[policy])
    if options.output is not None:
        write(options.output, made, options, found)


def dry(made: Experiment, policies: Sequence[str]) -> None:
    for policy in policies:
        seen = Simulation(made, {}, 0.0).run(policy)
        for load, window in made.windows.items():
            print(policy, load, json.dumps(summary(made, seen, window)))


def write(path: Path, made: Experiment, options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    document = {
        "environment": {
            "emulated": f"every component, in the time of profiles of one H100, {options.slower:g} times slower",
            "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat(),
        },
        "capacity_per_s": made.capacity, "slo_s": made.slo.deadline_s, "window_s": options.window, "lead_s": options.lead,
        "replicas_and_batches": FIXED, "policies": found,
    }  # fmt: skip
    path.write_text(json.dumps(rounded(document), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {key: rounded(one) for key, one in value.items()}
        case list() | tuple():
            return [rounded(one) for one in value]
        case _:
            return value


if __name__ == "__main__":
    main()
