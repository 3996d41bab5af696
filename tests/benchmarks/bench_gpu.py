"""Applications and streams of every system on a GPU, in one go: models of real shapes in vLLM, embeddings, pgvector.

    python tests/benchmarks/bench_gpu.py -o OUT                                  # everything: hours; parts: see below
    python tests/benchmarks/bench_gpu.py -o OUT --applications crag --systems whole,ours --settings "2 processes;1 ingress"

It calls ``bench_applications.py`` and ``bench_streaming.py`` with vLLM in place of their emulated engines. All LLM parts of an application
share one engine, as on one GPU they would. Weights are random (``load_format=dummy``), so no answer ends by itself: each is as long as
the example lets its part be (a grader 4 tokens, an answer 64), and what is decided by an answer is always decided the same way (no
document is relevant, no reasoning is finished). Everything else is real: prompts, tokens, passages, embeddings, searches.

Rates are multiples (``--loads``) of what the chain served whole completes of a burst. Without a GPU the same runs with emulated engines,
``--slower`` times slower than an H100, and everything that is written says so. OUT gets ``applications.json``, ``streaming.json``, plots,
and ``machine.json``: device, versions, date, engines, capacities. What OUT has already is kept, so that a comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import bench_applications
import bench_streaming
import results
from baselines.applications import APPLICATIONS, COMPARED, EMBED, Application
from baselines.systems import Engines, model_server, ours, whole
from bench_streaming import Wish, compared, measured, openai_stream, sse_stream
from gpu_models import SHAPES, write_models

from patchwork_serving.bench import LoadOptions, run_load
from patchwork_serving.components.engine import ContinuousEngine
from patchwork_serving.components.factory import build_engine
from patchwork_serving.config import Config
from patchwork_serving.gpus import gpu_names
from patchwork_serving.release import ComponentSpec

SHAPE = "llama-3.2-3b"
BURST = 128  #: requests at once, whose completion tells the capacity
PATIENCE_S = 600.0
VERSIONS = ("patchwork-rag", "vllm", "torch", "ray", "langchain-core", "langgraph", "llama-index-core")


@dataclass(frozen=True)
class VllmEngines(Engines):
    """One vLLM engine for all LLM parts of an application; the embedder is the packaged one."""

    folder: Path = Path()
    name: str = SHAPE  #: as the chains ask for it
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def engine_args(self) -> dict[str, Any]:
        """The same wherever the engine runs: behind a server, in a deployment, alone."""
        fixed = {"load_format": "dummy", "dtype": "bfloat16", "max_model_len": 8192, "max_num_seqs": 256}
        return {**fixed, **self.arguments}

    def models(self, app: Application) -> dict[str, Any]:
        return {self.name: {"source": str(self.folder), "engine": "vllm", "engine_args": self.engine_args}}

    def names(self, app: Application) -> list[str]:
        return [self.name, EMBED] if EMBED in app.emulated else [self.name]

    def env(self, app: Application) -> dict[str, str]:
        return {"CHAT_MODEL": self.name}


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    devices = [] if options.emulated else gpu_names()
    with tempfile.TemporaryDirectory(prefix="patchwork-gpu-") as home:
        engines: Engines = Engines(True, options.slower)
        if devices:
            write_models(Path(home))
            engines = VllmEngines(False, folder=Path(home) / options.shape)
            # a deployment that asks Ray for no GPU, as the one composed by hand does, is to see it all the same
            os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        machine = results.continued(options.output / "machine.json", conditions(devices, options), {"applications": {}})
        print(f"engines: {machine['engines']}", file=sys.stderr)
        for name in filter(None, options.applications.split(",")):
            compare(APPLICATIONS[name], engines, machine, options)
        if options.streams:
            document = {**machine, **streams(engines, options)}
            results.write(options.output / "streaming.json", document)
    results.write(options.output / "machine.json", machine)
    print(json.dumps(results.rounded(machine), indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--applications", default=",".join(COMPARED), help="empty: none")
    parser.add_argument("--systems", default="whole,composed,ours-fifo,ours")
    parser.add_argument("--settings", help="only these settings, with semicolons between")
    parser.add_argument(
        "--loads", default="0.4,0.6,0.8,1.1,1.6", help="of the capacity, ascending, with commas between"
    )
    parser.add_argument("--medium", type=int, default=2, help="at which of them misses are compared, counted from 0")
    parser.add_argument("--window", type=float, default=25.0, help="seconds of steady state of each load")
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--learn", type=int, default=50, help="requests before the first load")
    parser.add_argument("--burst", type=int, default=BURST)
    parser.add_argument("--streams", default="1,64,128", help="clients at once of the streaming test; empty: none")
    parser.add_argument("--rounds", type=int, default=3, help="answers that each of those clients asks for")
    parser.add_argument("--shape", choices=tuple(SHAPES), default=SHAPE)
    parser.add_argument("--slower", type=float, default=10.0, help="of emulated engines")
    parser.add_argument("--emulated", action="store_true", help="also where there is a GPU")
    return parser.parse_args()


def conditions(devices: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What ``machine.json`` begins with; a comparison in parts goes on only where it is the same."""
    told = (
        f"vLLM, {options.shape}, random weights"
        if devices
        else f"EMULATED: {options.slower:g} times slower than an H100"
    )
    return {"engines": told, "devices": devices, "versions": versions()}


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# -- applications


