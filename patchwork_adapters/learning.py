"""Sampled requests as a :class:`ComponentGraph`: numbers for call-sites and edges, and what the structure shows but no sample took."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from patchwork_adapters.causes import Causes
from patchwork_adapters.graph import END, START, CallSite, ComponentGraph, Edge, EdgeKind
from patchwork_adapters.sampling import SampledCall, SampledRequest
from patchwork_adapters.sites import is_within, leaf_of


def learnt(static: ComponentGraph, requests: Sequence[SampledRequest], causes: Sequence[Causes]) -> ComponentGraph:
    """``static`` with what the requests showed; requests that failed count as far as they came."""
    seen = list(dict.fromkeys(call.site for request in requests for call in request.calls))
    names = _Names(static, seen)
    taken = dict(_taken(requests, causes))
    return dataclasses.replace(
        static,
        call_sites=tuple(_sites(static, names, requests, causes)),
        edges=(*taken.values(), *_untaken(static, names, taken)),
        requests=len(requests),
        glue_s=fmean(request.glue_s for request in requests) if requests else None,
    )


class _Names:
    """A place as the structure names it, and the more exact names under which runs showed it."""

    def __init__(self, static: ComponentGraph, seen: Iterable[str]) -> None:
        self.exact: dict[str, list[str]] = {site.id: [] for site in static.call_sites}
        self.new: list[str] = []  #: seen at places that the structure does not show
        for site in seen:
            outer = [name for name in self.exact if is_within(site, name)]
            if outer:
                self.exact[max(outer, key=len)].append(site)
            else:
                self.new.append(site)

    def of(self, name: str) -> list[str]:
        return self.exact.get(name) or [name]

    def was_seen(self, name: str) -> bool:
        return name in (START, END) or bool(self.exact.get(name))


def _sites(
    static: ComponentGraph, names: _Names, requests: Sequence[SampledRequest], causes: Sequence[Causes]
) -> Iterator[CallSite]:
    owner = {leaf: component.id for component in static.components for leaf in component.leaves}
    calls: dict[str, list[SampledCall]] = defaultdict(list)
    reached: dict[str, int] = defaultdict(int)
    for request in requests:
        for call in request.calls:
            calls[call.site].append(call)
        for site in {call.site for call in request.calls}:
            reached[site] += 1
    in_order = [site for static_site in static.call_sites for site in names.of(static_site.id)]
    for site in dict.fromkeys([*in_order, *names.new]):
        component = owner.get(leaf_of(site)) or calls[site][0].component
        serial = [cause.serial.get(site, 0) for cause in causes]
        yield _site(site, component, calls[site], reached[site], serial)


def _site(site: str, component: str, calls: Sequence[SampledCall], reached: int, serial: Sequence[int]) -> CallSite:
    prompt, output = _mean(c.prompt_tokens for c in calls), _mean(c.output_tokens for c in calls)
    return CallSite(
        id=site, component=component, visits=len(calls) / len(serial), seconds=_mean(c.seconds for c in calls),
        tokens=None if prompt is None and output is None else (prompt or 0.0) + (output or 0.0),
        prompt_tokens=prompt, output_tokens=output, serial=fmean(serial), loops=max(serial), reached=reached / len(serial),
        size=_mean(c.size for c in calls),
    )  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _taken(requests: Sequence[SampledRequest], causes: Sequence[Causes]) -> Iterator[tuple[tuple[str, str], Edge]]:
    """Edges that were taken. The probability is that of the target after a visit of the source; several may follow at once."""
    visits: dict[str, int] = defaultdict(int)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    back: dict[tuple[str, str], int] = defaultdict(int)
    many: dict[tuple[str, str], int] = defaultdict(int)
    for request, cause in zip(requests, causes, strict=True):
        first: dict[str, int] = {}
        visits[START] += 1
        for visit in cause.visits:
            visits[visit.site] += 1
            first.setdefault(visit.site, visit.calls[0])
        for source, target in _named(cause):
            counts[source, target] += 1
        for a, b in cause.steps:
            if b is not None:
                source = START if a is None else cause.visits[a].site
                into = cause.visits[b]
                many[source, into.site] += len(into.calls) > 1
                back[source, into.site] += a is not None and first[into.site] <= first[source]
        del request
    for (source, target), count in counts.items():
        probability = count / visits[source]
        kind = _kind(probability, back[source, target] > count / 2, many[source, target] > 0)
        yield (source, target), Edge(source, target, kind, probability, count)


def _named(cause: Causes) -> Iterator[tuple[str, str]]:
    """Each visit of a source with each target that followed it, once."""
    pairs = {
        (a, START if a is None else cause.visits[a].site, END if b is None else cause.visits[b].site)
        for a, b in cause.steps
    }
    yield from (
        (source, target) for _, source, target in sorted(pairs, key=lambda p: (-1 if p[0] is None else p[0], p[2]))
    )


def _kind(probability: float, is_back: bool, has_many: bool) -> EdgeKind:
    if is_back:
        return "loop"
    if has_many:
        return "map"
    return "cond" if probability < 1.0 else "data"


def _untaken(static: ComponentGraph, names: _Names, taken: Mapping[tuple[str, str], Edge]) -> Iterator[Edge]:
    """Edges of the structure that no sample took. Where both ends were seen, only a condition says that it could have been."""
    for edge in static.edges:
        pairs = [(source, target) for source in names.of(edge.source) for target in names.of(edge.target)]
        if any(pair in taken for pair in pairs):
            continue
        if edge.kind == "cond" or not (names.was_seen(edge.source) and names.was_seen(edge.target)):
            yield from (Edge(source, target, edge.kind, 0.0, 0) for source, target in pairs)
