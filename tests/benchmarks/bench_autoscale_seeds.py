"""The loads of ``bench_autoscale_stack.py``, and others, simulated with many seeds: our autoscaler and Ray Serve's own, both ways.

    python tests/benchmarks/bench_autoscale_seeds.py [--traces DIR] [-o docs/benchmarks/autoscale_seeds.json]

One component of 0.2 s a call, one at a time, that starts in 4 s; SLO 1.5 s, at most four replicas; late calls are run. Everything as in
``tests/kit/scaling_race.py``: a replica is paid for from the moment it is asked for. ``--traces``: CSV files of a public LLM service,
compressed to four requests per second. Under a minute of processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_autoscale import cold_for, trace
from bench_autoscale_stack import CALL_S, LOW, MOST, RAY_QUICK, SLO_S, day, step

from kit.planning import component, profile
from kit.scaling_race import Ours, Race, RayServes, Result, Scaler, poisson
from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Bounds
from patchwork_scheduler.resources import Resources

CHAIN = cold_for(profile(component("llm", cpu={1: CALL_S})), 4.0)
TRACE_PER_S, TRACE_S = 4.0, 900.0


class Load(NamedTuple):
    arrivals: Sequence[list[float]]  #: one list a seed
    seconds: float


def times(factor: float) -> Callable[[float], float]:
    return lambda now: LOW * (factor if step(now) > LOW else 1.0)


def loads(seeds: int, traces: Path | None) -> dict[str, Load]:
    rates: dict[str, tuple[Callable[[float], float], float]] = {
        **{f"step x{factor}": (times(factor), 130.0) for factor in (2, 3, 4)},
        **{f"a day in {seconds} s": (day(seconds), seconds) for seconds in (120, 160, 480)},
        "constant": (lambda _: 4.0, 300.0),
    }
    made = {
        name: Load([poisson(rate, until, seed) for seed in range(seeds)], until)
        for name, (rate, until) in rates.items()
    }
    for file in sorted(traces.glob("*.csv")) if traces else ():
        found = [at for at in trace(file, "TIMESTAMP", TRACE_PER_S) if at < TRACE_S]
        made[file.stem] = Load([found], TRACE_S)
    return made


def scalers() -> dict[str, Callable[[], Scaler]]:
    limits = {"llm": MOST}
    cores = Resources.machine(cpus=64)
    return {
        "patchwork": lambda: Ours(Autoscaler(CHAIN, cores, bounds={"llm": Bounds(1, MOST)}, slo_s=SLO_S)),
        "ray_serve_default": lambda: RayServes(limits),
        "ray_serve_quick": lambda: RayServes(limits, **RAY_QUICK),
    }


def raced(load: Load, scaler: Callable[[], Scaler]) -> dict[str, float]:
    def one(arrivals: list[float]) -> Result:
        return Race(CHAIN, {"llm": 1}, SLO_S, drops_late=False).run(arrivals, scaler(), math.ceil(load.seconds))

    results = [one(arrivals) for arrivals in load.arrivals]
    columns = ("requests", "missed", "replica_seconds", "changes")
    return {name: round(statistics.fmean(getattr(r, name) for r in results), 1) for name in columns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--seeds", type=int, default=12)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "what": (__doc__ or "").splitlines()[0],
        "simulated": True,
        "seeds": options.seeds,
        "versions": {"ray": version("ray")},
        "loads": {},
    }
    for name, load in loads(options.seeds, options.traces).items():
        report["loads"][name] = {who: raced(load, scaler) for who, scaler in scalers().items()}
        print(name, json.dumps(report["loads"][name]), flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
