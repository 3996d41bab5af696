"""How data moves between the leaves of a chain, as far as its structure shows.

LCEL's combinators, LangGraph's builder and LlamaIndex's usual engines are read; anything else is a bundle: the leaves inside it, in no
known order. Probabilities and counts are learnt from runs, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.graph import END, START, Edge, EdgeKind
from patchwork_adapters.sites import at
from patchwork_adapters.sites import part as name_part
from patchwork_adapters.walk import Leaf, parts_of


@dataclass(frozen=True, slots=True)
class Flow:
    """A part of the chain: where data enters, where it leaves, and what happens between. Names are call-site ids."""

    entries: Mapping[str, EdgeKind]
    exits: tuple[str, ...]
    edges: tuple[tuple[str, str, EdgeKind], ...] = ()
    can_skip: bool = False  #: data may pass without touching any leaf

    def as_kind(self, kind: EdgeKind) -> Flow:
        return Flow(dict.fromkeys(self.entries, kind), self.exits, self.edges, self.can_skip)


NOTHING = Flow({}, (), (), can_skip=True)


def edges_of(chain: Any, leaves: Sequence[Leaf], places: Mapping[int, str] | None = None) -> tuple[Edge, ...]:
    """Edges between the leaves' call-sites, from START to END. ``places``: paths of the chain's other parts, by ``id``."""
    flow = _Reader(leaves, places or {}).read(chain)
    edges = [(START, site, kind) for site, kind in flow.entries.items()]
    edges += list(flow.edges)
    edges += [(site, END, "data") for site in flow.exits]
    return tuple(Edge(source, target, kind) for source, target, kind in dict.fromkeys(edges))


def in_sequence(flows: Iterable[Flow]) -> Flow:
    whole = NOTHING
    for flow in flows:
        if not flow.entries:
            continue
        joined = tuple((site, entry, kind) for site in whole.exits for entry, kind in flow.entries.items())
        entries = {**whole.entries, **(flow.entries if whole.can_skip else {})}
        exits = (*whole.exits, *flow.exits) if flow.can_skip else flow.exits
        whole = Flow(entries, _unique(exits), (*whole.edges, *joined, *flow.edges), whole.can_skip and flow.can_skip)
    return whole


def side_by_side(flows: Iterable[Flow], *, alternatives: bool = False) -> Flow:
    """All of them, or one of them when they are ``alternatives``."""
    parts = list(flows)
    used = [flow.as_kind("cond") if alternatives else flow for flow in parts if flow.entries]
    if not used:
        return NOTHING
    entries: dict[str, EdgeKind] = {}
    for flow in used:
        entries |= {site: kind for site, kind in flow.entries.items() if site not in entries}
    exits = _unique(site for flow in used for site in flow.exits)
    edges = tuple(edge for flow in used for edge in flow.edges)
    can_skip = any(f.can_skip for f in parts) if alternatives else all(f.can_skip for f in used)
    return Flow(entries, exits, edges, can_skip)


class _Reader:
    """Carries the place (:mod:`patchwork_adapters.sites`) along while it goes into a chain; a run tells the same place by the same name."""

    def __init__(self, leaves: Sequence[Leaf], places: Mapping[int, str]) -> None:
        self._leaves = {id(leaf.obj): leaf for leaf in leaves}
        self._same: dict[
            int, list[str]
        ] = {}  #: paths of leaves that are one object: a client, once for each of its models
        for leaf in leaves:
            self._same.setdefault(id(leaf.obj), []).append(leaf.path)
        self._places = places
        self._where = ""
        self._rules: dict[str, Callable[[Any], Flow]] = {
            "langchain_core.runnables.base.RunnableSequence": lambda r: in_sequence(
                self._at(str(n), step) for n, step in enumerate(r.steps, 1)
            ),
            "langchain_core.runnables.base.RunnableParallel": lambda r: side_by_side(
                self._at(f"{{{name_part(key)}}}", step) for key, step in r.steps__.items()
            ),
            "langchain_core.runnables.passthrough.RunnableAssign": lambda r: self.read(r.mapper),
            "langchain_core.runnables.base.RunnableEachBase": lambda r: self.read(r.bound).as_kind("map"),
            "langchain_core.runnables.base.RunnableBindingBase": lambda r: self.read(r.bound),
            "langchain_core.runnables.branch.RunnableBranch": self._branch,
            "langchain_core.runnables.fallbacks.RunnableWithFallbacks": self._fallbacks,
            "langchain_core.runnables.configurable.RunnableConfigurableAlternatives": self._alternatives,
            "langchain_core.runnables.configurable.DynamicRunnable": lambda r: self.read(r.default),
            "langchain_core.vectorstores.base.VectorStoreRetriever": lambda r: self.read(r.vectorstore),
            "langgraph.pregel.main.Pregel": self._langgraph,
            "llama_index.core.query_engine.retriever_query_engine.RetrieverQueryEngine": self._query_engine,
            "llama_index.core.indices.vector_store.retrievers.retriever.VectorIndexRetriever": lambda r: in_sequence(
                [self.read(r._embed_model), self.read(r._vector_store)]
            ),
        }

    def _at(self, label: str, part: Any) -> Flow:
        return self._in(f"{self._where}/{label}" if self._where else label, part)

    def _in(self, where: str, part: Any) -> Flow:
        before, self._where = self._where, where
        try:
            return self.read(part)
        finally:
            self._where = before

    def read(self, part: Any) -> Flow:
        leaf = self._leaves.get(id(part))
        if leaf is not None:
            return self._leaf(leaf)
        rule = next((self._rules[name] for name in class_names(type(part)) if name in self._rules), None)
        return rule(part) if rule is not None else self._bundle(part)

    def _leaf(self, leaf: Leaf) -> Flow:
        """A store embeds the question before it searches, when it has an embedder of its own."""
        inner = [self._leaves[key] for key in parts_of(leaf.obj) if key in self._leaves and key != id(leaf.obj)]
        sites = tuple(at(path, self._where) for path in self._same[id(leaf.obj)])
        own = Flow(dict.fromkeys(sites, "data"), sites)
        return in_sequence([side_by_side(self._leaf(i) for i in inner), own])

    def _bundle(self, part: Any) -> Flow:
        inside = [self._leaves[key] for key in parts_of(part) if key in self._leaves]
        nested = {key for leaf in inside for key in parts_of(leaf.obj) if key != id(leaf.obj)}
        return side_by_side(self._leaf(leaf) for leaf in inside if id(leaf.obj) not in nested)

    def _branch(self, branch: Any) -> Flow:
        numbered = list(enumerate(branch.branches, 1))
        conditions = in_sequence(self._at(f"if{n}", condition) for n, (condition, _) in numbered)
        targets = [
            *(self._at(f"branch{n}", target) for n, (_, target) in numbered),
            self._at("default", branch.default),
        ]
        return in_sequence([conditions, side_by_side(targets, alternatives=True)])

    def _fallbacks(self, runnable: Any) -> Flow:
        first = self.read(runnable.runnable)
        others = side_by_side((self.read(f) for f in runnable.fallbacks), alternatives=True)
        both = in_sequence([first, others])
        return Flow(both.entries, _unique((*first.exits, *both.exits)), both.edges, both.can_skip)

    def _alternatives(self, runnable: Any) -> Flow:
        parts = [runnable.default, *(a for a in runnable.alternatives.values() if hasattr(a, "invoke"))]
        flows = [self.read(part) for part in parts]
        return side_by_side(flows, alternatives=len([f for f in flows if f.entries]) > 1)

    def _query_engine(self, engine: Any) -> Flow:
        steps = [engine._retriever, *engine._node_postprocessors, engine._response_synthesizer]
        return in_sequence(self._in(self._places.get(id(step), self._where), step) for step in steps)

    def _langgraph(self, graph: Any) -> Flow:
        builder = getattr(graph, "builder", None)
        if builder is None or not hasattr(builder, "branches"):
            return self._bundle(graph)
        flows = {name: self._at(name_part(name), node.runnable) for name, node in builder.nodes.items()}
        return _graph_flow(flows, list(_graph_edges(builder)))


def _graph_edges(builder: Any) -> Iterator[tuple[str, str, EdgeKind]]:
    """(from node, to node, kind); sets of the builder are sorted, because their order differs between processes."""
    for source, target in sorted(builder.edges):
        yield source, target, "data"
    for sources, target in sorted(builder.waiting_edges):
        yield from ((source, target, "data") for source in sources)
    for source, branches in builder.branches.items():
        for branch in branches.values():
            # without path_map or annotation the targets are not known: any node may be next
            targets = branch.ends.values() if branch.ends else [*builder.nodes, END]
            yield from ((source, target, "cond") for target in targets)
    for source, node in builder.nodes.items():
        ends = node.ends or ()
        yield from ((source, target, "cond") for target in ends)


def _graph_flow(flows: Mapping[str, Flow], hops: Sequence[tuple[str, str, EdgeKind]]) -> Flow:
    """Nodes without leaves are passed through; an edge back to a node that came earlier is a loop."""
    depth = _depths(hops)
    entries: dict[str, EdgeKind] = {}
    exits: list[str] = []
    edges: list[tuple[str, str, EdgeKind]] = [edge for flow in flows.values() for edge in flow.edges]
    for source in [START, *(name for name, flow in flows.items() if flow.entries)]:
        for target, kind in _next_with_leaves(source, flows, hops).items():
            if source == START and target != END:
                entries |= {site: kind for site in flows[target].entries if site not in entries}
            elif source != START and target == END:
                exits += flows[source].exits
            elif source != START:
                is_back = depth.get(target, 0) <= depth.get(source, 0)
                edges += [
                    (out, into, "loop" if is_back else kind)
                    for out in flows[source].exits
                    for into in flows[target].entries
                ]
    return Flow(entries, _unique(exits), tuple(dict.fromkeys(edges)))


def _next_with_leaves(
    source: str, flows: Mapping[str, Flow], hops: Sequence[tuple[str, str, EdgeKind]]
) -> dict[str, EdgeKind]:
    found: dict[str, EdgeKind] = {}
    seen: set[str] = set()
    waiting: list[tuple[str, EdgeKind]] = [(source, "data")]
    while waiting:
        node, so_far = waiting.pop(0)
        for _, target, kind in (hop for hop in hops if hop[0] == node):
            reached: EdgeKind = "cond" if "cond" in (so_far, kind) else "data"
            if target == END or flows.get(target, NOTHING).entries:
                found.setdefault(target, reached)
            elif target not in seen:
                seen.add(target)
                waiting.append((target, reached))
    return found


def _depths(hops: Sequence[tuple[str, str, EdgeKind]]) -> dict[str, int]:
    depth = {START: 0}
    waiting = [START]
    while waiting:
        node = waiting.pop(0)
        for source, target, _ in hops:
            if source == node and target not in depth:
                depth[target] = depth[node] + 1
                waiting.append(target)
    return depth


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
