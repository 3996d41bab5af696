"""One request's way through its call-sites: which calls it made, what overlapped, and what was thus still ahead of each. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchwork_scheduler.estimate import Visit
from patchwork_scheduler.model import SloClass, State

#: The state of a request that has called nothing yet.
START = "__start__"
#: A call-site visited more often counts as visited this often: states must not grow without end.
MAX_LOOP = 31
#: Visits kept per request, and how many of them are compared with one another; a request with more is summed up in order.
MAX_VISITS = 256
MAX_COMPARED = 64


@dataclass(slots=True)
class Stay:
    """A visit under way or over: all calls that a request made at one call-site at once."""

    state: State
    component: str
    started: float
    ended: float = 0.0
    open: int = 0  #: calls in flight
    work_s: float = 0.0  #: with the engine to itself, the longest of the calls
    occupied_s: float = 0.0  #: of all calls together


@dataclass(slots=True)
class Journey:
    """Owned by ``Scheduling``; one for each request in flight. ``weight``: inputs of a batch, which travel as one request."""

    slo: SloClass
    arrived: float
    weight: int = 1
    predicted_s: float = 0.0  #: at the door, from there to the end
    stays: list[Stay] = field(default_factory=list)
    _open: dict[str, Stay] = field(default_factory=dict)
    _loops: dict[str, int] = field(default_factory=dict)
    _in_flight: int = 0
    _idle_since: float | None = None
    _idle: list[tuple[float, float]] = field(
        default_factory=list
    )  #: times in which no call was in flight: (until, seconds)

    def begin(self, site: str, component: str, now: float) -> tuple[Stay, bool]:
        """A call goes out; the visit that it belongs to, and whether it is a new one."""
        if not self._in_flight:
            since = self.arrived if self._idle_since is None else self._idle_since
            self._idle.append((now, max(now - since, 0.0)))
        self._in_flight += 1
        stay = self._open.get(site)
        if stay is not None:
            stay.open += 1
            return stay, False
        # the inputs of a batch go through the same sites side by side: their visits cannot be told apart
        loop = self._loops.get(site, 0) if self.weight == 1 else 0
        self._loops[site] = min(loop + 1, MAX_LOOP)
        stay = self._open[site] = Stay(State(site, loop), component, now, open=1)
        if len(self.stays) < MAX_VISITS:
            self.stays.append(stay)
        return stay, True

    def end(self, stay: Stay, work_s: float, occupied_s: float, now: float) -> None:
        """A call of the visit is over."""
        stay.work_s = max(stay.work_s, work_s)
        stay.occupied_s += occupied_s
        stay.open -= 1
        self._in_flight -= 1
        if not stay.open:
            stay.ended = now
            self._open.pop(stay.state.site, None)
        if not self._in_flight:
            self._idle_since = now

    def visits(self, finished: float) -> list[Visit]:
        """The whole way, the door included, for ``Estimates.observe``; empty for a batch, and for a request that called nothing."""
        if not self.stays or self.weight > 1:
            return []
        glue = self._glue_until(finished)
        ahead = _ahead(self.stays, glue, finished) if len(self.stays) <= MAX_COMPARED else {}
        whole = max(ahead[i] + glue(stay.started) for i, stay in enumerate(self.stays)) if ahead else None
        door = Visit(State(START), self.stays[0].component, self.arrived, 0.0, 0.0, whole)
        return [door, *(
            Visit(stay.state, stay.component, stay.started, stay.work_s, stay.occupied_s, ahead.get(i))
            for i, stay in enumerate(self.stays)
        )]  # fmt: skip

    def _glue_until(self, finished: float) -> _Glue:
        idle = list(self._idle)
        if not self._in_flight and self._idle_since is not None:
            idle.append((finished, max(finished - self._idle_since, 0.0)))
        return _Glue(idle)


class _Glue:
    """Seconds up to a time in which the chain itself worked, or waited for what is no component."""

    def __init__(self, idle: Sequence[tuple[float, float]]) -> None:
        self._until = [until for until, _ in idle]
        self._sums = [0.0, *itertools.accumulate(seconds for _, seconds in idle)]

    def __call__(self, time: float) -> float:
        return self._sums[bisect.bisect_right(self._until, time)]


def _ahead(stays: Sequence[Stay], glue: _Glue, finished: float) -> Mapping[int, float]:
    """Work from each visit on: its own, and the longest way through visits that began after its end, the chain's own work between."""
    ahead: dict[int, float] = {}
    end = glue(finished)
    before = [glue(stay.started) for stay in stays]
    for i in range(len(stays) - 1, -1, -1):
        stay = stays[i]
        over = stay.ended or finished
        done = glue(over)
        later = [ahead[j] + before[j] - done for j in range(i + 1, len(stays)) if stays[j].started >= over]
        ahead[i] = stay.work_s + max(later, default=max(end - done, 0.0))
    return ahead
