"""``patchwork inspect``: what a chain splits into, as a table, JSON or a Mermaid flowchart."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table
from rich.text import Text

from patchwork_adapters.graph import END, START, Component, ComponentGraph, Edge
from patchwork_adapters.target import parse_target
from patchwork_serving import build_process
from patchwork_serving.cli_deploy import stop_signals
from patchwork_serving.cli_output import console, fact, fact_json
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.config import Paths, load_config
from patchwork_serving.errors import UsageError

_SHAPES = {"llm": ("([", "])"), "embedder": ("[/", "/]"), "retriever": ("[(", ")]"), "reranker": ("{{", "}}")}


def inspect(target: str, inputs: Path | None, *, as_json: bool, mermaid: bool) -> None:
    """Print the component graph; the user's module runs in a process of its own that ends afterwards."""
    if as_json and mermaid:
        raise UsageError("give one of --json and --mermaid")
    if inputs is not None:
        raise UsageError("--inputs: sample runs are not available in this version; leave it out for the static graph")
    graph = _graph(target)
    if as_json:
        fact_json(graph.to_json())
    elif mermaid:
        fact(to_mermaid(graph))
    else:
        _show(graph)


def _graph(target: str) -> ComponentGraph:
    config = load_config(None, beside=parse_target(target).folder)
    request = build_process.BuildRequest(
        target=target, name="inspect", config=config.model_dump(mode="json"), inspect_only=True
    )
    with stop_signals(), progress_display(as_json=False) as progress:
        try:
            return build_process.inspect(request, progress, Paths.from_env())
        except BaseException:
            build_process.cancel_running()
            raise


def _show(graph: ComponentGraph) -> None:
    out = console()
    out.print(Text.assemble((graph.target, "bold"), f"  ({graph.framework})"))
    table = Table(
        "component", "kind", "class", "way", "engine", "model", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for c in graph.components:
        table.add_row(c.id, c.kind, c.cls, c.way, "external" if c.external else c.engine, c.model or "")
    out.print(table if graph.components else Text("no components: all of the chain runs in one process"))
    if graph.call_sites:
        sites = Table(
            "call-site", "component", "visits", "seconds", "tokens", box=None, padding=(0, 2, 0, 0), header_style="dim"
        )
        for s in graph.call_sites:
            sites.add_row(s.id, s.component, _number(s.visits), _number(s.seconds), _number(s.tokens))
        out.print(sites)
    for opaque in graph.opaque:
        out.print(Text.assemble(("opaque ", "yellow"), f"{opaque.where}: {opaque.why}"))
    for remark in graph.notes:
        out.print(Text(f"note {remark}", style="dim"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def to_mermaid(graph: ComponentGraph) -> str:
    """A flowchart: call-sites and edges when they are known, else the components alone."""
    lines = ["flowchart LR"]
    if graph.call_sites:
        by_id = {c.id: c for c in graph.components}
        lines += [_node(s.id, s.id, by_id.get(s.component)) for s in graph.call_sites]
    else:
        lines += [_node(c.id, c.id, c) for c in graph.components]
    if any(START in (e.source, e.target) for e in graph.edges):
        lines.append(f'  {_id(START)}(("request"))')
    if any(END in (e.source, e.target) for e in graph.edges):
        lines.append(f'  {_id(END)}(("answer"))')
    lines += [_edge(edge) for edge in graph.edges]
    lines += [f'  {_id(f"opaque {i}")}["{_label(o.where)}: opaque"]:::opaque' for i, o in enumerate(graph.opaque)]
    if graph.opaque:
        lines.append("  classDef opaque stroke-dasharray: 4 4")
    return "\n".join(lines)


def _node(node_id: str, label: str, component: Component | None) -> str:
    kind = component.kind if component is not None else "function"
    left, right = _SHAPES.get(kind, ("[", "]"))
    about = f"<br/>{component.model or component.engine}" if component is not None else ""
    return f'  {_id(node_id)}{left}"{_label(label)}{about}"{right}'


def _edge(edge: Edge) -> str:
    arrow = "-.->" if edge.kind == "cond" else "==>" if edge.kind == "loop" else "-->"
    label = f"|{edge.probability:.0%}|" if edge.probability is not None and edge.probability < 1 else ""
    return f"  {_id(edge.source)} {arrow}{label} {_id(edge.target)}"


def _id(name: str) -> str:
    """A Mermaid id: words only, and never one of its keywords such as ``end``."""
    return "n_" + re.sub(r"\W", "_", name)


def _label(text: str) -> str:
    return text.replace('"', "#quot;")
