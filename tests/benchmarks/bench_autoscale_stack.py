"""A load step of three times through the real stack: our autoscaler and Ray Serve's own, one after the other on the same arrivals.

    python tests/benchmarks/bench_autoscale_stack.py -o docs/benchmarks/autoscale-stack.json

Everything is real (gateway, orchestrator, Ray Serve, replicas that start as processes) but the time inside the LLM, which an emulated
engine waits: 0.15 s a call, one at a time. Admission is off, so that what is late is counted as late. Every request is another question,
because equal calls are made once. Replica-seconds are those of LLM replicas that report, looked up once a second. Ray Serve's autoscaler
runs with its defaults, as mode ``ray`` gives them; ``--quick`` gives it quick delays instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.deployed import Home, a_home, deployed
from kit.scaling_race import poisson

TARGET = Path(__file__).parents[1] / "integration" / "chains" / "own_parts.py"
SLO_S = 1.5
CALL_S = 0.15
LOW = 4.0
MOST = 4
CONFIG = """
slo: {slo}
autoscale: {{mode: {mode}, cpus: 8, max: {most}, settle_s: 20s, ray: {ray}}}
scheduler: {{admission: off}}
components:
  retriever: {{replicas: 1}}
  llm: {{max_batch: 1, emulate: {{rows: [{{batch: 1, seconds: {call}}}]}}}}
"""
QUICK = {"metrics_interval_s": 2.0, "look_back_period_s": 6.0, "upscale_delay_s": 4.0, "downscale_delay_s": 20.0}


def step(now: float, low_s: float, high_s: float) -> float:
    return LOW * (3.0 if low_s <= now < low_s + high_s else 1.0)


async def load(url: str, arrivals: list[float], watch_s: float) -> dict[str, Any]:
    """Sends at the given seconds whatever happened to those before; watches the replicas until ``watch_s``."""
    start = time.monotonic()
    latencies: list[float | None] = []

    async def ask(client: httpx.AsyncClient, number: int, at: float) -> None:
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        sent = time.monotonic()  # the client's own delay is not the system's
        try:
            answer = await client.post(f"{url}/invoke", json={"input": f"parrots speak {number} {os.getpid()}"})
            latencies.append(time.monotonic() - sent if answer.status_code == 200 else None)
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


def one(home: Home, mode: str, ray: dict[str, float], arrivals: list[float], watch_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "patchwork.yaml"
        values = {"mode": mode, "ray": json.dumps(ray), "slo": SLO_S, "call": CALL_S, "most": MOST}
        config.write_text(CONFIG.format(**values), encoding="utf-8")
        with deployed(home, str(TARGET), "--name", "scaled", "--config", str(config)) as url:
            result = asyncio.run(load(url, arrivals, watch_s))
            (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
            print(mode, json.dumps(result), file=sys.stderr, flush=True)
            return {**result, "decisions": app["decisions"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--low", type=float, default=25.0, help="seconds before and after the step")
    parser.add_argument("--high", type=float, default=70.0, help="seconds at three times the load")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=random.Random(1).randrange(100))
    options = parser.parse_args()
    until = 2 * options.low + options.high
    arrivals = poisson(lambda now: step(now, options.low, options.high), until, options.seed)
    report: dict[str, Any] = {
        "what": (__doc__ or "").splitlines()[0],
        "emulated": ["llm"],
        "slo_s": SLO_S,
        "call_s": CALL_S,
        "low_per_s": LOW,
        "ray_serve_settings": QUICK if options.quick else {},
        "seconds": [options.low, options.high, options.low],
        "versions": {"ray": version("ray")},
        "cores": os.cpu_count(),
    }
    with a_home() as home:
        report["patchwork"] = one(home, "on", {}, arrivals, until)
        report["ray_serve"] = one(home, "ray", QUICK if options.quick else {}, arrivals, until)
    ours, theirs = report["patchwork"], report["ray_serve"]
    report["our_misses_fewer_by"] = round(1 - ours["missed"] / theirs["missed"], 3) if theirs["missed"] else None
    report["replica_seconds_over_ours"] = round(theirs["replica_seconds"] / ours["replica_seconds"], 3)
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
