"""A load step of three times, and a day in a few minutes, through the real stack: our autoscaler and Ray Serve's own on the same arrivals.

    python tests/benchmarks/bench_autoscale_stack.py [step-default day-default step-quick day-quick] -o docs/benchmarks/autoscale-stack.json

Everything is real (gateway, orchestrator, Ray Serve, replicas that start as processes) but the time inside the LLM, which an emulated
engine waits: 0.2 s a call, one at a time. Admission is off, so that what is late is counted as late. Every request is another question,
because equal calls are made once. Latencies count from the intended time. Replica-seconds are those of LLM replicas that report,
looked up once a second.

``step-default`` and ``day-default``: both with their own defaults. ``step-quick`` and ``day-quick``: both with delays for loads that
change within a minute. A step is watched for as long after it as it lasts, because replicas that stay are paid for, too. The results name
all settings. A run takes five to seven minutes (two deployments).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.deployed import Home, a_home, deployed
from kit.scaling_race import poisson
from kit.sustained import CoresBusy
from patchwork_serving.config import AutoscaleConfig

TARGET = Path(__file__).parents[1] / "integration" / "chains" / "own_parts.py"
SLO_S = 1.5
CALL_S = 0.2
LOW = 3.0  #: of the five calls per second that a replica carries
MOST = 4
CONFIG = """
slo: {slo}
autoscale: {autoscale}
scheduler: {{admission: "off"}}
components:
  retriever: {{replicas: 1}}
  llm: {{max_batch: 1, emulate: {{rows: [{{batch: 1, seconds: {call}}}]}}}}
