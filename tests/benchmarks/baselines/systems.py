"""Every system that is compared, started and stopped: the same chain, the same engines, one URL."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from bench_demo_chain import free_port, parts_of, ray_parts, running, wait_for

from baselines.applications import CHAT, EMBED, Application
from patchwork_serving.store.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "patchwork_serving.cli"]


@dataclass(frozen=True)
class Engines:
    """Real small models on this CPU, or emulated ones, ``slower`` times slower than the H100 that was measured.

    ``chat``: the engine of the real LLM, for every system; None: as it comes. ``inexact``: OpenVINO in the precision that the
    processor is fastest with, where answers need not be those of another run.
    """

    emulated: bool
    slower: float = 1.0
    chat: str | None = None
    inexact: bool = False

    def models(self, app: Application) -> dict[str, Any]:
        """``models`` of patchwork.yaml."""
        if not self.emulated:
            arguments = {"engine_args": {"exact": False}} if self.inexact else {}
            return {CHAT: {"engine": self.chat, **arguments}} if self.chat else {}
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


@dataclass(frozen=True)
class Served:
    """A system that answers at ``url``."""

    url: str
    processes: Callable[[], dict[str, list[int]]]  #: ids by part, as they are now


@dataclass(frozen=True)
class ModelServer:
    env: dict[str, str]  #: in which a chain finds the models
    pid: int


@contextmanager
def whole(app: Application, engines: Engines, *, workers: int, limit: int | None = None) -> Iterator[Served]:
    """(a), (b): LangServe or FastAPI in ``workers`` processes; the engines behind one OpenAI-compatible server."""
    with ExitStack() as stack:
        models = stack.enter_context(model_server(app, engines))
        port = free_port()
        command = [sys.executable, str(HERE / "whole.py"), app.target, "--port", str(port), "--workers", str(workers)]
        command += ["--limit", str(limit)] if limit else []
        process = stack.enter_context(running(command, models.env))
        wait_for(f"http://127.0.0.1:{port}/openapi.json", process)
        yield Served(
            f"http://127.0.0.1:{port}", lambda: {"chain": family(process.pid), "model server": family(models.pid)}
        )


@contextmanager
def composed(app: Application, engines: Engines, *, replicas: int, ongoing: int) -> Iterator[Served]:
    """(c): Ray Serve by hand; ``replicas`` of 0 is its autoscaler. As many engines as everyone has: one of each model."""
    with ExitStack() as stack:
        # what the chain does synchronously at import goes here; requests go through handles
        models = stack.enter_context(model_server(app, engines))
        config = stack.enter_context(config_file({"models": engines.models(app)}))
        port = free_port()
        command = [
            sys.executable, str(HERE / "composed.py"), app.target, "--port", str(port), "--config", str(config),
            "--replicas", str(replicas), "--ongoing", str(ongoing),
        ]  # fmt: skip
        for model in engines.names(app):
            command += ["--model", model]
        process = stack.enter_context(running(command, models.env))
        wait_for(f"http://127.0.0.1:{port}/openapi.json", process)
        yield Served(f"http://127.0.0.1:{port}", lambda: {**ray_parts(process.pid), "model server": family(models.pid)})


@contextmanager
def ours(app: Application, engines: Engines, *, slo_s: float, settings: Mapping[str, Any]) -> Iterator[Served]:
    """``patchwork deploy`` with ``settings`` as patchwork.yaml; (d) is this with the policy fifo."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchwork-bench-", ignore_cleanup_errors=True))
        config = stack.enter_context(config_file({"models": engines.models(app), **settings}))
        database = stack.enter_context(postgres()) if app.needs_postgres else {}
        env = {**os.environ, "PATCHWORK_HOME": home, "OPENAI_API_KEY": "unused", **engines.env(app), **database}
        env.pop("OPENAI_BASE_URL", None)
        port = free_port()
        command = [*CLI, "deploy", app.target, "--port", str(port), "--config", str(config), "--slo", f"{slo_s:.4f}s"]
        process = stack.enter_context(running(command, env))
        wait_for(f"http://127.0.0.1:{port}/readyz", process)
        yield Served(f"http://127.0.0.1:{port}", lambda: parts_of(Path(home)))


@contextmanager
def model_server(app: Application, engines: Engines) -> Iterator[ModelServer]:
    """``patchwork models serve``; its engines batch, as vLLM's server does."""
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
        env = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused", **engines.env(app), **database}
        yield ModelServer(env, process.pid)


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


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
