"""Planned against uniform allocation, through the real stack with emulated engines; and what was predicted against what is measured.

For each of four shapes of chains (``chains/``), on the same resources: every component the same number of replicas, then what the planner
says. Each is deployed and loaded as ``patchwork bench`` does, open loop (``tests/kit/sustained.py`` says how, and what counts).

    python tests/benchmarks/bench_plan_real.py [crag ircot hipporag memorag] [-o docs/benchmarks/plan_real.json]

The profile of a shape is measured on its own engines, on an event loop whose clock jumps (``kit.virtual_time``). What is measured on the
real stack therefore differs from it by what the stack adds, and by what the planner does not know. Engines are slowed until the machine's
cores have time left at the largest rate; where they had not, nothing is claimed of that allocation: the machine was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import results
import yaml

from kit.deployed import Home, a_home
from kit.sustained import ABOVE, Loads, Sustains, sustains
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal, Plan
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving.components import measuring
from patchwork_serving.components.emulated_factory import build_emulated, in_its_time
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.config import Config, load_config
from patchwork_serving.profiling import Search, Sweep
from patchwork_serving.release import ComponentSpec
from patchwork_serving.sample_payloads import limited, made_up

CHAINS = Path(__file__).parent / "chains"
MAX_BATCH = 32
#: Requests count as in time up to so many times the path with full batches: the other half is for waiting.
SLO_FACTOR = 2.0


@dataclass(frozen=True)
class Shape:
    """A chain, what it may use, how long a request may take without waiting, how often it calls each component, and its overload."""

    name: str
    cpus: int
    gpus: int
    slo_s: float
    visits: dict[str, float]
    above: float = ABOVE


SHAPES = {
    "crag": Shape(
        "crag", 4, 9, 7.0,
        {"retriever-search": 1, "llm-grader": 1, "llm-rewriter": 0.3, "retriever-web": 0.3, "llm-generator": 1},
    ),
    "ircot": Shape("ircot", 4, 6, 4.2, {"retriever-search": 5, "llm-reasoner": 5, "llm-answerer": 1}, above=1.1),
    "hipporag": Shape(
        "hipporag", 4, 6, 5.0, {"llm-extractor": 1, "embedder-entities": 1, "retriever-pagerank": 1, "llm-generator": 1}
    ),
    "memorag": Shape("memorag", 2, 6, 7.0, {"llm-memory": 1, "retriever-search": 1, "llm-generator": 1}),
}  # fmt: skip


# -- profile and plans


def specs(config: Config) -> list[ComponentSpec]:
    """The components as a deployment would make them, without importing the chain."""
    models = [
        ComponentSpec(f"{args['kind']}-{name}", args["kind"], "protocol", "emulated", name, args)
        for name, args in ((n, m.engine_args) for n, m in config.models.items())
    ]
    timed = [
        ComponentSpec(name, "retriever", "own", "own", emulate=c.emulate.model_dump())
        for name, c in config.components.items()
        if c.emulate is not None
    ]
    return models + timed


def profiled(shape: Shape, config: Config) -> Profile:
    found = {spec.id: run_virtually(lambda loop, s=spec: _measured(s, loop)) for spec in specs(config)}
    assert found.keys() == shape.visits.keys()
    return Profile(shape.name, tuple(dataclasses.replace(found[name], visits=n) for name, n in shape.visits.items()))


class _Instant:
    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {}

    async def run(self, batch: Sequence[Any]) -> list[bytes | Exception]:
        return [b""] * len(batch)


async def _measured(spec: ComponentSpec, loop: VirtualLoop) -> ComponentProfile:
    engine: Any = in_its_time(_Instant(), spec) if spec.emulate else build_emulated(spec, spec.model or "")
    _on(engine, loop)
    await engine.start()

    async def measure(frames: Sequence[bytes], at_once: int) -> measuring.Run:
        return await measuring.measure(engine, frames, at_once, loop.time)

    call = made_up(dataclasses.replace(spec, way="engine"), ()) if spec.way == "own" else made_up(spec, ())
    call = call or made_up(dataclasses.replace(spec, way="engine", kind="embedder"), ())
    assert call is not None
    if spec.kind == "llm":  # a made-up call asks for fewer tokens than the chain's
        n_out = spec.engine_args["n_out"]  # a number, or the least and the most
        call = limited(call, n_out if isinstance(n_out, int) else round(sum(n_out) / 2))
    search = Search(max_batch=MAX_BATCH, least_gain=0.0, budget_s=1e9, enough_s=60.0)
    measured = await Sweep(spec, [call], measure, search, clock=loop.time).run(0.0)
    return ComponentProfile(spec.id, 1.0, (dataclasses.replace(measured, rows=()),), spec.kind)


def _on(engine: Any, loop: VirtualLoop) -> None:
    """Give an engine the loop's clock."""
    if isinstance(engine, EmulatedLlm):
        engine._clock = loop.time
    else:
        engine._pace._clock = loop.time


def plans(shape: Shape, profile: Profile) -> dict[str, Plan]:
    resources = Resources.machine(cpus=shape.cpus, gpus=shape.gpus)
    return {
        "uniform": make_plan(profile, resources, Goal(slo_s=shape.slo_s, fixed=_even(shape, profile)), marginals=False),
        "planned": make_plan(profile, resources, Goal(slo_s=shape.slo_s), marginals=False),
    }


