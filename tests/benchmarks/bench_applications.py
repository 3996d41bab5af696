"""RAG applications: ours against what a user would set up instead, same chain, same engines, same arrivals.

    python tests/benchmarks/bench_applications.py --engines emulated --slower 5 --rates 2,4,6,8,12 -o DIR/emulated.json

Systems: ``whole`` (LangServe or FastAPI, N processes, models behind an OpenAI-compatible server), ``composed`` (Ray Serve by hand),
``ours-fifo`` (ours, first come first served) and ``ours``. Each runs in each of its concurrency settings, all are reported, the best one is
compared. Every load is open; the SLO is twice the unloaded mean of ``whole`` with one process, for everyone.

The rates are one grid for all, from which come: the sustainable rate (the largest up to which 90 % are attained, interpolated between
two of the grid), the goodput at the best and at the largest rate, and what was missed at each. ``--systems`` and ``--applications``
choose; results are merged into the file that is there, so that a long comparison can be made in parts. ``--ablation`` runs ours with one
thing switched off at a time instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from baselines.systems import CHAT, EMBED, Application, Engines, composed, ours, whole
from bench_demo_chain import ROOT

from patchwork_serving.bench import LoadOptions, LoadReport, run_load
from patchwork_serving.bench.run import SLO_FACTOR

SHARE = 0.9
EXAMPLES = ROOT / "examples"

#: Token counts are those of the shapes of the paper's applications on an H100 (docs/benchmarks/README.md).
LLM = {"profile": "llama-3.2-3b-h100"}
EMBEDDER = {EMBED: {"profile": "minilm-l6-h100"}}
GENERATOR = {"generator": {**LLM, "n_in": 1500, "n_out": [32, 64]}}
APPLICATIONS = {
    app.name: app
    for app in (
        Application(
            "vanilla", EXAMPLES / "vanilla_rag.py", "chain", {**EMBEDDER, CHAT: {**LLM, "n_in": 1500, "n_out": [32, 64]}}
        ),
        # four graders of 600 tokens in and 4 out; for 30 % of questions none of them says yes (h100/README.md)
        Application(
            "crag", EXAMPLES / "crag.py", "graph",
            {
                **EMBEDDER, **GENERATOR,
                "grader": {**LLM, "n_in": 600, "n_out": 4, "answers": {"yes": 0.26, "no": 0.74}},
                "rewriter": {**LLM, "n_in": 200, "n_out": [8, 24]},
            },
            wraps="question", needs_postgres=True,
        ),
        Application(
            "ircot", EXAMPLES / "ircot.py", "graph",
            {
                **EMBEDDER, **GENERATOR,
                "reasoner": {
                    **LLM, "n_in": 1200, "n_out": [16, 32], "answers": {"So the answer is this.": 0.33, "One thing follows.": 0.67},
                },
            },
            wraps="question",
        ),
        Application(
            "hipporag", EXAMPLES / "hipporag.py", "chain",
            {**EMBEDDER, **GENERATOR, "extractor": {**LLM, "n_in": 300, "n_out": [8, 32]}},
        ),
        Application(
            "memorag", EXAMPLES / "memorag.py", "chain",
            {**EMBEDDER, **GENERATOR, "memory": {**LLM, "n_in": 2000, "n_out": [24, 48]}},
        ),
    )
}  # fmt: skip

#: One thing off at a time; a setting that this version's patchwork.yaml does not know is reported as such, not skipped silently.
ABLATIONS: dict[str, dict[str, Any]] = {
    "all on": {},
    "slack order off": {"scheduler": {"policy": "fifo"}},
    "admission off": {"scheduler": {"admission": "off"}},
    "batching off": {"components": {f"embedder-{EMBED}": {"max_batch": 1}, "retriever-store": {"max_batch": 1}}},
}


@dataclass(frozen=True)
class Setting:
    """One way to run a system."""

    system: str
    name: str
    start: Callable[[Application, Engines, float], AbstractContextManager[str]]
    streams: bool = True


def settings() -> list[Setting]:
    found = [
        Setting("whole", f"{n} processes", lambda app, engines, slo, n=n: whole(app, engines, workers=n)) for n in (1, 2, 4)
    ]  # fmt: skip
    found.append(
        Setting(
            "whole", "2 processes, at most 32 each", lambda app, engines, slo: whole(app, engines, workers=2, limit=32)
        )
    )
    for replicas, ongoing in ((1, 100), (2, 100), (2, 16), (0, 100)):
        name = f"{replicas or 'autoscaled'} replicas, {ongoing} ongoing"
        found.append(
            Setting(
                "composed",
                name,
                lambda app, engines, slo, r=replicas, o=ongoing: composed(app, engines, replicas=r, ongoing=o),
                streams=False,
            )
        )
    for system, policy in (("ours-fifo", {"scheduler": {"policy": "fifo", "admission": "off"}}), ("ours", {})):
        for ingress in (1, 2):
            given = {"ingress_replicas": ingress, **policy}
            found.append(
                Setting(
                    system,
                    f"{ingress} ingress",
                    lambda app, engines, slo, g=given: ours(app, engines, slo_s=slo, settings=g),
                )
            )
    return found


def ablations() -> list[Setting]:
    return [
        Setting("ablation", name, lambda app, engines, slo, g=given: ours(app, engines, slo_s=slo, settings=g))
        for name, given in ABLATIONS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engines", choices=("real", "emulated"), default="emulated")
    parser.add_argument(
        "--slower", type=float, default=1.0, help="emulated engines: times slower than the H100's profile"
    )
    parser.add_argument("--applications", default=",".join(APPLICATIONS))
    parser.add_argument("--systems", default="whole,composed,ours-fifo,ours")
    parser.add_argument("--settings", help="only these settings, with semicolons between")
    parser.add_argument("--rates", required=True, help="requests per second, ascending, with commas between")
    parser.add_argument(
        "--medium", type=float, help="the rate at which first chunks of streams are timed too; default: none"
    )
    parser.add_argument("--window", type=float, default=15.0, help="seconds of steady state of each load")
    parser.add_argument("--warmup", type=float, default=4.0)
    parser.add_argument("--arrivals", default="poisson")
    parser.add_argument("--ablation", action="store_true")
    options = parser.parse_args()
    engines = Engines(options.engines == "emulated", options.slower)
    document = _known(options.output, engines, options)
    for name in options.applications.split(","):
        app = APPLICATIONS[name]
        found = document["applications"].setdefault(name, {"systems": {}})
        if "slo_s" not in found:
            found["unloaded_mean_s"] = reference_mean(app, engines)
            found["slo_s"] = SLO_FACTOR * found["unloaded_mean_s"]
            write(options.output, document)
        wanted = ablations() if options.ablation else [s for s in settings() if s.system in options.systems.split(",")]
        for setting in wanted:
            if options.settings and setting.name not in options.settings.split(";"):
                continue
            print(f"{name}: {setting.system}, {setting.name}", file=sys.stderr)
            run = measure(setting, app, engines, found["slo_s"], options)
            found["systems"].setdefault(setting.system, {})[setting.name] = run
            found["compared"] = compared(found["systems"])
            write(options.output, document)
    draw(options.output, document)
    print(json.dumps({name: app["compared"] for name, app in document["applications"].items()}, indent=2))


def reference_mean(app: Application, engines: Engines) -> float:
    """Seconds of a request that has everything to itself, the chain whole in one process."""
    with whole(app, engines, workers=1) as url:
        report = run_load(url, [0.0], app.values(), LoadOptions(requests=1, warmup_s=0.0, unloaded=10))
    assert report.unloaded_mean_s is not None
    return report.unloaded_mean_s


def measure(
    setting: Setting, app: Application, engines: Engines, slo_s: float, options: argparse.Namespace
) -> dict[str, Any]:
    rates = [float(rate) for rate in options.rates.split(",")]
    # whoever waits longer than this has missed, and is not waited for
    load = LoadOptions(duration_s=options.window, warmup_s=options.warmup, slo_s=slo_s, timeout_s=5 * slo_s)
    points: list[LoadReport] = []
    streamed = None
    try:
        with setting.start(app, engines, slo_s) as url:
            # a first load that is not counted: caches of frameworks, connections, estimates that must learn
            run_load(url, options.arrivals, app.values(), replace(load, rate=rates[0], duration_s=5.0, warmup_s=0.0))
            for rate in rates:
                points.append(run_load(url, options.arrivals, app.values(), replace(load, rate=rate)))
                print(
                    f"  {points[-1].offered_per_s:6.2f}/s  attained {100 * points[-1].attained_share:5.1f}%",
                    file=sys.stderr,
                )
            if options.medium and setting.streams:
                streamed = run_load(
                    url, options.arrivals, app.values(), replace(load, rate=options.medium, stream=True)
                )
    except SystemExit as error:  # it did not start
        return {"not_run": str(error)}
    return {
        "sustainable_per_s": sustainable(points), "sustainable_is_below_grid": points[0].attained_share < SHARE,
        "peak_goodput_per_s": max(p.goodput_per_s for p in points),
        "goodput_at_largest_rate_per_s": points[-1].goodput_per_s,
        "points": [kept(point) for point in points], "streamed": kept(streamed) if streamed else None,
    }  # fmt: skip


def sustainable(points: Sequence[LoadReport]) -> float:
    """Where the attained share crosses 90 %, between the last rate that holds it and the first that does not; a line between.

    When not even the smallest rate holds it, the line starts at nothing: a guess, which ``sustainable_is_below_grid`` tells.
    """
    below: tuple[float, float] = (0.0, 1.0)
    for point in points:
        if point.attained_share < SHARE:
            rate, share = below
            return rate + (point.offered_per_s - rate) * (share - SHARE) / (share - point.attained_share)
        below = (point.offered_per_s, point.attained_share)
    return below[0]


def kept(report: LoadReport) -> dict[str, Any]:
    document = report.to_json()
    names = (
        "asked_rate_per_s", "offered_per_s", "completed_per_s", "goodput_per_s", "offered", "attained", "missed", "refused", "failed",
        "attained_share", "missed_share_of_accepted", "latency_s", "ttft_s", "generator_late_s", "steady", "statuses",
    )  # fmt: skip
    return {name: document[name] for name in names}


def compared(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The best setting of each system by sustainable rate, then by goodput, and ours over each."""
    best = {}
    for system, tried in systems.items():
        ran = {name: run for name, run in tried.items() if "points" in run}
        if ran and system != "ablation":
            name = max(ran, key=lambda n: (ran[n]["sustainable_per_s"], ran[n]["peak_goodput_per_s"]))
            figures = ("sustainable_per_s", "peak_goodput_per_s", "goodput_at_largest_rate_per_s")
            best[system] = {"setting": name, **{figure: ran[name][figure] for figure in figures}}
    mine = best.get("ours")
    ratios = {
        f"ours/{system}": {
            figure: round(mine[figure] / run[figure], 3) if run[figure] else None
            for figure in run
            if figure != "setting"
        }
        for system, run in best.items()
        if mine and system != "ours"
    }
    return {"best": best, "ratios": ratios}


