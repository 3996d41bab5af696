"""One load from beginning to end: try the application, measure it unloaded, send the arrivals, sum up."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from patchwork_serving.bench.apis import Api, ApiName, api
from patchwork_serving.bench.arrivals import MAX_REQUESTS, Arrivals, schedule
from patchwork_serving.bench.environment import environment
from patchwork_serving.bench.open_loop import OpenLoop
from patchwork_serving.bench.report import LoadReport, summarise
from patchwork_serving.errors import ServingError, UsageError
from patchwork_serving.progress import ProgressSink, SilentProgress, step
from patchwork_serving.urls import shown

SLO_FACTOR = 2.0  #: of the unloaded mean, when no SLO is given (the paper's)
UNLOADED = 10  #: requests one after the other
#: how long a client waits: many times the SLO, so that what is late is told apart from what never comes
TIMEOUT_FACTOR, TIMEOUT_LEAST_S = 10.0, 30.0
INFO_TIMEOUT_S = 3.0

Stops = Callable[[Callable[[], None]], None]  #: is given what ends the load early


class NotAnswered(ServingError):
    """The application does not answer the first request, so that there is nothing to load."""

    title = "the application does not answer"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load. Seconds, and requests per second."""

    rate: float | None = None  #: None: a trace's own
    duration_s: float | None = 30.0  #: of the steady state, after the warm-up
    requests: int | None = None  #: of the steady state, instead of a duration
    warmup_s: float = 5.0  #: load that is sent and not counted
    slo_s: float | None = None  #: None: twice the unloaded mean, measured first
    api: ApiName = "langserve"
    stream: bool = False
    model: str | None = None  #: for OpenAI's route
    headers: Mapping[str, str] = field(default_factory=dict)
    tell_deadline: bool = (
        False  #: send the SLO as x-request-timeout-seconds: what is late is cancelled by the application
    )
    timeout_s: float | None = None  #: at least the SLO; None: ten times it
    connections: int = 1024
    unloaded: int = UNLOADED
    seed: int = 1
    max_requests: int = MAX_REQUESTS
    environment: Mapping[str, Any] = field(default_factory=dict)  #: further facts for the report


def run_load(
    url: str,
    arrivals: Arrivals,
    inputs: Sequence[Any],
    options: LoadOptions = LoadOptions(),
    progress: ProgressSink | None = None,
) -> LoadReport:
    """:func:`load`, for programs without an event loop."""
    return asyncio.run(load(url, arrivals, inputs, options, progress or SilentProgress()))


async def load(
    url: str,
    arrivals: Arrivals,
    inputs: Sequence[Any],
    options: LoadOptions,
    progress: ProgressSink,
    stops: Stops | None = None,
) -> LoadReport:
    """Load ``url`` with ``inputs`` in turn. Raises UsageError and NotAnswered before the first arrival; after it, always reports."""
    if not inputs:
        raise UsageError("there are no inputs to send")
    times = _times(arrivals, options)
    asked = await _api(url.rstrip("/"), options)
    bodies = [asked.encoded(value) for value in inputs]
    with step(progress, "unloaded", "asking one after the other"):
        mean = await unloaded_mean(asked, bodies, options)
        told = await _info(url, asked.headers)
    slo_s = options.slo_s if options.slo_s is not None else SLO_FACTOR * _known(mean)
    timeout_s = _timeout(options, slo_s)
    if options.tell_deadline:
        asked = replace(asked, headers={**asked.headers, "x-request-timeout-seconds": f"{slo_s:.6g}"})

    def count(sent: int, ended: int) -> None:
        progress.update("load", sent, len(times), f"{sent} sent, {sent - ended} in flight")

    loop = OpenLoop(asked, bodies, times, timeout_s=timeout_s, connections=options.connections, told=count)
    if stops is not None:
        stops(loop.stop)
    with step(progress, "load", f"{len(times)} requests in {times[-1]:.0f} s, {_rate_text(options)}"):
        seen = await loop.run()
    start, end = _window(times, options)
    if loop.stopped and seen:
        # arrivals after the stop were never offered; stopped while warming up, that is all there is to tell
        end = min(end, seen[-1].intended + 1e-3)
        start = start if start < end else 0.0
    return LoadReport(
        **summarise(seen, slo_s, start, end), partial=loop.stopped, asked_rate=options.rate, unloaded_mean_s=mean,
        settings=_settings(url, arrivals, options, timeout_s), environment={**environment(told), **options.environment},
    )  # fmt: skip


