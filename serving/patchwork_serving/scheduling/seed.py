"""What a release's graph says of the work ahead, before any traffic. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from patchwork_adapters.graph import END, START, ComponentGraph
from patchwork_serving.scheduling import journeys

#: Rounds in which work is passed back along the edges: loops converge as the chance of a further turn to the power of the rounds.
ROUNDS = 60


def seeds(graph: ComponentGraph) -> Iterator[tuple[str, float, Mapping[str, float]]]:
    """(call-site, work ahead, demand by component) for each site that samples have timed, and for the door; none without samples."""
    seconds = {site.id: site.seconds for site in graph.call_sites if site.seconds is not None}
    component = {site.id: site.component for site in graph.call_sites}
    follows: dict[str, list[tuple[str, float]]] = {}
    for edge in graph.edges:
        if edge.probability is not None and edge.target != END:
            follows.setdefault(edge.source, []).append((edge.target, edge.probability))
    if not seconds or START not in follows:
        return
    demand: dict[str, dict[str, float]] = {site: {} for site in (START, *component)}
    for _ in range(ROUNDS):
        demand = {site: _round(site, seconds, component, follows, demand) for site in demand}
    for site, found in demand.items():
        if site == START or site in seconds:
            yield journeys.START if site == START else site, sum(found.values()), found


def _round(
    site: str, seconds: Mapping[str, float], component: Mapping[str, str],
    follows: Mapping[str, list[tuple[str, float]]], demand: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:  # fmt: skip
    found: dict[str, float] = {}
    if site in seconds:
        found[component[site]] = seconds[site]
    for target, probability in follows.get(site, ()):
        for name, ahead in demand.get(target, {}).items():
            found[name] = found.get(name, 0.0) + probability * ahead
    return found
