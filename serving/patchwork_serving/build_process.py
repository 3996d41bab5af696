"""The builder as a process of its own: the user's module never runs inside the command line, and one application has one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchwork_adapters import errors as adapter_errors
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.sampling import Sampled
from patchwork_scheduler import errors as scheduler_errors
from patchwork_serving import errors as serving_errors
from patchwork_serving.config import Paths
from patchwork_serving.errors import DeployError
from patchwork_serving.progress import ProgressSink, relay
from patchwork_serving.release import Release

_RUNNING: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True, slots=True)
class BuildRequest:
    target: str
    name: str
    config: Mapping[str, Any]
    database_over_tcp: bool = False  #: replicas may be on another node
    inspect_only: bool = False  #: find and show; start no database, export nothing
    planned: tuple[str, ...] | None = (
        None  #: components of the plan to apply; another chain's is refused before anything is touched
    )
    inputs: str | None = None  #: JSON lines of sample inputs to run


@dataclass(frozen=True, slots=True)
class Built:
    release: Release
    record: bytes
    dsn: str | None


def build(
    request: BuildRequest, progress: ProgressSink, paths: Paths, given_up: threading.Event | None = None
) -> Built:
    """Run the builder and read what it made; raises what it raised. Setting ``given_up`` and then :func:`cancel_running` ends it."""
    with tempfile.TemporaryDirectory(prefix="patchwork-build-") as folder:
        document = _run(request, progress, paths, Path(folder), given_up)
        record = (Path(folder) / "record").read_bytes()
        return Built(Release.from_json(document["release"]), record, document["dsn"])


def inspect(request: BuildRequest, progress: ProgressSink, paths: Paths) -> ComponentGraph:
    """The component graph of a target, from a process that ends afterwards."""
    with tempfile.TemporaryDirectory(prefix="patchwork-inspect-") as folder:
        return ComponentGraph.from_json(_run(request, progress, paths, Path(folder))["graph"])


def sample(request: BuildRequest, progress: ProgressSink, paths: Paths) -> Sampled:
    """The graph of a target with what its sample ``inputs`` did, run on engines that start on demand in a process that ends afterwards.

    Raises what :func:`inspect` raises.
    """
    with tempfile.TemporaryDirectory(prefix="patchwork-sample-") as folder:
        return Sampled.from_json(_run(request, progress, paths, Path(folder))["sampled"])


def cancel_running() -> None:
    """End builders that still run, because the deployment failed elsewhere."""
    for process in list(_RUNNING):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """The builder and what the user's module started in it; Postgres has left its group and is stopped by its owner."""
    for signum, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
            return


def _run(
    request: BuildRequest,
    progress: ProgressSink,
    paths: Paths,
    folder: Path,
    given_up: threading.Event | None = None,
) -> dict[str, Any]:
    (folder / "request.json").write_text(json.dumps(asdict(request)), encoding="utf-8")
    env = {
        **os.environ,
        "PATCHWORK_HOME": str(paths.home),
        "PATCHWORK_CACHE": str(paths.cache),
        "PYTHONUNBUFFERED": "1",
    }
    told, lifeline = os.pipe()  # the builder ends when nobody holds the other end: this process may be killed
    process = subprocess.Popen(
        [sys.executable, "-m", "patchwork_serving.builder", str(folder), str(told)],
        pass_fds=(told,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,  # the terminal's Ctrl-C reaches us only; we end the builder
    )
    os.close(told)
    _RUNNING.add(process)
    if given_up is not None and given_up.is_set():
        _end(process)  # whoever gave up looked before it was there
    tail: list[str] = []
    reader = threading.Thread(target=_keep_tail, args=(process, tail), daemon=True)
    reader.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if not relay(line, progress):
                print(line, end="", file=sys.stderr)  # noqa: T201  what the user's module prints while it is imported
        process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        os.close(lifeline)
        _RUNNING.discard(process)
        reader.join(timeout=5)
    result = folder / "result.json"
    if not result.is_file():
        end = " | ".join(tail[-3:]) or "it said nothing"
        raise DeployError(f"the process that imports {request.target} ended with code {process.returncode}: {end}")
    document: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in document:
        raise raised(document["error"], tail)
    return document


def _keep_tail(process: subprocess.Popen[str], tail: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        tail.append(line.rstrip())
        del tail[:-50]


def raised(error: Mapping[str, str], tail: Sequence[str]) -> Exception:
    """The error of a process that ran the user's module, as the class that it was; one that is not ours notes the end of its output."""
    for module in (adapter_errors, serving_errors, scheduler_errors):
        cls = getattr(module, error["type"], None)
        if isinstance(cls, type) and issubclass(cls, Exception):
            return cls(error["message"])
    unforeseen = DeployError(f"{error['type']}: {error['message']}")
    unforeseen.add_note("\n".join(tail))
    return unforeseen