def draw(output: Path, document: Mapping[str, Any]) -> None:
    """Attained share and goodput by offered rate, of each system's best setting."""
    from matplotlib.figure import Figure

    for name, app in document["applications"].items():
        figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        for system, run in app["compared"]["best"].items():
            points = app["systems"][system][run["setting"]]["points"]
            offered = [point["offered_per_s"] for point in points]
            left.plot(offered, [100 * point["attained_share"] for point in points], marker="o", label=system)
            right.plot(offered, [point["goodput_per_s"] for point in points], marker="o", label=system)
        left.axhline(100 * SHARE, color="black", linestyle=":", linewidth=1)
        left.set(xlabel="requests offered per second", ylabel="% within the SLO", ylim=(0, 101))
        right.set(xlabel="requests offered per second", ylabel="requests within the SLO per second", ylim=(0, None))
        kind = "emulated H100 engines" if document["engines"]["emulated"] else "real small models"
        figure.suptitle(f"{name}, {kind}")
        left.legend()
        figure.savefig(output.with_name(f"{output.stem}_{name}.png"))


def _known(output: Path, engines: Engines, options: argparse.Namespace) -> dict[str, Any]:
    """What is in the file already, when it was measured with the same engines."""
    mine = {
        "engines": {"emulated": engines.emulated, "slower": engines.slower}, "arrivals": options.arrivals,
        "window_s": options.window, "warmup_s": options.warmup,
    }  # fmt: skip
    if output.is_file():
        found: dict[str, Any] = json.loads(output.read_text())
        if any(found[key] != value for key, value in mine.items()):
            raise SystemExit(
                f"{output} was measured otherwise ({ {key: found[key] for key in mine} }); give another file"
            )
        return found
    environment = {
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {
        **mine,
        "slo": f"{SLO_FACTOR:g} x the unloaded mean of whole, 1 process",
        "environment": environment,
        "applications": {},
    }


def write(output: Path, document: Mapping[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_rounded(document), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list():
            return [_rounded(item) for item in value]
        case _:
            return value


if __name__ == "__main__":
    main()