def compare(app: Application, engines: Engines, machine: dict[str, Any], options: argparse.Namespace) -> None:
    """The whole comparison of one application, at rates of its own; merged into ``applications.json``."""
    known = machine["applications"].setdefault(app.name, {})
    if "capacity_per_s" not in known:
        known["capacity_per_s"] = capacity_per_s(app, engines, options.burst)
        results.write(options.output / "machine.json", machine)
    rates = [float(load) * known["capacity_per_s"] for load in options.loads.split(",")]
    vars(bench_applications)["Engines"] = lambda emulated, slower: engines
    arguments = [
        "-o", str(options.output / "applications.json"), "--engines", "emulated" if engines.emulated else "real",
        "--applications", app.name, "--systems", options.systems, "--rates", ",".join(f"{rate:.4g}" for rate in rates),
        "--medium", str(options.medium), "--window", str(options.window), "--warmup", str(options.warmup),
        "--learn", str(options.learn),
    ]  # fmt: skip
    sys.argv = [
        bench_applications.__file__,
        *arguments,
        *(["--settings", options.settings] if options.settings else []),
    ]
    bench_applications.main()


def capacity_per_s(app: Application, engines: Engines, burst: int) -> float:
    """Requests per second of the chain served whole, of a burst that fills its engine."""
    with whole(app, engines, workers=2) as served:
        options = LoadOptions(requests=burst, warmup_s=0.0, slo_s=PATIENCE_S, timeout_s=PATIENCE_S, connections=burst)
        run_load(
            served.url, [0.0] * 4, app.values(), options
        )  # connections, caches, what is compiled at the first call
        report = run_load(served.url, [0.0] * burst, app.values(), options)
    if report.counts["attained"] < burst:
        raise SystemExit(f"{app.name}, whole: {dict(report.statuses)} of {burst} requests; there is nothing to compare")
    return burst / max(report.latencies)


# -- streams


def streams(engines: Engines, options: argparse.Namespace) -> dict[str, Any]:
    """The engine alone, behind its server, and deployed, by clients at once."""
    loads = [(int(n), options.rounds * (5 if int(n) == 1 else 1)) for n in options.streams.split(",")]
    wish = Wish(600, 64, options.slower)
    if isinstance(engines, VllmEngines):
        only = {"override_generation_config": {"max_new_tokens": wish.n_out}, "enable_prefix_caching": False}
        asked = VllmEngines(False, folder=engines.folder, name=bench_streaming.MODEL, arguments=only)
        sides = {
            "engine": asyncio.run(measured(vllm_alone(asked), loads, wish)),
            "server": asyncio.run(_served(asked, loads, wish)),
            "deployed": asyncio.run(_deployed(asked, loads, wish)),
        }
    else:
        sides = {
            "engine": asyncio.run(measured(bench_streaming.engine_alone(wish), loads, wish)),
            "server": bench_streaming.served(wish, loads),
            "deployed": bench_streaming.deployed(wish, loads),
        }
    return {"by_clients": {str(n): compared({side: found[n] for side, found in sides.items()}) for n, _ in loads}}


async def _served(engines: VllmEngines, loads: list[tuple[int, int]], wish: Wish) -> dict[int, dict[str, Any]]:
    with model_server(wish.application, engines) as server:
        return await measured(openai_stream(server.env["OPENAI_BASE_URL"], wish), loads, wish)


async def _deployed(engines: VllmEngines, loads: list[tuple[int, int]], wish: Wish) -> dict[int, dict[str, Any]]:
    everybody = {"scheduler": {"admission": "off"}}
    with ours(wish.application, engines, slo_s=bench_streaming.TIMEOUT_S, settings=everybody) as served:
        return await measured(sse_stream(served.url), loads, wish)


@contextlib.asynccontextmanager
async def vllm_alone(engines: VllmEngines) -> AsyncIterator[bench_streaming.Ask]:
    """The engine's own ``generate`` in this process, with nothing around it."""
    models = engines.models(APPLICATIONS["vanilla"])
    spec = ComponentSpec(
        engines.name, "llm", "protocol", "vllm", model=engines.name, engine_args=engines.engine_args, num_gpus=1.0
    )
    engine = build_engine(spec, Config.model_validate({"models": models}))
    assert isinstance(engine, ContinuousEngine)
    async with bench_streaming.asking(engine, engines.name) as ask:
        yield ask


if __name__ == "__main__":
    main()
