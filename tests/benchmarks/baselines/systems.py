"""Every system that is compared, started and stopped: the same chain, the same engines, one URL."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bench_demo_chain import ROOT, free_port, running, wait_for

from patchwork_serving.store.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
CHAT, EMBED = "smollm2-135m-instruct", "all-minilm-l6-v2"
CLI = [sys.executable, "-m", "patchwork_serving.cli"]


@dataclass(frozen=True)
class Application:
    """An example and what it is asked. ``emulated``: its models' arguments, each an engine of its own that takes an H100's time."""

    name: str
    file: Path
    attribute: str
    emulated: Mapping[str, Any]
    wraps: str | None = None  #: the key of the question, for a chain that takes an object
    needs_postgres: bool = False  #: the chain itself reads DATABASE_URL
    inputs: Path = ROOT / "examples" / "questions.jsonl"

    @property
    def target(self) -> str:
        return f"{self.file}:{self.attribute}"

    def values(self) -> list[Any]:
        rows = [json.loads(line) for line in self.inputs.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [{self.wraps: row["question"]} if self.wraps else row["question"] for row in rows]


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
            name: {"engine": "emulated", "engine_args": {**arguments, "slower": self.slower}}
            for name, arguments in app.emulated.items()
        }

    def names(self, app: Application) -> list[str]:
        """What is served: each part of an application has its own emulated model, and all parts share the real one."""
        return list(app.emulated) if self.emulated else [CHAT, EMBED]

    def env(self, app: Application) -> dict[str, str]:
        """``GRADER_MODEL=grader``: how the examples are told the model of each part."""
        return {f"{name.upper()}_MODEL": name for name in app.emulated if self.emulated and "-" not in name}


@contextmanager
def whole(app: Application, engines: Engines, *, workers: int, limit: int | None = None) -> Iterator[str]:
    """(a), (b): LangServe or FastAPI in ``workers`` processes; the engines behind one OpenAI-compatible server."""
    with ExitStack() as stack:
        env = stack.enter_context(model_server(app, engines))
        port = free_port()
        command = [
            sys.executable,
            str(HERE / "whole.py"),
            app.target,
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
            app.target,
            "--port",
            str(port),
            "--config",
            str(config),
        ]
        command += ["--replicas", str(replicas), "--ongoing", str(ongoing)]
        for model in engines.names(app):
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
        database = stack.enter_context(postgres()) if app.needs_postgres else {}
        env = {**os.environ, "PATCHWORK_HOME": home, "OPENAI_API_KEY": "unused", **engines.env(app), **database}
        env.pop("OPENAI_BASE_URL", None)
        port = free_port()
        command = [
            *CLI,
            "deploy",
            app.target,
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
    with ExitStack() as stack:
        config = stack.enter_context(config_file({"models": engines.models(app)}))
        database = stack.enter_context(postgres()) if app.needs_postgres else {}
        port = free_port()
        command = [*CLI, "models", "serve", "--port", str(port), "--config", str(config)]
        for model in engines.names(app):
            command += ["--model", model]
        process = stack.enter_context(running(command, dict(os.environ)))
        url = f"http://127.0.0.1:{port}/v1"
        wait_for(f"{url}/models", process)
        yield {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused", **engines.env(app), **database}


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """A server of the benchmark's own, for chains that ask for one."""
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-pg-", ignore_cleanup_errors=True) as home:
        server = EmbeddedPostgres(Path(home))
        try:
            yield {"DATABASE_URL": server.start()}
        finally:
            server.stop()


@contextmanager
def config_file(settings: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="patchwork-bench-") as folder:
        path = Path(folder) / "patchwork.yaml"
        path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        yield path
