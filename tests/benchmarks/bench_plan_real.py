"""Planned against uniform allocation, through the real stack with emulated engines.

For each of four shapes of chains (``chains/``), on the same resources: every component the same number of replicas, then what the planner
says.
Prints and writes what was predicted of each and what was measured: requests completed per second while more wait than can be served.

    python tests/benchmarks/bench_plan_real.py [crag ircot hipporag memorag] [-o docs/benchmarks/plan_real.json]

The profile of a shape is measured on its own engines, on an event loop whose clock jumps (``kit.virtual_time``). What is measured on the
real stack therefore differs from it by what the stack adds, and by what the planner does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil

from kit.deployed import Home, a_home
from kit.virtual_time import VirtualLoop, run_virtually
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal, Plan
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving.components import measuring
from patchwork_serving.components.emulated import EmulatedLlm
from patchwork_serving.components.emulated_factory import build_emulated, in_its_time
from patchwork_serving.config import Config, load_config
from patchwork_serving.profiling import Search, Sweep
from patchwork_serving.release import ComponentSpec
from patchwork_serving.sample_payloads import made_up

CHAINS = Path(__file__).parent / "chains"
IN_FLIGHT = 64
WARM_S = 5.0
MEASURED_S = 15.0
#: Batches beyond this wait longer for one another than the closed loop of this benchmark keeps waiting.
MAX_BATCH = 8


@dataclass(frozen=True)
class Shape:
    """A chain, what it may use, and how often it calls each component."""

    name: str
    cpus: int
    gpus: int
    visits: dict[str, float]


SHAPES = {
    "crag": Shape(
        "crag", 6, 9,
        {"retriever-search": 1, "llm-grader": 1, "llm-rewriter": 0.3, "retriever-web": 0.3, "llm-generator": 1},
    ),
    "ircot": Shape("ircot", 4, 8, {"retriever-search": 3, "llm-reasoner": 3, "llm-answerer": 1}),
    "hipporag": Shape(
        "hipporag", 4, 9, {"llm-extractor": 1, "embedder-entities": 1, "retriever-pagerank": 1, "llm-generator": 1}
    ),
    "memorag": Shape("memorag", 2, 8, {"llm-memory": 1, "retriever-search": 1, "llm-generator": 1}),
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
        "uniform": make_plan(profile, resources, Goal(fixed=_even(shape, profile)), marginals=False),
        "planned": make_plan(profile, resources),
    }


def _even(shape: Shape, profile: Profile) -> dict[str, Fixed]:
    """Equal shares of the GPUs for what runs on GPUs, and of the cores for what runs on cores."""
    by_hardware: dict[str, list[str]] = {}
    for component in profile.components:
        by_hardware.setdefault(component.measured[0].hardware, []).append(component.id)
    totals = {"cpu": shape.cpus, "gpu": shape.gpus}
    return {name: Fixed.replicas(totals[h] // len(names)) for h, names in by_hardware.items() for name in names}


# -- the real stack


def deploy(home: Home, shape: Shape, plan: Plan) -> str:
    file = home.path / f"{shape.name}.plan.json"
    plan.save(file)
    result = home.run(
        "deploy", str(CHAINS / f"{shape.name}.py"), "--config", str(CHAINS / f"{shape.name}.yaml"), "--plan", str(file),
        "--port", "0", "--detach", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ready = json.loads(result.stdout.strip().splitlines()[-1])
    assert ready["emulated"]
    return str(ready["url"])


async def completed_per_s(url: str, seconds: float) -> tuple[float, int]:
    """Requests completed per second with ``IN_FLIGHT`` of them at any time, and how many failed."""
    done, failed, number = 0, 0, 0
    until = 0.0

    async def worker(client: httpx.AsyncClient) -> None:
        nonlocal done, failed, number
        while time.monotonic() < until:
            number += 1
            answer = await client.post(f"{url}/invoke", json={"input": f"question {number} of {os.getpid()}"})
            if time.monotonic() < until:
                done, failed = done + (answer.status_code == 200), failed + (answer.status_code != 200)

    async with httpx.AsyncClient(timeout=120.0, limits=httpx.Limits(max_connections=IN_FLIGHT)) as client:
        until = time.monotonic() + WARM_S + seconds
        workers = [asyncio.create_task(worker(client)) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(WARM_S)
        began, before = time.monotonic(), done
        await asyncio.sleep(seconds - 0.05)
        rate = (done - before) / (time.monotonic() - began)
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return rate, failed


def compare(home: Home, shape: Shape, seconds: float) -> dict[str, Any]:
    config = load_config(CHAINS / f"{shape.name}.yaml")
    rows: dict[str, Any] = {}
    for how, plan in plans(shape, profiled(shape, config)).items():
        url = deploy(home, shape, plan)
        psutil.cpu_percent()
        rate, failed = asyncio.run(completed_per_s(url, seconds))
        rows[how] = {
            "replicas": {c.id: c.replicas for c in plan.components},
            "predicted_per_s": round(plan.rate_per_s, 3),
            "measured_per_s": round(rate, 3),
            "measured_over_predicted": round(rate / plan.rate_per_s, 3),
            "bottleneck": plan.bottleneck,
            "failed": failed,
            "machine_busy": round(psutil.cpu_percent() / 100, 2),
        }
        print(
            f"{shape.name:9} {how:8} predicted {plan.rate_per_s:6.2f}/s  measured {rate:6.2f}/s  {rows[how]['replicas']}"
        )
    ratio = rows["planned"]["measured_per_s"] / rows["uniform"]["measured_per_s"]
    predicted = rows["planned"]["predicted_per_s"] / rows["uniform"]["predicted_per_s"]
    print(f"{shape.name:9} planned over uniform: measured {ratio:.2f}, predicted {predicted:.2f}")
    return {
        **rows,
        "ratio_measured": round(ratio, 3),
        "ratio_predicted": round(predicted, 3),
        "cpus": shape.cpus,
        "gpus": shape.gpus,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON file; shapes that are there already are kept or replaced"
    )
    parser.add_argument("--seconds", type=float, default=MEASURED_S)
    parser.add_argument("--dry", action="store_true", help="only what is predicted")
    options = parser.parse_args()
    if options.dry:
        for name in options.shapes:
            _predict(SHAPES[name])
        return
    with a_home() as home:
        for name in options.shapes:
            found = compare(home, SHAPES[name], options.seconds)
            if options.output is not None:
                _write(options.output, name, found, options.seconds)


def _predict(shape: Shape) -> None:
    for how, plan in plans(shape, profiled(shape, load_config(CHAINS / f"{shape.name}.yaml"))).items():
        replicas = {c.id: (c.replicas, c.placements[0].batch) for c in plan.components}
        print(
            f"{shape.name:9} {how:8} {plan.rate_per_s:6.2f}/s  {plan.bottleneck:20} path {plan.full_batch_path_s:4.1f} s  {replicas}"
        )


def _write(output: Path, name: str, found: dict[str, Any], seconds: float) -> None:
    """Shapes may be measured one by one: the others' results are kept."""
    document: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {"shapes": {}}
    document["environment"] = {
        "emulated": "every component, in the time of profiles of one H100, ten times slower",
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "in_flight": IN_FLIGHT,
        "seconds": seconds,
    }
    document["shapes"][name] = found
    output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
