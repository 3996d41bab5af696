"""Autoscaling against Ray Serve's own, on the same arrivals: attained share, replica-seconds and changes.

    python tests/benchmarks/bench_autoscale.py -o docs/benchmarks/autoscale.json [--trace FILE.csv --column TIMESTAMP]

A simulation (tests/kit/scaling_race.py): profiles shaped like the paper's applications, replicas that take 20 s to start, a step to three
times the load and a day in twenty minutes. Ray Serve's autoscaler runs with its defaults, and with every number of ongoing requests per
replica that somebody might choose, both with its default delays and with quick ones (reports every 2 s over 10 s, up after 4 s, down after
60 s). Its policy and delays are Ray's own code. Everybody starts from the same plan, with the same limit per component. ``at_our_cost`` is
the setting of Ray Serve with fewest misses among those that take no more replica-seconds than ours, ``at_our_misses`` the one with fewest
replica-seconds among those that miss no more; both are chosen after the race, knowing its outcome, which nobody who sets it up can.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.planning import component, profile
from kit.scaling_race import Ours, Race, RayServes, Result, Scaler, poisson
from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Bounds
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Goal
from patchwork_scheduler.profile_model import Profile
from patchwork_scheduler.resources import Resources

COLD_START_S = 20.0
SLO_S = 3.0
MOST = 16  #: replicas per component, for everybody
LOW = 10.0  #: requests per second that the first plan is made for


def crag() -> Profile:
    """Retrieve, grade, rewrite three in ten and search for them on the web, generate; a replica is a core or a GPU."""
    made = profile(
        component("retriever", cpu={1: 0.02, 8: 0.11}),
        component("grader", gpu={1: 0.06, 8: 0.31}),
        component("rewriter", gpu={1: 0.12, 8: 0.14}, visits=0.3),
        component("web", cpu={1: 0.1}, visits=0.3),
        component("generator", gpu={1: 0.25, 4: 0.28, 8: 0.35}),
        chain="crag.py",
    )
    return cold(made)


def vanilla() -> Profile:
    return cold(
        profile(component("retriever", cpu={1: 0.02, 8: 0.11}), component("generator", gpu={1: 0.25, 4: 0.28, 8: 0.35}))
    )


def cold(chain: Profile) -> Profile:
    return cold_for(chain, COLD_START_S)


def cold_for(chain: Profile, seconds: float) -> Profile:
    """Every component takes so long to start."""
    return replace(
        chain,
        components=tuple(
            replace(c, measured=tuple(replace(m, cold_start_s=seconds) for m in c.measured)) for c in chain.components
        ),
    )


def step(now: float) -> float:
    return LOW * (3.0 if 120 <= now < 420 else 1.0)


def diurnal(now: float) -> float:
    """Between one and three times the low rate, twice."""
    return LOW * (2.0 - math.cos(2 * math.pi * now / 1200))


def trace(path: Path, column: str, mean: float) -> list[float]:
    """Arrivals of a real service, compressed to ``mean`` requests per second."""
    with path.open(newline="") as file:
        times = [datetime.fromisoformat(row[column][:26]).timestamp() for row in csv.DictReader(file)]
    times.sort()
    factor = (len(times) / (times[-1] - times[0])) / mean
    return [(t - times[0]) * factor for t in times if (t - times[0]) * factor < 2400]


def serve_settings() -> dict[str, dict[str, float]]:
    quick = {"metrics_interval_s": 2.0, "look_back_period_s": 10.0, "upscale_delay_s": 4.0, "downscale_delay_s": 60.0}
    return {
        f"{name}, {ongoing} ongoing": {"target_ongoing_requests": float(ongoing), **delays}
        for name, delays in (("default delays", {}), ("quick", quick))
        for ongoing in (2, 3, 4, 5, 6, 8, 10, 12, 16)
    }


def race(chain: Profile, arrivals: Sequence[float], until: float) -> dict[str, Any]:
    resources = Resources.machine(cpus=64, gpus=64)
    plan = make_plan(chain, resources, Goal(rate_per_s=LOW, max_utilisation=0.75), marginals=False)
    start = {c.id: c.replicas for c in plan.components}
    limits = dict.fromkeys(start, MOST)

    def run(scaler: Scaler) -> Result:
        return Race(chain, start, SLO_S).run(arrivals, scaler, until)

    bounds = {name: Bounds(1, MOST) for name in limits}
    ours = run(Ours(Autoscaler(chain, resources, bounds=bounds, slo_s=SLO_S)))
    serve = {name: run(RayServes(limits, **setting)) for name, setting in serve_settings().items()}
    affordable = [name for name, r in serve.items() if r.replica_seconds <= ours.replica_seconds]
    as_good = [name for name, r in serve.items() if r.missed <= ours.missed]
    chosen = {
        "patchwork": ("", ours),
        "ray_serve_default": ("default delays, 2 ongoing", serve["default delays, 2 ongoing"]),
        "at_our_cost": _best(serve, affordable, lambda r: (r.missed, r.replica_seconds)),
        "at_our_misses": _best(serve, as_good, lambda r: (r.replica_seconds, r.missed)),
    }
    return {name: _told(*found, ours) for name, found in chosen.items() if found is not None}


def _best(
    results: Mapping[str, Result], names: Sequence[str], by: Callable[[Result], tuple[float, float]]
) -> tuple[str, Result] | None:
    return min(((name, results[name]) for name in names), key=lambda item: by(item[1]), default=None)


def _told(setting: str, result: Result, ours: Result) -> dict[str, Any]:
    told = {
        **asdict(result),
        "missed": result.missed,
        "attained_share": round(result.attained / result.requests, 4),
        "replica_seconds_over_ours": round(result.replica_seconds / ours.replica_seconds, 3),
        "our_misses_fewer_by": None if not result.missed else round(1 - ours.missed / result.missed, 3),
    }
    return {"setting": setting, **told} if setting else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--trace", type=Path, help="CSV of a real service's arrivals")
    parser.add_argument("--column", default="TIMESTAMP")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "slo_s": SLO_S,
        "cold_start_s": COLD_START_S,
        "simulated": True,
        "versions": {"python": platform.python_version(), "ray": version("ray")},
        "runs": [],
    }
    for chain in (vanilla(), crag()):
        loads: list[tuple[str, list[float], float]] = []
        for seed in range(options.seeds):
            loads.append((f"step x3, seed {seed}", poisson(step, 720, seed), 720.0))
            loads.append((f"diurnal, seed {seed}", poisson(diurnal, 2400, seed), 2400.0))
        if options.trace:
            loads.append((f"trace {options.trace.stem}", trace(options.trace, options.column, 2 * LOW), 2400.0))
        for name, arrivals, until in loads:
            result = race(chain, arrivals, until)
            report["runs"].append({"chain": chain.chain, "load": name, **result})
            told = "; ".join(
                f"{k}: missed {v['missed']}/{v['requests']}, {v['replica_seconds']:.0f} replica-s, {v['changes']} changes"
                for k, v in result.items()
            )
            print(f"{chain.chain} {name}: {told}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
