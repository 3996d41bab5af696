"""How sample requests use a chain's components, and the calls themselves, to measure with.

Who called what, when, and with how many tokens is seen by the probes of ``patchwork_adapters.sample_runs``, as for ``inspect --inputs``;
what a call looks like on its way is seen by the transport.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from patchwork_adapters.graph import END, START
from patchwork_adapters.sampling import SampledCall, SampledRequest
from patchwork_adapters.transport import LeafCall, Transport
from patchwork_scheduler.profile_model import Branch


@dataclass(slots=True)
class Calls:
    """A Transport that keeps the first calls of each component as they pass."""

    inner: Transport
    kept: int
    of: dict[str, list[LeafCall]] = field(default_factory=lambda: defaultdict(list))

    async def call(self, call: LeafCall) -> bytes:
        self._keep(call)
        return await self.inner.call(call)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self._keep(call)
        async for frame in self.inner.stream(call):
            yield frame

    def _keep(self, call: LeafCall) -> None:
        mine = self.of[call.component]
        if len(mine) < self.kept:
            mine.append(call)


@dataclass(frozen=True, slots=True)
class Usage:
    """How requests use one component."""

    visits: float  #: mean calls per request
    serial_visits: float  #: mean calls that follow one another: calls at once count once
    seconds: float  #: mean per call
    prompt_tokens: float | None = None  #: mean per call, where the leaf tells
    output_tokens: float | None = None
    call_sites: tuple[str, ...] = ()  #: as :func:`branches` names them

    def tokens(self) -> dict[str, float]:
        """Those that are known."""
        named = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        return {name: tokens for name, tokens in named.items() if tokens is not None}


def usage(requests: Sequence[SampledRequest]) -> dict[str, Usage]:
    """By component id; components that no request called are missing."""
    by_component: dict[str, list[SampledCall]] = defaultdict(list)
    for request in requests:
        for call in request.calls:
            by_component[call.component].append(call)
    stops = [_stops(request.calls) for request in requests]
    sites: dict[str, dict[str, None]] = defaultdict(dict)
    for stop in (stop for each in stops for stop in each):
        sites[stop.component][stop.site] = None
    return {
        component: Usage(
            visits=len(calls) / len(requests),
            serial_visits=sum(stop.component == component for each in stops for stop in each) / len(requests),
            seconds=fmean(call.seconds for call in calls),
            prompt_tokens=_mean(call.prompt_tokens for call in calls),
            output_tokens=_mean(call.output_tokens for call in calls),
            call_sites=tuple(sites[component]),
        )
        for component, calls in by_component.items()
    }


def branches(requests: Sequence[SampledRequest]) -> tuple[Branch, ...]:
    """How often the next stop after a call-site was which other; ``START`` and ``END`` are the ends of a request."""
    steps: Counter[tuple[str, str]] = Counter()
    for request in requests:
        path = [stop.site for stop in _stops(request.calls)]
        steps.update(zip([START, *path], [*path, END], strict=True))
    left: Counter[str] = Counter()
    for (source, _), times in steps.items():
        left[source] += times
    return tuple(
        Branch(
            source,
            target,
            times / left[source],
            "loop" if source == target else "data" if times == left[source] else "cond",
        )
        for (source, target), times in sorted(steps.items())
    )


def _stops(calls: Sequence[SampledCall]) -> list[SampledCall]:
    """The first of each row of a component's calls that overlap; of different components, those made at once are passed in turn."""
    ends: dict[str, float] = {}
    stops = []
    for call in sorted(calls, key=lambda c: c.started):
        until = ends.get(call.component)
        if until is None or call.started >= until:
            stops.append(call)
        ends[call.component] = max(call.ended, until or call.ended)
    return stops


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
