"""What is known of a chain, put together as a :class:`ComponentGraph`: the walk, the placement, and the structure between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from patchwork_adapters.graph import END, START, CallSite, Component, ComponentGraph, Edge, Opaque
from patchwork_adapters.sites import leaf_of
from patchwork_adapters.state import affinity_of, kept_by, notes_of
from patchwork_adapters.target import LoadedTarget
from patchwork_adapters.topology import edges_of
from patchwork_adapters.walk import Leaf, Walk


def static_graph(
    target: str, loaded: LoadedTarget, walk: Walk, components: Sequence[Component], opaque: Sequence[Opaque] = ()
) -> ComponentGraph:
    """Before any run: no visits, probabilities or times. Call-sites are the leaves that are part of a component, named by path."""
    return graph_of(target, loaded.framework, loaded.chain, walk, components, opaque)


def graph_of(
    target: str, framework: str, chain: Any, walk: Walk, components: Sequence[Component], opaque: Sequence[Opaque] = ()
) -> ComponentGraph:
    owner = {leaf: component.id for component in components for leaf in component.leaves}
    placed = [leaf for leaf in walk.leaves if leaf.path in owner]
    edges = edges_of(chain, placed, {id(part): path for path, part in walk.parts})
    return ComponentGraph(
        target=target,
        framework=framework,
        components=tuple(components),
        call_sites=static_sites(edges, placed, owner),
        edges=edges,
        opaque=(*opaque, *walk.opaque),
        notes=tuple(_notes(walk)),
        affinity=affinity_of(kept_by(walk)),
    )


def static_sites(edges: Sequence[Edge], leaves: Sequence[Leaf], owner: Mapping[str, str]) -> tuple[CallSite, ...]:
    """The call-sites that the structure shows, in the order of the walk; a leaf that it shows nowhere is one of its own name."""
    shown: dict[str, dict[str, None]] = {leaf.path: {} for leaf in leaves}
    for edge in edges:
        for site in (edge.source, edge.target):
            if site not in (START, END):
                shown[leaf_of(site)][site] = None
    return tuple(CallSite(site, owner[path]) for path, sites in shown.items() for site in sites or {path: None})


def _notes(walk: Walk) -> Iterator[str]:
    yield from notes_of(kept_by(walk))
    for leaf in walk.leaves:
        if leaf.late is not None:
            name, where = leaf.cls.rpartition(".")[2], ", ".join(leaf.late.where)
            yield f"{leaf.path}: constructed on each call at {where}; one {name}, made beforehand, works for all of them"
    stores = [leaf.path for leaf in walk.leaves if leaf.spec.export is not None]
    if stores:
        yield f"searched in Postgres, and kept in memory for filters that only Python can express: {', '.join(stores)}"
