"""``patchwork inspect``: what a chain splits into, as a table, JSON or a Mermaid flowchart."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table
from rich.text import Text

from patchwork_adapters.graph import END, START, Component, ComponentGraph, Edge
from patchwork_adapters.target import parse_target
from patchwork_serving import build_process
from patchwork_serving.cli_output import console, fact, fact_json, table
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.cli_signals import stop_signals
from patchwork_serving.config import Paths, load_config
from patchwork_serving.errors import UsageError

_SHAPES = {"llm": ("([", "])"), "embedder": ("[/", "/]"), "retriever": ("[(", ")]"), "reranker": ("{{", "}}")}

#: An import that fails does so at once, mostly, and then the error is all there is to read.
_TOLD_AFTER_S = 10.0
_SAME = "requests with equal values belong to one orchestrator"
_AFFINITY = {"*": "the chain is one conversation: all requests belong to one orchestrator"}


def inspect(target: str, inputs: Path | None, *, as_json: bool, mermaid: bool) -> None:
    """Print the component graph; the user's module runs in a process of its own that ends afterwards."""
    if as_json and mermaid:
        raise UsageError("give one of --json and --mermaid")
    graph = _graph(target, _text_of(inputs) if inputs is not None else None)
    if as_json:
        fact_json(graph.to_json())
    elif mermaid:
        fact(to_mermaid(graph))
    else:
        _show(graph)


def _text_of(inputs: Path) -> str:
    """The file's content, when it is JSON lines; what is wrong with it is said before anything is started."""
    from patchwork_adapters.checking.cases import BadInputs, read_cases

    try:
        read_cases(inputs)
    except BadInputs as error:
        raise UsageError(str(error)) from error
    return inputs.read_text(encoding="utf-8")


def _graph(target: str, inputs: str | None) -> ComponentGraph:
    config = load_config(None, beside=parse_target(target).folder)
    request = build_process.BuildRequest(
        target=target, name="inspect", config=config.model_dump(mode="json"), inspect_only=True, inputs=inputs
    )
    with stop_signals(), progress_display(as_json=False, after_s=_TOLD_AFTER_S) as progress:
        try:
            if inputs is None:
                return build_process.inspect(request, progress, Paths.from_env())
            return build_process.sample(request, progress, Paths.from_env()).graph
        except BaseException:
            build_process.cancel_running()
            raise


def _show(graph: ComponentGraph) -> None:
    out = console()
    out.print(Text.assemble((graph.target, "bold"), f"  ({graph.framework})"))
    rows = table("component", "kind", "class", "way", "engine", "model")
    for c in graph.components:
        rows.add_row(c.id, c.kind, c.cls, c.way, "external" if c.external else c.engine, c.model or "")
    out.print(rows if graph.components else Text("no components: all of the chain runs in one process"))
    if graph.call_sites:
        out.print(_sites(graph))
    if graph.requests:
        out.print(_edges(graph))
        glue = "" if graph.glue_s is None else f"; {graph.glue_s:.3g} s of each request outside of components"
        out.print(Text(f"from {graph.requests} sample runs{glue}", style="dim"))
    for opaque in graph.opaque:
        out.print(Text.assemble(("opaque ", "yellow"), f"{opaque.where}: {opaque.why}"))
    if graph.affinity is not None:
        out.print(Text(f"affinity {graph.affinity}: {_AFFINITY.get(graph.affinity, _SAME)}"))
    for remark in graph.notes:
        out.print(Text(f"note {remark}", style="dim"))


def _sites(graph: ComponentGraph) -> Table:
    """Where leaves are called from; with numbers when samples were run."""
    if not graph.requests:
        rows = table("call-site", "component")
        for s in graph.call_sites:
            rows.add_row(Text(s.id), Text(s.component))
        return rows
    rows = table("call-site", "component", "visits", "in turn", "seconds", "prompt", "output", "reached by")
    for s in graph.call_sites:
        numbers = map(_number, (s.visits, s.serial, s.seconds, s.prompt_tokens, s.output_tokens))
        rows.add_row(Text(s.id), Text(s.component), *numbers, "" if s.reached is None else f"{s.reached:.0%}")
    return rows


def _edges(graph: ComponentGraph) -> Table:
    names = {START: "request", END: "answer"}
    rows = table("from", "to", "kind", "probability", "times")
    for e in graph.edges:
        probability = "" if e.probability is None else f"{e.probability:.0%}"
        source, target = names.get(e.source, e.source), names.get(e.target, e.target)
        rows.add_row(Text(source), Text(target), e.kind, probability, str(e.count) if e.count else "never")
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def to_mermaid(graph: ComponentGraph) -> str:
    """A flowchart: call-sites and edges when they are known, else the components alone."""
    lines = ["flowchart LR"]
    if graph.call_sites:
        by_id = {c.id: c for c in graph.components}
        lines += [_node(s.id, s.id, by_id.get(s.component), s.visits) for s in graph.call_sites]
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


def _node(node_id: str, label: str, component: Component | None, visits: float | None = None) -> str:
    kind = component.kind if component is not None else "function"
    left, right = _SHAPES.get(kind, ("[", "]"))
    about = f"<br/>{component.model or component.engine}" if component is not None else ""
    about += "" if visits is None else f"<br/>{visits:.3g} per request"
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
