"""RAG applications: ours against what a user would set up instead, same chain, same engines, same arrivals.

    python tests/benchmarks/bench_applications.py --engines emulated --slower 10 --loads 0.8,1.1,1.6 -o DIR/emulated.json

Systems: ``whole`` (LangServe or FastAPI, N processes, models behind an OpenAI-compatible server), ``composed`` (Ray Serve by hand),
``ours-fifo`` (ours, first come first served) and ``ours``. Each runs in each of its concurrency settings, all are reported, the best one is
compared. Every load is open; the SLO is twice the unloaded mean of ``whole`` with one process, for everyone.
No question is asked twice in a run, so that no cache of prompts answers for an engine, nor for the system that refuses least.

The rates are one grid for all, from which come: the sustainable rate (the largest up to which 90 % are attained, interpolated between
two of the grid), the goodput at the best and at the largest rate, and what was missed at each. ``--rates`` are requests per second.
``--loads`` are multiples of the rate at which the first LLM engine would be full; with real engines, of the rate of one request after
another, whose mean the SLO is told from, so that both follow what the machine is that day. At the lowest rate streams are sent too: the
first chunk of an LCEL chain is the first piece of its answer, that of a graph what its first node returned.

``--systems`` (in the order given), ``--applications`` and ``--settings`` choose; results are merged into the file that is there, so that
a long comparison can be made in parts. ``--ablation`` runs ours with one thing switched off at a time instead. Where more than 70 % of the
cores were busy, ``machine_was_the_limit`` says so: then the machine was measured, and nothing may be claimed of the system.

A shared machine may be half as fast an hour later, with the same real models. ``--slo-each`` measures the unloaded mean again before each
system, from which its SLO and its rates come, and as much longer windows, so that all see the same arrivals; ``compared`` brings rates to
the machine's speed at the first.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import results
from application_plots import draw
from baselines.applications import APPLICATIONS, COMPARED, Application
from baselines.measuring import UNLOADED, Loads, compared, measure
from baselines.settings import Setting, ablations, settings
from baselines.systems import Engines, whole

from patchwork_serving.bench import LoadOptions, run_load
from patchwork_serving.bench.run import SLO_FACTOR


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    options = _options()
    engines = Engines(options.engines == "emulated", options.slower, options.chat_engine, options.inexact)
    document = results.continued(options.output, _conditions(engines, options), {"applications": {}})
    for name in options.applications.split(","):
        app = APPLICATIONS[name]
        found = document["applications"].setdefault(name, {"systems": {}})
        if "slo_s" not in found:
            found["unloaded_mean_s"] = reference_mean(app, engines, options.unloaded)
            found["slo_s"] = SLO_FACTOR * found["unloaded_mean_s"]
            results.write(options.output, document)
        for setting in wanted(app, options):
            alone_s = reference_mean(app, engines, options.unloaded) if options.slo_each else found["unloaded_mean_s"]
            slo_s = SLO_FACTOR * alone_s
            print(f"{name}: {setting.system}, {setting.name} (SLO {slo_s:.2f} s)", file=sys.stderr)
            loads = _loads(app, engines, options, alone_s, alone_s / found["unloaded_mean_s"])
            run = measure(setting, app, engines, slo_s, loads)
            if options.slo_each:
                run = {"unloaded_mean_s": alone_s, "slo_s": slo_s, "slower": alone_s / found["unloaded_mean_s"], **run}
            found["systems"].setdefault(setting.system, {})[setting.name] = run
            found["compared"] = compared(found["systems"], options.medium)
            results.write(options.output, document)
    draw(options.output, document)
    print(
        json.dumps(
            {name: app.get("compared") for name, app in results.rounded(document)["applications"].items()}, indent=2
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engines", choices=("real", "emulated"), default="emulated")
    parser.add_argument(
        "--slower", type=float, default=1.0, help="emulated engines: times slower than the H100's profile"
    )
    parser.add_argument(
        "--chat-engine", choices=("llamacpp", "openvino"), help="real engines: the LLM's, for every system"
    )
    parser.add_argument(
        "--inexact", action="store_true", help="openvino in the precision the processor is fastest with"
    )
    parser.add_argument("--applications", default=",".join(COMPARED), help=", ".join(APPLICATIONS))
    parser.add_argument("--systems", default="whole,composed,ours-fifo,ours")
    parser.add_argument("--settings", help="only these settings, with semicolons between")
    rates = parser.add_mutually_exclusive_group(required=True)
    rates.add_argument("--rates", help="requests per second, ascending, with commas between")
    rates.add_argument(
        "--loads",
        help="multiples of what the LLM engines bear, or real ones one by one; ascending, with commas between",
    )
    parser.add_argument("--medium", type=int, default=1, help="at which of them misses are compared, counted from 0")
    parser.add_argument(
        "--window",
        type=_seconds,
        default=[25.0],
        help="seconds of steady state of each load; or one for each, with commas",
    )
    parser.add_argument(
        "--warmup",
        type=_seconds,
        default=[5.0],
        help="seconds of each load that are not counted; or one for each, with commas",
    )
    parser.add_argument("--learn", type=int, default=50, help="requests before the first load")
    parser.add_argument("--stream", type=float, default=10.0, help="seconds of streams at the lowest rate; 0: none")
    parser.add_argument("--unloaded", type=int, default=10, help="requests one by one, from which the SLO is told")
    parser.add_argument(
        "--slo-each",
        action="store_true",
        help="tell the SLO anew before each system, where the machine's speed changes",
    )
    parser.add_argument("--arrivals", default="poisson")
    parser.add_argument("--ablation", action="store_true")
    return parser.parse_args()


def _conditions(engines: Engines, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "engines": {
            "emulated": engines.emulated, "slower": engines.slower, "chat": engines.chat, "inexact": engines.inexact,
        },
        "arrivals": options.arrivals,
        "window_s": _one_or_all(options.window), "warmup_s": _one_or_all(options.warmup), "medium": options.medium,
        "slo": f"{SLO_FACTOR:g} x the unloaded mean of whole, 1 process", "questions": "each asked once",
        "slo_told": "anew for each" if options.slo_each else None,
    }  # fmt: skip


def wanted(app: Application, options: argparse.Namespace) -> list[Setting]:
    systems = options.systems.split(",")
    found = ablations(app) if options.ablation else [s for name in systems for s in settings() if s.system == name]
    names = options.settings.split(";") if options.settings else None
    return [setting for setting in found if names is None or setting.name in names]


def _loads(
    app: Application, engines: Engines, options: argparse.Namespace, unloaded_mean_s: float, slower: float = 1.0
) -> Loads:
    """``slower``: the machine, than at the application's first system. All see the same arrivals, as much further apart."""
    if options.rates:
        rates = [float(rate) for rate in options.rates.split(",")]
    else:
        capacity = app.capacity_per_s(engines.slower) if engines.emulated else 1.0 / unloaded_mean_s
        rates = [float(load) * capacity for load in options.loads.split(",")]
    windows, warmups = (_for_each(given, len(rates)) for given in (options.window, options.warmup))
    windows, warmups = ([slower * seconds for seconds in of] for of in (windows, warmups))
    return Loads(rates, windows, warmups, options.learn, options.stream, options.arrivals)


def _seconds(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _for_each(given: list[float], rates: int) -> list[float]:
    if len(given) not in (1, rates):
        raise SystemExit(f"{len(given)} windows or warm-ups for {rates} loads: give one, or one for each")
    return given * rates if len(given) == 1 else given


def _one_or_all(given: list[float]) -> float | list[float]:
    return given[0] if len(given) == 1 else given


def reference_mean(app: Application, engines: Engines, requests: int) -> float:
    """Seconds of a request that has everything to itself, the chain whole in one process."""
    options = LoadOptions(requests=1, warmup_s=0.0, unloaded=requests)
    with whole(app, engines, workers=1) as served:
        report = run_load(served.url, [0.0], app.values(UNLOADED), options)
    assert report.unloaded_mean_s is not None
    return report.unloaded_mean_s


if __name__ == "__main__":
    main()
