"""Sample runs: inputs through a chain, one after another, every leaf call recorded; the graph learnt from them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from patchwork_adapters import sites
from patchwork_adapters.bridge import install_portal
from patchwork_adapters.causes import Causes, causes_of
from patchwork_adapters.chains import class_names
from patchwork_adapters.checking.cases import Case
from patchwork_adapters.checking.modes import config_of, fitted, steps_of, text_of, workflow_arguments
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.errors import AdapterError, RequestStopped
from patchwork_adapters.exact import user_class
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.learning import learnt
from patchwork_adapters.placement import Placed
from patchwork_adapters.probes import Probed, Probes
from patchwork_adapters.redaction import redacted
from patchwork_adapters.sampling import Sampled, SampledCall, SampledRequest
from patchwork_adapters.swap import methods_of
from patchwork_adapters.target import LoadedTarget
from patchwork_adapters.walk import Leaf, Walk

TIMEOUT_S = 300.0  #: of one sample: a model on a CPU may take a minute

Progress = Callable[[int, SampledRequest], None]  #: called after each request with how many are done


class SamplesFailed(AdapterError):
    """No sample came to its end, or the recorder itself failed."""

    status = 422
    title = "the sample runs failed"


def sample_graph(
    loaded: LoadedTarget,
    walk: Walk,
    placed: Placed,
    static: ComponentGraph,
    cases: Sequence[Case],
    *,
    on_progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Sampled:
    """Run ``cases`` through the chain's asynchronous entry point and learn from them; must not be called on an event loop.

    The chain's leaves are the user's own objects, or swapped or cut already, so that components answer. Raises SamplesFailed when
    every case raised.
    """
    probes = Probes()
    with ExitStack() as undone:
        undone.callback(probes.off)
        probes.on(
            walk.leaves,
            {leaf.path: _probed(leaf, placed) for leaf in walk.leaves if leaf.path in placed.assignments},
            {path: assignment.component for path, assignment in placed.assignments.items()},
        )
        undone.callback(sites.install(walk))
        sites.faults.clear()
        runner = undone.enter_context(asyncio.Runner())
        install_portal(runner.get_loop())
        ran = []
        for number, case in enumerate(cases):
            ran.append(_run(runner, loaded, probes, number, case, timeout_s))
            if on_progress is not None:
                on_progress(len(ran), ran[-1].request)
    _raise_faults(probes, ran)
    requests = tuple(r.request for r in ran)
    return Sampled(learnt(static, requests, [r.causes for r in ran]), requests)


@dataclass(frozen=True, slots=True)
class _Ran:
    request: SampledRequest
    causes: Causes
    why: str | None  #: what the chain raised, with its message


def _probed(leaf: Leaf, placed: Placed) -> tuple[str, ...]:
    assignment = placed.assignments[leaf.path]
    if assignment.way in ("protocol", "external"):
        return tuple(leaf.spec.cut(user_class(type(leaf.obj))))
    names = methods_of(leaf, assignment)
    return tuple(name for name in names if _is_read(name)) if leaf.spec.export is not None else names


def _is_read(name: str) -> bool:
    """Of an exported store: what asks its component. A swapped store may ask from the method that embeds the question first, so that no
    search by vector is seen; the probes begin such a call after what it called."""
    return "search" in name or "by_ids" in name or name in ("query", "aquery")


def _run(
    runner: asyncio.Runner, loaded: LoadedTarget, probes: Probes, number: int, case: Case, timeout_s: float
) -> _Ran:
    name = uuid.uuid4().hex
    entry = _entry(loaded)
    failed: BaseException | None = None
    with request_context(RequestContext(name, name, time.monotonic() + timeout_s)):
        probes.begin()
        began = time.perf_counter()
        try:
            runner.run(asyncio.wait_for(entry(loaded.chain, case), timeout_s))
        except (Exception, RequestStopped) as error:  # noqa: BLE001  the user's chain: its errors are part of what is recorded
            failed = error
        seconds = time.perf_counter() - began
    calls, causes = _with_loops(probes.take())
    request = SampledRequest(
        number, seconds, seconds - _busy_s(calls), calls, None if failed is None else type(failed).__name__
    )
    return _Ran(
        request,
        causes,
        None if failed is None else redacted(f"{type(failed).__name__}: {failed}").splitlines()[0][:300],
    )


def _with_loops(probed: Sequence[Probed]) -> tuple[tuple[SampledCall, ...], Causes]:
    causes = causes_of([p.call for p in probed], [p.moment for p in probed])
    return tuple(replace(p.call, loop=loop) for p, loop in zip(probed, causes.loops, strict=True)), causes


def _busy_s(calls: Sequence[SampledCall]) -> float:
    """Seconds in which at least one leaf worked."""
    total, until = 0.0, 0.0
    for call in calls:
        total += max(0.0, call.ended - max(call.started, until))
        until = max(until, call.ended)
    return total


def _raise_faults(probes: Probes, ran: Sequence[_Ran]) -> None:
    faults = [*sites.faults, *probes.faults]
    if faults:
        sites.faults.clear()
        raise SamplesFailed(
            f"recording failed {len(faults)} times while the chain ran, first with {type(faults[0]).__name__}: {redacted(str(faults[0]))}; "
            "the graph would be wrong"
        ) from ExceptionGroup("while recording", [f for f in faults if isinstance(f, Exception)])
    if ran and all(r.why is not None for r in ran):
        raise SamplesFailed(f"the chain raised on every input, first {ran[0].why}; give inputs as the chain takes them")


_Entry = Callable[[Any, Case], Awaitable[None]]


def _entry(loaded: LoadedTarget) -> _Entry:
    """The entry point that a deployed chain is called through."""
    if loaded.framework in ("langchain", "langgraph"):
        return _ainvoke
    names = class_names(type(loaded.chain))
    if "llama_index.core.base.base_query_engine.BaseQueryEngine" in names:
        return _aquery
    return _achat if "llama_index.core.chat_engine.types.BaseChatEngine" in names else _run_workflow


async def _ainvoke(chain: Any, case: Case) -> None:
    config: Mapping[str, Any] = config_of(chain, case)
    for step in steps_of(fitted(chain, case)):
        await chain.ainvoke(step, config)


async def _aquery(chain: Any, case: Case) -> None:
    response = await chain.aquery(text_of(case))
    if hasattr(response, "get_response"):  # a stream: read it to the end
        await response.get_response()


async def _achat(chain: Any, case: Case) -> None:
    await chain.achat(text_of(case))


async def _run_workflow(chain: Any, case: Case) -> None:
    await chain.run(**workflow_arguments(chain, case))
