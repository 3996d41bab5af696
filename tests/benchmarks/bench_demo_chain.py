"""The demo chain deployed, against the same chain served whole by LangServe, in one run.

    python tests/benchmarks/bench_demo_chain.py -o docs/benchmarks/demo_chain.json

Three sides, one after the other, same questions, same models, 16 concurrent clients, 64-token answers:
``whole_single``   LangServe, models behind ``patchwork models serve --parallel 1``: one sequence on all cores, with llama.cpp's own
                   defaults of flash attention and of prompts kept (what a plain local server does)
``whole_batching`` LangServe, models behind ``patchwork models serve`` (that server batches)
``deployed``       ``patchwork deploy examples/vanilla_rag.py``

``--engine openvino`` gives the chat model that engine (``patchwork.yaml``: one line) on all sides, and adds ``whole_llamacpp``: the
single-sequence server on llama.cpp, as without that line.

``--rounds`` measures the sides in turns, so often; told is the round of each side's median rate, the rates of all, and the ratios of
their medians with those of each round.

Ratios are what counts: absolute times are noise on a shared machine. CPU is told net of what a part takes when nothing is asked. The
overhead of gateway and orchestrator is what the ingress takes beyond what the same chain takes in LangServe's process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from patchwork_serving.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    json.loads(line)["question"]
    for line in (ROOT / "examples" / "questions.jsonl").read_text().splitlines()
    if line.strip()
]
CHAT = "smollm2-135m-instruct"
START_TIMEOUT_S = 300.0
IDLE_S = 5.0


@dataclass(frozen=True)
class Side:
    requests_per_s: float
    failed: int
    latency_p50_s: float
    latency_p95_s: float
    first_chunk_p50_s: float  #: of the streamed requests
    cpu_s_per_request: dict[str, float]  #: CPU seconds by part, streamed requests, net of idling
    cpu_s_per_invoke: dict[str, float]  #: the same for whole answers
    idle_cpu_share: dict[str, float]  #: of one core, by part, when nothing is asked
    memory_mb: dict[str, float]  #: proportional set size, idle after the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=len(QUESTIONS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", help="default: all")
    parser.add_argument("--engine", choices=["llamacpp", "openvino"], default="llamacpp")
    options = parser.parse_args()
    also = ["whole_llamacpp"] if options.engine != "llamacpp" else []
    names = options.sides.split(",") if options.sides else [*also, "whole_single", "whole_batching", "deployed"]
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-") as folder:
        config = Path(folder) / "patchwork.yaml"
        config.write_text(json.dumps({"models": {CHAT: {"engine": options.engine}}}))
        rounds = [
            {name: measure(name, options.clients, options.requests, config) for name in names}
            for _ in range(options.rounds)
        ]
    sides = {name: asdict(median(one[name] for one in rounds)) for name in names}
    rates = {name: [one[name].requests_per_s for one in rounds] for name in names}
    report: dict[str, Any] = {
        "engine": options.engine,
        "clients": options.clients,
        "requests": options.requests,
        "rounds": options.rounds,
        "sides": sides,
        "requests_per_s": rates,
        "ratios": {
            name: one
            for name, (one,) in ratios({name: [side["requests_per_s"]] for name, side in sides.items()}).items()
        },
        "ratios_by_round": ratios(rates),
        "overhead_cpu_ms": overhead(sides),
        "environment": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


def median(sides: Iterable[Side]) -> Side:
    """The one with the median rate; of two the slower."""
    ordered = sorted(sides, key=lambda one: one.requests_per_s)
    return ordered[(len(ordered) - 1) // 2]


def ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """The deployment's rates over those of each other side."""
    ours = rates.get("deployed", [])
    return {
        f"deployed/{name}": [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in rates.items()
        if ours and name != "deployed"
    }


def overhead(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """CPU milliseconds per request of gateway and orchestrator: the ingress, less the chain in LangServe's process."""
    if not {"deployed", "whole_batching"} <= sides.keys():
        return {}
    return {
        kind: round(1000 * (sides["deployed"][kind]["ingress"] - sides["whole_batching"][kind]["chain"]), 1)
        for kind in ("cpu_s_per_request", "cpu_s_per_invoke")
    }


def measure(name: str, clients: int, requests: int, config: Path) -> Side:
    with ExitStack() as stack:
        if name == "deployed":
            url, processes = stack.enter_context(deployed(config))
        else:
            url, processes = stack.enter_context(
                whole(None if name == "whole_llamacpp" else config, parallel=None if name == "whole_batching" else 1)
            )
        print(f"{name}: {url}", file=sys.stderr)
        asyncio.run(load(url, QUESTIONS[:2], 2, streamed=False))  # warm-up: connections, caches of the frameworks
        idle = shares(processes)
        questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(requests)]
        began = time.monotonic()
        results, per_request = loaded(url, questions, clients, processes, idle, streamed=True)
        elapsed = time.monotonic() - began
        _, per_invoke = loaded(url, questions, clients, processes, idle, streamed=False)
        good = sorted(r[0] for r in results if r is not None)
        first = sorted(r[1] for r in results if r is not None)
        return Side(
            requests_per_s=round(len(good) / elapsed, 3), failed=requests - len(good), latency_p50_s=quantile(good, 0.5),
            latency_p95_s=quantile(good, 0.95), first_chunk_p50_s=quantile(first, 0.5), cpu_s_per_request=per_request,
            cpu_s_per_invoke=per_invoke, idle_cpu_share={k: round(v, 4) for k, v in idle.items()}, memory_mb=memory(processes),
        )  # fmt: skip


def shares(processes: dict[str, list[int]]) -> dict[str, float]:
    """Cores that each part takes while nothing is asked."""
    before = cpu_seconds(processes)
    time.sleep(IDLE_S)
    return {part: (after - before[part]) / IDLE_S for part, after in cpu_seconds(processes).items()}


def loaded(
    url: str,
    questions: list[str],
    clients: int,
    processes: dict[str, list[int]],
    idle: dict[str, float],
    *,
    streamed: bool,
) -> tuple[list[tuple[float, float] | None], dict[str, float]]:
    """The results of the load, and CPU seconds per request by part, net of idling."""
    before, began = cpu_seconds(processes), time.monotonic()
    results = asyncio.run(load(url, questions, clients, streamed=streamed))
    elapsed = time.monotonic() - began
    used = {part: after - before[part] - idle[part] * elapsed for part, after in cpu_seconds(processes).items()}
    return results, {part: round(seconds / len(questions), 4) for part, seconds in used.items()}


def quantile(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else float("nan")


async def load(url: str, questions: list[str], clients: int, *, streamed: bool) -> list[tuple[float, float] | None]:
    """(seconds, seconds to the first chunk) of each request, None where it failed. Closed loop: each client asks one after the other."""
    waiting = asyncio.Queue[str]()
    for question in questions:
        waiting.put_nowait(question)
    results: list[tuple[float, float] | None] = []

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120.0) as http:
            while not waiting.empty():
                question = waiting.get_nowait()
                try:
                    results.append(await ask(http, question, streamed=streamed))
                except (httpx.HTTPError, RuntimeError) as error:
                    print(f"failed: {type(error).__name__}: {error}", file=sys.stderr)
                    results.append(None)

    await asyncio.gather(*(client() for _ in range(clients)))
    return results


async def ask(http: httpx.AsyncClient, question: str, *, streamed: bool) -> tuple[float, float]:
    began = time.monotonic()
    if not streamed:
        (await http.post("/invoke", json={"input": question})).raise_for_status()
        return time.monotonic() - began, float("nan")
    first = None
    async with http.stream("POST", "/stream", json={"input": question}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("event: error"):
                raise RuntimeError("the stream ended with an error")
            if (
                line.startswith("data:")
                and first is None
                and "run_id" not in line
                and line.strip() not in ('data: ""', "data:")
            ):
                first = time.monotonic() - began
    return time.monotonic() - began, first if first is not None else time.monotonic() - began


@contextmanager
def whole(config: Path | None, parallel: int | None) -> Iterator[tuple[str, dict[str, list[int]]]]:
    models_port, chain_port = free_port(), free_port()
    command = [sys.executable, "-m", "patchwork_serving.cli", "models", "serve", "--port", str(models_port)]
    if config is not None:
        command += ["--config", str(config)]
    if parallel is not None:
        command += ["--parallel", str(parallel)]
    env = {**os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{models_port}/v1", "OPENAI_API_KEY": "unused"}
    with running(command, env) as models:
        wait_for(f"http://127.0.0.1:{models_port}/v1/models", models)
        with running(
            [sys.executable, str(Path(__file__).with_name("whole_chain.py")), "--port", str(chain_port)], env
        ) as chain:
            url = f"http://127.0.0.1:{chain_port}"
            wait_for(f"{url}/openapi.json", chain)
            yield url, {"models": [models.pid], "chain": [chain.pid]}


@contextmanager
def deployed(config: Path) -> Iterator[tuple[str, dict[str, list[int]]]]:
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-") as home:
        env = {**os.environ, "PATCHWORK_HOME": home}
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "patchwork_serving.cli",
            "deploy",
            str(ROOT / "examples" / "vanilla_rag.py"),
            "--port",
            str(port),
            "--config",
            str(config),
        ]
        with running(command, env) as deploy:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/readyz", deploy)
            yield url, parts_of(Path(home))


def parts_of(home: Path) -> dict[str, list[int]]:
    """Process ids of a deployment by part, from the names that Ray and Postgres give to their processes."""
    parts = ray_parts(json.loads((home / "ray.json").read_text())["process"]["pid"])
    postgres = EmbeddedPostgres(home / "postgres").status().pid
    if postgres is not None:
        parts["postgres"] = [postgres, *(p.pid for p in psutil.Process(postgres).children())]
    return parts


def ray_parts(root: int) -> dict[str, list[int]]:
    """Process ids of what runs below ``root`` on Ray, by deployment."""
    parts: dict[str, list[int]] = {}
    for process in psutil.Process(root).children(recursive=True):
        try:
            name = " ".join(process.cmdline()) or process.name()
        except psutil.Error:
            continue
        part = name.split(":")[-1].split(".")[0].strip() if name.startswith("ray::ServeReplica") else "ray"
        if name.startswith("ray::ProxyActor"):
            part = "http proxy"
        parts.setdefault(part, []).append(process.pid)
    return parts


def cpu_seconds(parts: dict[str, list[int]]) -> dict[str, float]:
    used = {}
    for part, pids in parts.items():
        used[part] = 0.0
        for pid in pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            used[part] += times.user + times.system
    return used


def memory(parts: dict[str, list[int]]) -> dict[str, float]:
    """Proportional set size where the system tells it: shared pages are counted once."""
    found = {}
    for part, pids in parts.items():
        total = 0
        for pid in pids:
            try:
                info = psutil.Process(pid).memory_full_info()
            except psutil.Error:
                continue
            total += getattr(info, "pss", info.rss)
        found[part] = round(total / 1e6, 1)
    return {**found, "total": round(sum(found.values()), 1)}


@contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with code {process.returncode}")
        try:
            if httpx.get(url, timeout=2.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise SystemExit(f"{url} did not answer within {START_TIMEOUT_S:.0f} s")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
