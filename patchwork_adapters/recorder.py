"""What is known of a chain, put together as a :class:`ComponentGraph`: the walk, the placement, and the structure between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from patchwork_adapters.graph import CallSite, Component, ComponentGraph, Opaque
from patchwork_adapters.target import LoadedTarget
from patchwork_adapters.topology import edges_of
from patchwork_adapters.walk import Walk


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
    return ComponentGraph(
        target=target,
        framework=framework,
        components=tuple(components),
        call_sites=tuple(CallSite(leaf.path, owner[leaf.path]) for leaf in placed),
        edges=edges_of(chain, placed),
        opaque=(*opaque, *walk.opaque),
        notes=tuple(_notes(chain, walk)),
    )


def _notes(chain: Any, walk: Walk) -> Iterator[str]:
    if getattr(chain, "checkpointer", None):
        yield "the graph's checkpoints are kept in the orchestrator's process"
    stores = [leaf.path for leaf in walk.leaves if leaf.spec.export is not None]
    if stores:
        yield f"searched in Postgres, and kept in memory for filters that only Python can express: {', '.join(stores)}"