"""
#: For loads that change within a minute: of ours, and of Ray Serve's.
QUICK = {"settle_s": 20.0}
RAY_QUICK = {"metrics_interval_s": 2.0, "look_back_period_s": 6.0, "upscale_delay_s": 4.0, "downscale_delay_s": 20.0}


@dataclass(frozen=True)
class Run:
    """A load, and the settings of both sides where they are not the defaults."""

    rate: Callable[[float], float]
    seconds: float
    ours: Mapping[str, float]
    rays: Mapping[str, float]


def step(now: float) -> float:
    return LOW * (3.0 if 15 <= now < 70 else 1.0)


def day(seconds: float) -> Callable[[float], float]:
    """From the low rate to three times as much and back."""
    return lambda now: LOW * (2.0 - math.cos(2 * math.pi * now / seconds))


RUNS = {
    "step-default": Run(step, 130.0, {}, {}),
    "day-default": Run(day(160.0), 160.0, {}, {}),
    "step-quick": Run(step, 130.0, QUICK, RAY_QUICK),
    "day-quick": Run(day(120.0), 120.0, QUICK, RAY_QUICK),
}


async def load(url: str, arrivals: list[float], watch_s: float) -> dict[str, Any]:
    """Sends at the given seconds whatever happened to those before; watches the replicas until ``watch_s``."""
    start = time.monotonic()
    latencies: list[float | None] = []

    async def ask(client: httpx.AsyncClient, number: int, at: float) -> None:
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        try:
            answer = await client.post(f"{url}/invoke", json={"input": f"parrots speak {number} {os.getpid()}"})
            latencies.append(time.monotonic() - start - at if answer.status_code == 200 else None)
        except httpx.HTTPError:
            latencies.append(None)

    async def watch(client: httpx.AsyncClient) -> tuple[float, int]:
        seconds, changes, before, last = 0.0, 0, 1, start
        while (now := time.monotonic()) < start + watch_s:
            info = (await client.get(f"{url}/info")).json()
            (row,) = [row for row in info["status"]["replicas"] if row["component"] == "llm"]
            seconds += row["ready"] * (now - last)
            changes += row["ready"] != before
            before, last = row["ready"], now
            await asyncio.sleep(1.0)
        return seconds, changes

    limits = httpx.Limits(max_connections=400)
    async with httpx.AsyncClient(timeout=60.0, limits=limits) as client, httpx.AsyncClient(timeout=30.0) as other:
        asks = [asyncio.create_task(ask(client, n, at)) for n, at in enumerate(arrivals)]
        seconds, changes = await watch(other)
        await asyncio.gather(*asks)
    attained = sum(1 for one in latencies if one is not None and one <= SLO_S)
    answered = sorted(one for one in latencies if one is not None)
    return {
        "requests": len(latencies),
        "attained": attained,
        "missed": len(latencies) - attained,
        "failed": sum(one is None for one in latencies),
        "p50_s": round(answered[len(answered) // 2], 3),
        "p95_s": round(answered[int(0.95 * len(answered))], 3),
        "replica_seconds": round(seconds, 1),
        "changes": changes,
    }


def one(home: Home, autoscale: dict[str, Any], arrivals: list[float], watch_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "patchwork.yaml"
        config.write_text(CONFIG.format(autoscale=json.dumps(autoscale), slo=SLO_S, call=CALL_S), encoding="utf-8")
        with deployed(home, str(TARGET), "--name", "scaled", "--config", str(config)) as url:
            with CoresBusy(0.0, watch_s, home.ray_processes()) as busy:
                busy.begin("load", "")
                result = asyncio.run(load(url, arrivals, watch_s))
            (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
            print(autoscale["mode"], json.dumps(result), file=sys.stderr, flush=True)
            return {**result, "cores_busy": round(busy.cores()[0], 2), "decisions": app["decisions"]}


def settings_of(autoscale: dict[str, Any]) -> dict[str, Any]:
    """All of them, the defaults too."""
    if autoscale["mode"] != "ray":
        return AutoscaleConfig.model_validate(autoscale).model_dump(mode="json", exclude={"ray"})
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(min_replicas=1, max_replicas=MOST, initial_replicas=1, **autoscale["ray"])
    return dict(json.loads(config.model_dump_json()))


def compare(home: Home, run: Run, seed: int) -> dict[str, Any]:
    arrivals = poisson(run.rate, run.seconds, seed)
    sides = {
        "patchwork": {"mode": "on", "cpus": 8, "max": MOST, **run.ours},
        "ray_serve": {"mode": "ray", "cpus": 8, "max": MOST, "ray": dict(run.rays)},
    }
    found: dict[str, Any] = {
        name: {"settings": settings_of(autoscale), **one(home, autoscale, arrivals, run.seconds)}
        for name, autoscale in sides.items()
    }
    ours, theirs = found["patchwork"], found["ray_serve"]
    fewer = round(1 - ours["missed"] / theirs["missed"], 3) if theirs["missed"] else None
    over = round(theirs["replica_seconds"] / ours["replica_seconds"], 3)
    return {"seconds": run.seconds, **found, "our_misses_fewer_by": fewer, "replica_seconds_over_ours": over}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=list(RUNS), help=", ".join(RUNS))
    parser.add_argument("-o", "--output", type=Path, help="JSON file; runs that are there already are kept or replaced")
    parser.add_argument("--seed", type=int, default=random.Random(1).randrange(100))
    options = parser.parse_args()
    known = json.loads(options.output.read_text()) if options.output and options.output.is_file() else {}
    report: dict[str, Any] = {
        "what": (__doc__ or "").splitlines()[0],
        "emulated": ["llm"],
        "slo_s": SLO_S,
        "call_s": CALL_S,
        "low_per_s": LOW,
        "versions": {"ray": version("ray")},
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "runs": known.get("runs", {}),
    }
    with a_home() as home:
        for name in options.runs:
            report["runs"][name] = found = compare(home, RUNS[name], options.seed)
            told = f"misses fewer by {found['our_misses_fewer_by']}, replica-seconds over ours {found['replica_seconds_over_ours']}"
            print(f"{name}: {told}", flush=True)
            if options.output:
                options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