async def unloaded_mean(asked: Api, bodies: Sequence[bytes], options: LoadOptions) -> float | None:
    """Seconds of a request that has the application to itself; None when an SLO is given, which needs none.

    The first request warms up and is not counted. Raises NotAnswered when one is not answered whole.
    """
    count = options.unloaded if options.slo_s is None else 0
    timeout_s = options.timeout_s or 120.0
    taken = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for number in range(count + 1):
            began = asyncio.get_running_loop().time()
            answer = await asked.ask(client, bodies[number % len(bodies)], timeout_s)
            if not answer.is_whole:
                raise _not_answered(asked, answer.status, answer.error)
            taken.append(asyncio.get_running_loop().time() - began)
    return statistics.fmean(taken[1:]) if count else None


def _not_answered(asked: Api, status: int | None, error: str | None) -> ServingError:
    told = " ".join(str(part) for part in (status, error) if part is not None)
    line = f"POST {shown(asked.url)}: {told}"
    match status:
        case 422 | 400:
            return UsageError(f"{line}; the inputs do not fit the application: --input-key takes one field of each")
        case 401 | 403:
            return UsageError(
                f"{line}; send what it needs with --header, or set PATCHWORK_API_KEY, which goes to this machine's applications only"
            )
        case 404 | 405:
            return UsageError(f"{line}; is this the application's URL, and does it speak what --api names?")
        case _:
            return NotAnswered(line)


async def _api(url: str, options: LoadOptions) -> Api:
    model = options.model
    if options.api == "openai" and model is None:
        model = await _first_model(url if url.endswith("/v1") else f"{url}/v1", options.headers)
    return api(options.api, url, stream=options.stream, headers=options.headers, model=model)


async def _first_model(base: str, headers: Mapping[str, str]) -> str | None:
    document = await _get(f"{base}/models", headers)
    listed = (document or {}).get("data")
    first = listed[0] if isinstance(listed, list) and listed else {}
    return first.get("id") if isinstance(first, dict) else None


async def _info(url: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
    return await _get(f"{url.rstrip('/')}/info", headers)


async def _get(url: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """A JSON object; None when there is none: other servers need not have this route."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=INFO_TIMEOUT_S) as client:
            answer = await client.get(url, headers=dict(headers))
        document = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _known(mean: float | None) -> float:
    assert mean is not None, "measured when no SLO is given"
    return mean


def _timeout(options: LoadOptions, slo_s: float) -> float:
    if options.timeout_s is None:
        return max(TIMEOUT_LEAST_S, TIMEOUT_FACTOR * slo_s)
    if options.timeout_s < slo_s:
        raise UsageError(
            f"--timeout {options.timeout_s:g}s is below the SLO of {slo_s:g} s: a late answer could not be told from none"
        )
    return options.timeout_s


def _times(arrivals: Arrivals, options: LoadOptions) -> list[float]:
    """Warm-up first, then the steady state."""
    if options.requests is None:
        seconds = None if options.duration_s is None else options.warmup_s + options.duration_s
        return schedule(arrivals, options.rate, seconds, None, seed=options.seed, limit=options.max_requests)
    extra = round(options.warmup_s * (options.rate or 0.0))
    return schedule(
        arrivals, options.rate, None, options.requests + extra, seed=options.seed, limit=options.max_requests
    )


def _window(times: Sequence[float], options: LoadOptions) -> tuple[float, float]:
    if options.requests is None and options.duration_s is not None:
        return options.warmup_s, options.warmup_s + options.duration_s
    if options.requests is None:
        return min(options.warmup_s, times[-1] / 2), times[-1] + 1e-9
    start = times[max(0, len(times) - options.requests)]
    # as long as the mean gap after the last one too, or n requests would fill n - 1 gaps
    counted = len([at for at in times if at >= start])
    gap = (times[-1] - start) / max(1, counted - 1)
    return start, times[-1] + max(gap, 1e-9)


def _rate_text(options: LoadOptions) -> str:
    return f"{options.rate:g} per second" if options.rate is not None else "at the trace's rate"


def _settings(url: str, arrivals: Arrivals, options: LoadOptions, timeout_s: float) -> dict[str, Any]:
    name = Path(arrivals).name if isinstance(arrivals, str | Path) else "given times"
    return {
        "url": shown(url), "api": options.api, "stream": options.stream, "arrivals": name, "warmup_s": options.warmup_s,
        "duration_s": options.duration_s if options.requests is None else None, "requests": options.requests,
        "timeout_s": timeout_s, "connections": options.connections, "seed": options.seed, "tell_deadline": options.tell_deadline,
    }  # fmt: skip
