"""One system under several loads: what became of the requests, when first chunks came, and what the processors did meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
from bench_demo_chain import cpu_seconds

from baselines.applications import Application
from baselines.settings import Setting
from baselines.systems import Engines, Served
from kit.sustained import BUSY, CoresBusy
from patchwork_serving.bench import LoadOptions, run_load
from patchwork_serving.bench.run import NotAnswered

SHARE = 0.9  #: attained where a rate counts as sustained
#: Whoever waits longer than so many times the SLO has missed, and is not waited for.
PATIENCE = 3.0
#: Parts of the questions: those of learning and of each load come before.
STREAMED, UNLOADED = 6, 7
FIRST_ANSWERS_S = 60.0

_KEPT = (
    "asked_rate_per_s", "offered_per_s", "completed_per_s", "goodput_per_s", "offered", "attained", "missed", "refused", "failed",
    "attained_share", "missed_share_of_accepted", "latency_s", "generator_late_s", "steady", "statuses",
)  # fmt: skip


@dataclass(frozen=True)
class Loads:
    """Requests per second, ascending, and how each is sent. Seconds."""

    rates: Sequence[float]
    windows_s: Sequence[float]  #: one for each rate
    warmups_s: Sequence[float]  #: before each window, with its rate; what is above what a system bears piles up in it
    learn: int  #: requests before the first load, at the second rate: connections, caches, estimates that must learn
    stream_s: float  #: how long streams are sent at the lowest rate, for first chunks; 0: not at all
    arrivals: str


def measure(setting: Setting, app: Application, engines: Engines, slo_s: float, loads: Loads) -> dict[str, Any]:
    """What the comparison keeps of one setting; ``not_run`` with the reason where it did not start."""
    options = LoadOptions(slo_s=slo_s, timeout_s=PATIENCE * slo_s)
    steps = [
        replace(options, rate=rate, duration_s=window, warmup_s=warmup)
        for rate, window, warmup in zip(loads.rates, loads.windows_s, loads.warmups_s, strict=True)
    ]
    try:
        with setting.start(app, engines, slo_s) as served:
            _learn(served, app, loads, options, slo_s)
            points = [_point(served, app, engines, loads.arrivals, step, part) for part, step in enumerate(steps, 1)]
            streams = None
            if loads.stream_s and app.streams:
                slow = replace(options, rate=loads.rates[0], duration_s=loads.stream_s, warmup_s=2.0, stream=True)
                streams = _first_chunks(served.url, app, loads.arrivals, slow)
    except (SystemExit, NotAnswered) as error:
        return {"not_run": str(error)}
    return {**summary(points), "points": points, "streams": streams}


def _learn(served: Served, app: Application, loads: Loads, options: LoadOptions, slo_s: float) -> None:
    rate = loads.rates[min(1, len(loads.rates) - 1)]
    seconds = loads.learn / rate
    # what is started by its first request takes its time
    load = replace(
        options, rate=rate, duration_s=seconds, warmup_s=0.0, timeout_s=max(FIRST_ANSWERS_S, PATIENCE * slo_s)
    )
    run_load(served.url, loads.arrivals, app.values(), load)


def _point(
    served: Served, app: Application, engines: Engines, arrivals: str, options: LoadOptions, part: int
) -> dict[str, Any]:
    assert options.duration_s is not None
    parts = {**served.processes(), "load generator": [os.getpid()]}
    before = cpu_seconds(parts)
    ours = [psutil.Process(pid) for pids in parts.values() for pid in pids if psutil.pid_exists(pid)]
    with CoresBusy(options.warmup_s, options.duration_s, ours) as busy:
        report = run_load(served.url, arrivals, app.values(part), options, busy)
    used = {part: seconds - before[part] for part, seconds in cpu_seconds(parts).items()}
    sent = report.offered * (1 + options.warmup_s / options.duration_s)
    cores, of_it = busy.cores()
    document = report.to_json()
    print(
        f"  {report.offered_per_s:6.2f}/s  attained {100 * report.attained_share:5.1f}%  cores {cores:.2f} ({of_it:.2f} of it)"
        f"  p50 {document['latency_s']['p50']}",
        file=sys.stderr,
    )
    return {
        **{name: document[name] for name in _KEPT}, "cores_busy": cores, "cores_of_it": of_it,
        # real models are to keep the cores busy
        "machine_was_the_limit": engines.emulated and cores > BUSY * (os.cpu_count() or 1),
        "cpu_ms_per_request": {part: 1000 * seconds / sent for part, seconds in used.items() if seconds > 0 and sent},
    }  # fmt: skip


def _first_chunks(url: str, app: Application, arrivals: str, options: LoadOptions) -> dict[str, Any]:
    """``not_answered`` where the system is still at what the largest rate left it."""
    try:
        document = run_load(url, arrivals, app.values(STREAMED), options).to_json()
    except NotAnswered as error:
        return {"not_answered": str(error)}
    return {name: document[name] for name in ("offered_per_s", "offered", "failed", "ttft_s", "latency_s", "statuses")}


# -- what a system's loads say


def summary(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "sustainable_per_s": sustainable(points), "sustainable_is_below_grid": points[0]["attained_share"] < SHARE,
        "sustainable_is_above_grid": all(point["attained_share"] >= SHARE for point in points),
        "peak_goodput_per_s": max(point["goodput_per_s"] for point in points),
        "goodput_at_largest_rate_per_s": points[-1]["goodput_per_s"],
    }  # fmt: skip


def sustainable(points: Sequence[Mapping[str, Any]]) -> float:
    """Where the attained share crosses 90 %, between the last rate that holds it and the first that does not; a line between.

    When not even the smallest rate holds it, the line starts at nothing: a guess, which ``sustainable_is_below_grid`` tells.
    """
    below: tuple[float, float] = (0.0, 1.0)
    for point in points:
        offered, attained = point["offered_per_s"], point["attained_share"]
        if attained < SHARE:
            rate, share = below
            return float(rate + (offered - rate) * (share - SHARE) / (share - attained))
        below = (offered, attained)
    return below[0]


def compared(systems: Mapping[str, Mapping[str, Any]], medium: int) -> dict[str, Any]:
    """The best setting of each system by sustainable rate, then by goodput, and ours against each.

    ``medium``: which of the loads is the medium one, at which misses are compared: requests without an answer in time, refused ones
    among them, and those that were accepted and late.
    """
    best: dict[str, dict[str, Any]] = {}
    for system, tried in systems.items():
        ran = {name: run for name, run in tried.items() if "points" in run}
        if ran and system != "ablation":
            name = max(ran, key=lambda n: (ran[n]["sustainable_per_s"], ran[n]["peak_goodput_per_s"]))
            best[system] = {"setting": name, **_figures(ran[name], medium)}
    mine = best.get("ours", {})
    others = {f"ours/{system}": run for system, run in best.items() if mine and system != "ours"}
    return {"best": best, "ratios": {name: _against(mine, run) for name, run in others.items()}}


def _figures(run: Mapping[str, Any], medium: int) -> dict[str, Any]:
    figures = ("sustainable_per_s", "peak_goodput_per_s", "goodput_at_largest_rate_per_s")
    at = run["points"][min(medium, len(run["points"]) - 1)]
    slower = run.get("slower", 1.0)  # the machine, than when the application's SLO was told
    return {
        **{figure: run[figure] * slower for figure in figures},
        "medium": {
            "offered_per_s": at["offered_per_s"] * slower, "goodput_per_s": at["goodput_per_s"] * slower,
            "not_in_time_share": 1 - at["attained_share"],
            "late_share": at["missed"] / at["offered"] if at["offered"] else 0.0,
        },
        "first_chunk_p50_s": (run.get("streams") or {}).get("ttft_s", {}).get("p50"),
        "machine_was_the_limit": any(point.get("machine_was_the_limit", False) for point in run["points"]),
    }  # fmt: skip


def _against(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    figures = ("sustainable_per_s", "peak_goodput_per_s", "goodput_at_largest_rate_per_s")
    fewer = {
        f"fewer_{what}": 1 - mine["medium"][f"{what}_share"] / other["medium"][f"{what}_share"]
        if other["medium"][f"{what}_share"]
        else None
        for what in ("not_in_time", "late")
    }
    return {
        **{figure: mine[figure] / other[figure] if other[figure] else None for figure in figures},
        "goodput_at_medium": mine["medium"]["goodput_per_s"] / other["medium"]["goodput_per_s"]
        if other["medium"]["goodput_per_s"]
        else None,
        **fewer,
    }
