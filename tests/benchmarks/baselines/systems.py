"""Every system that is compared, started and stopped: the same chain, the same engines, one URL."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from bench_demo_chain import ROOT, free_port, running, wait_for

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "patchwork_serving.cli"]


@dataclass(frozen=True)
class Application:
    """An example and what it is asked. ``emulated`` are ``models`` of patchwork.yaml that take the time of an H100."""

    name: str
    target: Path
    models: tuple[str, ...]  #: names that the chain uses
    emulated: Mapping[str, Any]
    inputs: Path = ROOT / "examples" / "questions.jsonl"
    input_key: str | None = "question"
    env: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> list[Any]:
        rows = [json.loads(line) for line in self.inputs.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [row[self.input_key] if self.input_key else row for row in rows]


@dataclass(frozen=True)
class Engines:
    """Real small models on this CPU, or emulated ones, ``slower`` times slower than the H100 that was measured."""

    emulated: bool
    slower: float = 1.0

    def models(self, app: Application) -> dict[str, Any]:
        """``models`` of patchwork.yaml."""
        if not self.emulated:
            return {}
        return {
            name: {
                "engine": "emulated",
                "engine_args": {**arguments, "slower": self.slower * arguments.get("slower", 1.0)},
            }
            for name, arguments in app.emulated.items()
        }


@contextmanager
def whole(app: Application, engines: Engines, *, workers: int, limit: int | None = None) -> Iterator[str]:
    """(a), (b): LangServe or FastAPI in ``workers`` processes; the engines behind one OpenAI-compatible server."""
    with ExitStack() as stack:
        env = stack.enter_context(model_server(app, engines))
        port = free_port()
        command = [
            sys.executable,
            str(HERE / "whole.py"),
            str(app.target),
            "--port",
            str(port),
            "--workers",
            str(workers),
        ]
        command += ["--limit", str(limit)] if limit else []
        process = stack.enter_context(running(command, env))
        wait_for(f"http://127.0.0.1:{port}/openapi.json", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def composed(app: Application, engines: Engines, *, replicas: int, ongoing: int) -> Iterator[str]:
    """(c): Ray Serve by hand; ``replicas`` of 0 is its autoscaler. As many engines as everyone has: one of each model."""
    with ExitStack() as stack:
        # what the chain does synchronously at import goes here; requests go through handles
        env = stack.enter_context(model_server(app, engines))
        config = stack.enter_context(config_file({"models": engines.models(app)}))
        port = free_port()
        command = [
            sys.executable,
            str(HERE / "composed.py"),
            str(app.target),
            "--port",
            str(port),
            "--config",
            str(config),
        ]
        command += ["--replicas", str(replicas), "--ongoing", str(ongoing)]
        for model in app.models:
            command += ["--model", model]
        process = stack.enter_context(running(command, env))
        wait_for(f"http://127.0.0.1:{port}/openapi.json", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def ours(app: Application, engines: Engines, *, slo_s: float, settings: Mapping[str, Any]) -> Iterator[str]:
    """``patchwork deploy`` with ``settings`` as patchwork.yaml; (d) is this with the policy fifo."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchwork-bench-", ignore_cleanup_errors=True))
        config = stack.enter_context(config_file({"models": engines.models(app), **settings}))
        env = {**os.environ, "PATCHWORK_HOME": home, "OPENAI_API_KEY": "unused", **app.env}
        env.pop("OPENAI_BASE_URL", None)
        port = free_port()
        command = [
            *CLI,
            "deploy",
            str(app.target),
            "--port",
            str(port),
            "--config",
            str(config),
            "--slo",
            f"{slo_s:.4f}s",
        ]
        process = stack.enter_context(running(command, env))
        wait_for(f"http://127.0.0.1:{port}/readyz", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def model_server(app: Application, engines: Engines) -> Iterator[dict[str, str]]:
    """The environment in which a chain finds the models; they batch, as vLLM's server does."""
    with config_file({"models": engines.models(app)}) as config:
        port = free_port()
        command = [*CLI, "models", "serve", "--port", str(port), "--config", str(config)]
        for model in app.models:
            command += ["--model", model]
        with running(command, dict(os.environ)) as process:
            wait_for(f"http://127.0.0.1:{port}/v1/models", process)
            yield {
                **os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "unused", **app.env,
            }  # fmt: skip


@contextmanager
def config_file(settings: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-") as folder:
        path = Path(folder) / "patchwork.yaml"
        path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        yield path
