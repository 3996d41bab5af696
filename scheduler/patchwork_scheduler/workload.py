"""What is simulated: the sites that requests visit, and when requests arrive. Seeds are arguments."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from patchwork_scheduler.errors import InvalidWorkload

END = "__end__"


@dataclass(frozen=True, slots=True)
class Way:
    """Where requests go after a site."""

    target: str  #: a site, or END
    probability: float


@dataclass(frozen=True, slots=True)
class Site:
    """A call-site: ``fan`` equal calls at once, then one of ``ways``."""

    id: str
    component: str
    fan: int = 1
    size: int = 1  #: work items per call, batch engines
    prompt_tokens: int = 0
    output_tokens: int = 0
    output_spread: float = 0.0  #: of output tokens: uniform within +- this share of the mean
    ways: tuple[Way, ...] = (Way(END, 1.0),)
    max_visits: int = 8  #: then the first way that leads on to a site not exhausted, or END


@dataclass(frozen=True, slots=True)
class Step:
    """One visit of one request: what the request will do, unknown to everything that decides."""

    site: Site
    loop: int
    output_tokens: int


Path = tuple[Step, ...]


class Workload:
    """Sites from ``start``: a site, or ways that requests begin with.

    InvalidWorkload when a way leads nowhere, or probabilities do not sum to one.
    """

    def __init__(self, start: str | Sequence[Way], sites: Iterable[Site]) -> None:
        self.sites = {site.id: site for site in sites}
        self._entry = Site("the start", "", ways=(Way(start, 1.0),) if isinstance(start, str) else tuple(start))
        for site in (self._entry, *self.sites.values()):
            total = sum(way.probability for way in site.ways)
            if abs(total - 1.0) > 1e-6:
                raise InvalidWorkload(f"the ways out of {site.id!r} have probabilities that sum to {total:g}, not 1")
            if unknown := {way.target for way in site.ways} - self.sites.keys() - {END}:
                raise InvalidWorkload(
                    f"ways out of {site.id!r} lead to {sorted(unknown)}, which are no sites; there are {sorted(self.sites)}"
                )

    @property
    def components(self) -> set[str]:
        return {site.component for site in self.sites.values()}

    def path(self, rng: random.Random) -> Path:
        """One request, drawn; it visits at least one site."""
        while not (steps := self._walk(rng)):
            pass
        return tuple(steps)

    def _walk(self, rng: random.Random) -> list[Step]:
        steps: list[Step] = []
        visits: dict[str, int] = {}
        at = self._next(self._entry, visits, rng)
        while at != END:
            site = self.sites[at]
            loop = visits.get(at, 0)
            visits[at] = loop + 1
            steps.append(Step(site, loop, self._output(site, rng)))
            at = self._next(site, visits, rng)
        return steps

    def _next(self, site: Site, visits: Mapping[str, int], rng: random.Random) -> str:
        if len(site.ways) == 1:
            target = site.ways[0].target
        else:
            target = rng.choices([w.target for w in site.ways], [w.probability for w in site.ways])[0]
        if target != END and visits.get(target, 0) >= self.sites[target].max_visits:
            return next((w.target for w in site.ways if w.target == END or not visits.get(w.target, 0)), END)
        return target

    def _output(self, site: Site, rng: random.Random) -> int:
        if not site.output_spread or not site.output_tokens:
            return site.output_tokens
        return max(1, round(site.output_tokens * rng.uniform(1 - site.output_spread, 1 + site.output_spread)))


# -- arrivals: increasing seconds from 0 --------------------------------------------------------------------------------


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Endless arrivals of ``rate`` per second."""
    return gamma(rate, 1.0, seed)


def gamma(rate: float, cv: float, seed: int) -> Iterator[float]:
    """Endless arrivals whose gaps have the coefficient of variation ``cv``: 1 is Poisson, above is bursty."""
    if rate <= 0 or cv <= 0:
        raise InvalidWorkload(f"rate and cv of arrivals must be positive, not {rate} and {cv}")
    rng = random.Random(seed)
    shape = 1.0 / (cv * cv)
    at = 0.0
    while True:
        at += rng.gammavariate(shape, 1.0 / (rate * shape))
        yield at


def at_rate(times: Sequence[float], rate: float) -> Iterator[float]:
    """The recorded ``times``, compressed or stretched to a mean of ``rate`` per second, repeated without end."""
    if len(times) < 2 or times[-1] <= times[0]:
        raise InvalidWorkload("a trace needs two arrivals at different times")
    span = times[-1] - times[0]
    factor = (len(times) - 1) / span / rate
    for lap in itertools.count():
        start = lap * (span * factor + 1.0 / rate)
        for time in times:
            yield start + (time - times[0]) * factor


def trace_times(lines: Iterable[str]) -> list[float]:
    """Arrival seconds of a trace: CSV with TIMESTAMP (date and time), or JSON lines with ``timestamp`` (seconds, or ms as a number).

    Text timestamps in JSON are seconds, numbers are milliseconds, as the published RAGPulse and Mooncake files have them.
    """
    rows = iter([line for line in lines if line.strip()])
    first = next(rows, "")
    if first.startswith("{"):
        return sorted(_json_seconds(json.loads(line)) for line in itertools.chain([first], rows))
    reader = csv.DictReader(itertools.chain([first], rows))
    if "TIMESTAMP" not in (reader.fieldnames or ()):
        raise InvalidWorkload("a trace is CSV with a TIMESTAMP column, or JSON lines with timestamp")
    return sorted(datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in reader)


def _json_seconds(row: Mapping[str, Any]) -> float:
    try:
        stamp = row["timestamp"]
    except KeyError:
        raise InvalidWorkload("a line of the trace has no timestamp") from None
    return float(stamp) if isinstance(stamp, str) else stamp / 1000.0
