"""The profiler: runs the user's chain on deployed components, writes its calls down, then measures each component in its replica.

Runs as ``python -m patchwork_serving.profiler RESULT``, told what to do on standard input (see ``profile``): the user's module never runs
inside the command line.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchwork_adapters.checking.cases import case_of
from patchwork_adapters.errors import AdapterError
from patchwork_adapters.placement import Placed
from patchwork_adapters.redaction import redacted, redacted_traceback
from patchwork_adapters.sample_runs import sample_graph
from patchwork_adapters.sampling import Sampled, SampledRequest
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.errors import SchedulerError
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Profile
from patchwork_serving import serve_control
from patchwork_serving.bundle import Bundle
from patchwork_serving.components.measuring import Run
from patchwork_serving.errors import ServingError, UsageError
from patchwork_serving.orchestrator import Orchestrator
from patchwork_serving.profiling import Search, Sweep
from patchwork_serving.progress import JsonProgress, ProgressSink, step
from patchwork_serving.release import ComponentSpec
from patchwork_serving.sample_payloads import made_up
from patchwork_serving.sampling_calls import Calls, Usage, branches, usage
from patchwork_serving.serve_control import Cluster
from patchwork_serving.taken_apart import TakenApart, assignments_of
from patchwork_serving.transport import RayTransport, serve_handles

CALLS_KEPT = 64  #: of each component, to measure with


@dataclass(frozen=True, slots=True)
class Task:
    """Travels between our own processes only, through a pipe: the bundle holds secrets."""

    bundle: Bundle
    cluster: Cluster
    inputs: Sequence[Any]
    search: Search
    known: tuple[ComponentProfile, ...] = ()  #: taken from a stored profile instead of measured
    left_s: float = math.inf  #: for importing, samples and measuring together


async def profile(task: Task, progress: ProgressSink) -> Profile:
    """Samples, then one component after the other: two at once would share the machine."""
    name, started = task.bundle.release.name, time.monotonic()
    handle_of = serve_handles(name)
    calls = Calls(RayTransport(handle_of), CALLS_KEPT)
    orchestrator = Orchestrator(task.bundle, calls)
    try:
        with step(progress, "import", "importing the chain"):
            await asyncio.to_thread(orchestrator.start)
        sampled = await asyncio.to_thread(_samples, orchestrator.taken_apart, task, progress)
        ready = {spec.id: await handle_of(spec.id).born.remote() for spec in _placed(task.bundle)}
    finally:
        await asyncio.to_thread(orchestrator.close)
    used = usage(sampled.requests)
    components = []
    began, left = time.monotonic(), len(_measured_ids(task))
    task = replace(task, search=task.search.within(task.left_s - (began - started)))
    for spec in task.bundle.release.components:
        search = task.search.for_one(time.monotonic() - began, max(1, left))
        left -= spec.id in _measured_ids(task)
        found = replace(task, search=search)
        components.append(
            await _component(
                spec, calls.of.get(spec.id, []), used.get(spec.id), handle_of, ready.get(spec.id), found, progress
            )
        )
    return Profile(
        task.bundle.release.target,
        tuple(components),
        branches(sampled.requests),
        round(max(0.0, sampled.graph.glue_s or 0.0), 6),
    )


def _samples(apart: TakenApart, task: Task, progress: ProgressSink) -> Sampled:
    """One request after the other: a request alone is what visits and glue are of."""
    release = task.bundle.release
    cases = [case_of(value, f"--inputs: input {number}") for number, value in enumerate(task.inputs, 1)]

    def tell(done: int, request: SampledRequest) -> None:
        if request.error is not None:
            what = f"--inputs: input {done}: the chain raised {request.error}"
            raise UsageError(f"{what}; correct it (--input-key takes one field) or the chain")
        progress.update("samples", done, len(cases))

    with step(progress, "samples", f"running {len(cases)} sample inputs"):
        placed = Placed(release.graph.components, assignments_of(release), release.graph.opaque)
        return sample_graph(apart.loaded, apart.walk, placed, release.graph, cases, on_progress=tell)


async def _component(
    spec: ComponentSpec, calls: list[LeafCall], used: Usage | None, handle_of: Any, cold_s: float | None, task: Task, progress: ProgressSink
) -> ComponentProfile:  # fmt: skip
    used = used or Usage(0.0, 0.0, 0.0)
    of_samples: dict[str, Any] = {
        "visits": used.visits, "serial_visits": used.serial_visits, "call_sites": used.call_sites, **used.tokens(),
    }  # fmt: skip
    if spec.way == "external":
        return ComponentProfile(spec.id, kind=spec.kind, external=True, external_s=used.seconds, **of_samples)
    known = next((c for c in task.known if c.id == spec.id), None)
    if known is not None:
        return replace(known, **of_samples)
    if not calls and (made := made_up(spec, task.bundle.release.collections)) is not None:
        calls = [made]
    if not calls:
        raise UsageError(
            f"--inputs: no sample reaches {spec.id}, and only your code knows what a call of it looks like; "
            "add an input that reaches it, or take it from a stored profile (--reuse)"
        )
    measured, tokens = await _measured(spec, calls, handle_of, cold_s or 0.0, task.search, progress)
    return ComponentProfile(spec.id, measured=(measured,), kind=spec.kind, tokens=tokens, **of_samples)


async def _measured(
    spec: ComponentSpec, calls: list[LeafCall], handle_of: Any, cold_s: float, search: Search, progress: ProgressSink
) -> tuple[Measured, float | None]:
    step_id = f"measure-{spec.id}"

    async def measure(frames: Sequence[bytes], at_once: int) -> Run:
        run: Run = await handle_of(spec.id).measure.remote(list(frames), at_once)
        return run

    progress.begin(step_id, f"measuring {spec.id}")
    try:
        sweep = Sweep(spec, calls, measure, search, lambda batch: progress.update(step_id, note=f"{batch} at once"))
        measured = await sweep.run(cold_s)
    except BaseException:
        progress.fail(step_id)
        raise
    best = max(measured.points, key=lambda p: p.batch / p.seconds)
    progress.end(step_id, f"{best.batch / best.seconds:.3g} calls/s at batch {best.batch}")
    return measured, min((p.tokens for p in measured.points if p.tokens is not None), default=None)


def _measured_ids(task: Task) -> frozenset[str]:
    return frozenset(spec.id for spec in _placed(task.bundle)) - {component.id for component in task.known}


def _placed(bundle: Bundle) -> list[ComponentSpec]:
    return [spec for spec in bundle.release.components if spec.way != "external"]


def main(result: Path) -> int:
    """Progress goes to the real standard output as JSON lines; what the user's module prints goes to standard error."""
    progress = JsonProgress(sys.stdout)
    sys.stdout = sys.stderr
    size = int.from_bytes(sys.stdin.buffer.read(8))
    task: Task = pickle.loads(sys.stdin.buffer.read(size))  # from the command that started this process
    threading.Thread(target=_end_with_parent, name="patchwork-lifeline", daemon=True).start()
    try:
        serve_control.connect(task.cluster)
        document: dict[str, Any] = {"profile": asyncio.run(profile(task, progress)).to_json()}
    except (AdapterError, ServingError, SchedulerError) as error:
        document = {"error": {"type": type(error).__name__, "message": redacted(str(error))}}
    except Exception as error:  # noqa: BLE001  the loop top of a process: the parent tells the person
        sys.stderr.write(redacted_traceback(error))
        last = redacted(str(error)).splitlines()[-1:]
        document = {"error": {"type": type(error).__name__, "message": "".join(last)}}
    finally:
        serve_control.disconnect()
    result.write_text(json.dumps(document), encoding="utf-8")
    return 1 if "error" in document else 0


def _end_with_parent() -> None:
    """The command that started this process is gone: nobody reads the result."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
