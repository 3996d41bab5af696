"""The leaf calls of sample requests, as the transport sees them: how often each component is called, after which, and with what.

Pure but for the transport that writes them down.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from patchwork_adapters.graph import END, START
from patchwork_adapters.transport import LeafCall, Transport
from patchwork_scheduler.profile_model import Branch
from patchwork_serving.transport import Observation
from patchwork_serving.wire import Report


@dataclass(frozen=True, slots=True)
class Seen:
    """One call of one request."""

    request: str
    component: str
    began: float
    ended: float
    call: LeafCall


@dataclass(slots=True)
class Calls:
    """A Transport's calls, written down as they pass; also an observer for those of hosted APIs, which pass no transport of ours."""

    inner: Transport
    clock: Callable[[], float] = time.monotonic
    seen: list[Seen] = field(default_factory=list)

    async def call(self, call: LeafCall) -> bytes:
        with self.observe(call):
            return await self.inner.call(call)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        with self.observe(call):
            async for frame in self.inner.stream(call):
                yield frame

    @contextmanager
    def observe(self, call: LeafCall) -> Iterator[Observation]:
        began = self.clock()
        try:
            yield _Unseen()
        finally:
            request = call.request.request_id if call.request else ""
            self.seen.append(Seen(request, call.component, began, self.clock(), call))


class _Unseen:
    traceparent: str | None = None

    def reply(self, payload: bytes) -> None: ...

    def report(self, report: Report | None) -> None: ...

    def waited(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """How requests use one component."""

    visits: float  #: mean calls per request
    serial_visits: float  #: mean calls that follow one another: calls at once count once
    seconds: float  #: mean per call


def usage(seen: Sequence[Seen], requests: Sequence[str]) -> dict[str, Usage]:
    """By component id; components that no request called are missing."""
    by_component: dict[str, list[Seen]] = defaultdict(list)
    for call in seen:
        by_component[call.component].append(call)
    count = max(len(requests), 1)
    return {
        component: Usage(
            visits=len(calls) / count,
            serial_visits=sum(_in_a_row([c for c in calls if c.request == r]) for r in requests) / count,
            seconds=sum(c.ended - c.began for c in calls) / len(calls),
        )
        for component, calls in by_component.items()
    }


def _in_a_row(calls: Sequence[Seen]) -> int:
    """Groups of calls that do not overlap."""
    groups, end = 0, float("-inf")
    for call in sorted(calls, key=lambda c: c.began):
        if call.began >= end:
            groups += 1
        end = max(end, call.ended)
    return groups


def glue_s(seen: Sequence[Seen], spans: Mapping[str, tuple[float, float]]) -> float:
    """Mean seconds of a request in which no component worked for it."""
    if not spans:
        return 0.0
    alone = [end - began - _covered([c for c in seen if c.request == r]) for r, (began, end) in spans.items()]
    return max(0.0, sum(alone) / len(alone))


def _covered(calls: Sequence[Seen]) -> float:
    total, until = 0.0, float("-inf")
    for call in sorted(calls, key=lambda c: c.began):
        total += max(0.0, call.ended - max(call.began, until))
        until = max(until, call.ended)
    return total


def branches(seen: Sequence[Seen], requests: Sequence[str]) -> tuple[Branch, ...]:
    """How often the next call after one of a component was of which other; ``START`` and ``END`` are the ends of a request."""
    steps: Counter[tuple[str, str]] = Counter()
    for request in requests:
        path = [c.component for c in sorted((c for c in seen if c.request == request), key=lambda c: c.began)]
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
