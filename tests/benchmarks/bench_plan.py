"""How long planning takes, and what it gains over a uniform allocation of the same resources.

    python tests/benchmarks/bench_plan.py -o docs/benchmarks/plan.json

``cluster``: 512 nodes of eight shapes and 16 components, planned per node type, against the same program with one set of variables
per node (given up after a time limit). Seconds of processor time: the machine is shared, and HiGHS runs on one thread.
``allocation``: sustainable rate of the plan over that of equal replicas for all components on a GPU, and equal for all on cores; both
with the best batches. Analytic: capacity of profiles, no queueing. The profiles are assumptions: see tests/kit/paper_shapes.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.paper_shapes import crag, hipporag, ircot, memorag
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import NodeType, Resources

GPUS = {"a100": 1.0, "h100": 2.2, "l4": 0.3, "h200": 2.6}  #: assumed speed relative to the first
SHAPES = [
    (32, 0, "cpu"),
    (64, 0, "cpu"),
    (16, 1, "l4"),
    (32, 4, "l4"),
    (96, 8, "a100"),
    (64, 4, "a100"),
    (128, 8, "h100"),
    (128, 8, "h200"),
]
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def cluster(nodes: int = 512, *, by_node: bool = False) -> Resources:
    """Nodes of eight shapes; ``by_node`` makes each a shape of its own, by a byte of memory."""
    found = []
    for index in range(nodes):
        cpus, gpus, hardware = SHAPES[index % len(SHAPES)]
        offers = ("cpu", hardware) if gpus else ("cpu",)
        memory = (256 << 30) + (index if by_node else 0)
        found.append(NodeType(f"node-{index}", cpus, gpus, memory, hardware=offers))
    return Resources(tuple(found))


def sixteen(seed: int) -> Profile:
    """Sixteen components, half of them on GPUs, each measured on every GPU there is; seconds drawn at random."""
    draw = random.Random(seed)
    components = []
    for index in range(16):
        fixed, each = draw.uniform(0.01, 0.3), draw.uniform(0.001, 0.05)
        where = GPUS if index % 2 else {"cpu": 1.0}
        measured = tuple(
            Measured(
                hardware, tuple(Point(b, (fixed + b * each) / speed, memory_bytes=(8 + b) << 23) for b in BATCHES),
                cpus=1.0, gpus=1.0 if index % 2 else 0.0,
            )
            for hardware, speed in where.items()
        )  # fmt: skip
        components.append(ComponentProfile(f"c{index}", draw.choice([0.1, 0.3, 1.0, 3.0]), measured))
    return Profile("sixteen", tuple(components))


def planning_seconds(seed: int, resources: Resources, slo_s: float | None) -> dict[str, float]:
    before = time.process_time()
    plan = make_plan(sixteen(seed), resources, Goal(slo_s=slo_s), marginals=False)
    seconds = time.process_time() - before
    bound = plan.bound_per_s or plan.rate_per_s
    return {"cpu_s": seconds, "rate_per_s": plan.rate_per_s, "gap": 1 - plan.rate_per_s / bound}


def naive(limit_s: float) -> dict[str, Any]:
    """In a process of its own, because a solver cannot be interrupted from inside."""
    code = "import bench_plan as b; print(b.planning_seconds(0, b.cluster(by_node=True), None)['cpu_s'])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"wall_s_at_least": limit_s}
    return {"cpu_s": float(done.stdout)}


def uniform(profile: Profile, cpus: int, gpus: int) -> dict[str, Fixed]:
    """The same number of replicas for all components on GPUs, and for all on cores."""
    on_gpus = [c.id for c in profile.components if c.measured[0].gpus]
    on_cores = [c.id for c in profile.components if not c.measured[0].gpus]
    return {c: Fixed.replicas(gpus // len(on_gpus)) for c in on_gpus} | {
        c: Fixed.replicas(cpus // len(on_cores)) for c in on_cores
    }


def allocation(profile: Profile, cpus: int, gpus: int) -> dict[str, Any]:
    machine = Resources.machine(cpus=cpus, gpus=gpus)
    planned = make_plan(profile, machine, marginals=False)
    equal = make_plan(profile, machine, Goal(fixed=uniform(profile, cpus, gpus)), marginals=False)
    return {
        "chain": profile.chain, "cpus": cpus, "gpus": gpus,
        "planned_per_s": planned.rate_per_s, "uniform_per_s": equal.rate_per_s,
        "ratio": planned.rate_per_s / equal.rate_per_s,
        "planned": {c.id: c.replicas for c in planned.components},
        "uniform": {c.id: c.replicas for c in equal.components},
        "bottleneck": [equal.bottleneck, planned.bottleneck],
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-o", "--output", type=Path)
    arguments.add_argument("--naive-limit-s", type=float, default=60.0, help="0 leaves the naive formulation out")
    given = arguments.parse_args()
    planning_seconds(99, cluster(16), None)  # imports and schemas are not what is measured
    report: dict[str, Any] = {
        "environment": {"python": platform.python_version(), "scipy": version("scipy")},
        "cluster": {
            "free": [planning_seconds(seed, cluster(), None) for seed in range(5)],
            "with_slo": [planning_seconds(seed, cluster(), 20.0) for seed in range(5)],
        },
        "allocation": [
            allocation(crag(), 4 * 3, 6), allocation(ircot(), 8, 6), allocation(hipporag(), 16, 6), allocation(memorag(), 4, 6),
        ],
    }  # fmt: skip
    if given.naive_limit_s:
        report["cluster"]["naive"] = naive(given.naive_limit_s)
    text = json.dumps(report, indent=2)
    print(text)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