def _even(shape: Shape, profile: Profile) -> dict[str, Fixed]:
    """Equal shares of the GPUs for what runs on GPUs, and of the cores for what runs on cores."""
    by_hardware: dict[str, list[str]] = {}
    for component in profile.components:
        by_hardware.setdefault(component.measured[0].hardware, []).append(component.id)
    totals = {"cpu": shape.cpus, "gpu": shape.gpus}
    return {name: Fixed.replicas(totals[h] // len(names)) for h, names in by_hardware.items() for name in names}


# -- the real stack


def deploy(home: Home, shape: Shape, plan: Plan, slo_s: float) -> str:
    """The URL. Nobody is refused: what is asked is how much is served, not what the door thinks of it."""
    file, config = home.path / f"{shape.name}.plan.json", home.path / f"{shape.name}.yaml"
    plan.save(file)
    settings = yaml.safe_load((CHAINS / config.name).read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump({**settings, "scheduler": {"admission": "off"}}), encoding="utf-8")
    result = home.run(
        "deploy", str(CHAINS / f"{shape.name}.py"), "--config", str(config), "--plan", str(file),
        "--slo", f"{slo_s:.2f}s", "--port", "0", "--detach", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ready = json.loads(result.stdout.strip().splitlines()[-1])
    assert ready["emulated"]
    return str(ready["url"])


def measure(home: Home, shape: Shape, plan: Plan, loads: Loads) -> Sustains:
    slo_s = SLO_FACTOR * plan.full_batch_path_s
    url = deploy(home, shape, plan, slo_s)

    # the same for every allocation, because emulated engines choose their answers by the question
    def questions(load: int, count: int) -> list[str]:
        return [f"question {number} of load {load}" for number in range(count)]

    found = sustains(url, plan.rate_per_s, slo_s, loads, questions, home.ray_processes)
    stopped = home.run("down", shape.name, timeout_s=120.0)
    assert stopped.returncode == 0, stopped.stderr
    return found


def compare(home: Home, shape: Shape, loads: Loads) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    loads = dataclasses.replace(loads, above=shape.above)
    rows: dict[str, Any] = {}
    for how, plan in plans(shape, profiled(shape, load_config(CHAINS / f"{shape.name}.yaml"))).items():
        found = measure(home, shape, plan, loads)
        busy = found.machine_was_the_limit(cores)
        rows[how] = {
            **found.to_json(),
            "replicas": {c.id: c.replicas for c in plan.components},
            "bottleneck": plan.bottleneck,
            "machine_was_the_limit": busy,
            # no claim where the machine was measured instead of the allocation
            "within_15_percent": None if busy else found.is_within,
        }
        verdict = (
            f"NO CLAIM: {found.cores_busy:.2f} of {cores} cores were busy"
            if busy
            else f"within 15 %: {found.is_within}"
        )
        print(
            f"{shape.name:9} {how:8} predicted {found.predicted_per_s:6.2f}/s  measured {found.measured_per_s:6.2f}/s"
            f"  at {found.below.report.offered_per_s:.2f}/s {found.below.report.attained_share:.0%} in time"
            f"  {found.cores_busy:.2f} cores busy  {verdict}",
            flush=True,
        )
    can_claim = not any(row["machine_was_the_limit"] or row["measured_is_at_least"] for row in rows.values())
    ratio = rows["planned"]["measured_per_s"] / rows["uniform"]["measured_per_s"]
    predicted = rows["planned"]["predicted_per_s"] / rows["uniform"]["predicted_per_s"]
    told = f"{ratio:.2f}" if can_claim else f"no claim (it would be {ratio:.2f})"
    print(f"{shape.name:9} planned over uniform: measured {told}, predicted {predicted:.2f}", flush=True)
    return {
        **rows,
        "ratio_measured": ratio if can_claim else None,
        "ratio_predicted": predicted,
        "cpus": shape.cpus,
        "gpus": shape.gpus,
        "planned_for_slo_s": shape.slo_s,
        "loads": dataclasses.asdict(loads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; shapes that are there already are kept or replaced"
    )
    parser.add_argument("--warm", type=float, default=12.0, help="seconds before anything counts, of each load")
    parser.add_argument("--window", type=float, default=28.0, help="seconds that count")
    parser.add_argument("--arrivals", default="poisson")
    parser.add_argument("--dry", action="store_true", help="only what is predicted")
    options = parser.parse_args()
    if options.dry:
        for name in options.shapes:
            _predict(SHAPES[name])
        return
    loads = Loads(options.warm, options.window, options.arrivals)
    for name in options.shapes:
        with a_home() as home:  # one for each: what Ray keeps of the shape before is not this one's load
            found = compare(home, SHAPES[name], loads)
        if options.output is not None:
            _write(options.output, name, found)


def _predict(shape: Shape) -> None:
    for how, plan in plans(shape, profiled(shape, load_config(CHAINS / f"{shape.name}.yaml"))).items():
        replicas = {c.id: (c.replicas, c.placements[0].batch) for c in plan.components}
        print(
            f"{shape.name:9} {how:8} {plan.rate_per_s:6.2f}/s  {plan.bottleneck:20} path {plan.full_batch_path_s:4.1f} s  {replicas}"
        )


def _write(output: Path, name: str, found: dict[str, Any]) -> None:
    """Shapes may be measured one by one: the others' results are kept."""
    document: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {"shapes": {}}
    document["environment"] = {
        "emulated": "every component, in the time of profiles of one H100, slowed as the chains' settings say",
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    document["shapes"][name] = found
    results.write(output, document)


if __name__ == "__main__":
    main()
