"""A request in a terminal: its spans as a tree with bars over time, waiting apart from working, without any backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from patchwork_serving.telemetry import names

Span = Mapping[str, Any]  #: a SpanRecord, possibly from JSON

MIN_BAR = 20
_COLOURS = {
    "LLM": "green",
    "EMBEDDING": "cyan",
    "RETRIEVER": "blue",
    "RERANKER": "magenta",
    "TOOL": "yellow",
    "CHAIN": "white",
}
_QUEUE, _WORK, _WIRE = "░", "█", "▒"


@dataclass(frozen=True, slots=True)
class Row:
    """A span in its place in the tree; times in seconds from the start of the request."""

    span: Span
    depth: int
    start_s: float
    queue_s: float
    work_s: float
    total_s: float
    children: tuple[Row, ...] = field(default=())

    @property
    def attributes(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.span.get("attributes") or {}
        return found


def tree(spans: Sequence[Span]) -> list[Row]:
    """Spans as rows, parents before children, by start; a span whose parent is not among them is a root."""
    if not spans:
        return []
    ids = {span["span_id"] for span in spans}
    zero = min(span["start_s"] for span in spans)

    def below(parent: str | None, depth: int) -> tuple[Row, ...]:
        if parent is None:
            found = [s for s in spans if s.get("parent_id") not in ids]
        else:
            found = [s for s in spans if s.get("parent_id") == parent]
        return tuple(
            _row(s, depth, zero, below(s["span_id"], depth + 1)) for s in sorted(found, key=lambda s: s["start_s"])
        )

    return [row for root in below(None, 0) for row in _flat(root)]


def _flat(row: Row) -> list[Row]:
    return [row, *(below for child in row.children for below in _flat(child))]


def _row(span: Span, depth: int, zero: float, children: tuple[Row, ...]) -> Row:
    attributes = span.get("attributes") or {}
    total = float(span["duration_s"])
    queue = min(float(attributes.get(names.QUEUE) or 0.0), total)
    told = attributes.get(names.SERVICE)
    work = total - queue if told is None else min(float(told), total - queue)
    return Row(span, depth, span["start_s"] - zero, queue, work, total, children)


def render_waterfall(spans: Sequence[Span]) -> RenderableType:
    """The spans of one request, as ``/invoke`` returns them, for a rich console."""
    rows = tree(spans)
    if not rows:
        return Text("no spans")
    end = max(row.start_s + row.total_s for row in rows) or 1e-9
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=True)
    table.add_column("span", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column(f"0 … {end * 1000:.0f} ms", ratio=1, min_width=MIN_BAR)
    table.add_column("queue", justify="right", no_wrap=True)
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("replica", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(
            _name(row), f"{row.total_s * 1000:.1f}", Bar(row, end), _queue(row), _shown(row, names.BATCH_SIZE), _tokens(row),
            Text(_replica(row), style="dim"),
        )  # fmt: skip
    return Group(table, _legend(rows))


def _name(row: Row) -> Text:
    lead = "  " * (row.depth - 1) + "└ " if row.depth else ""
    style = "bold" if row.depth == 0 else _colour(row)
    name = Text.assemble((lead, "dim"), (str(row.span["name"]), style))
    if row.span.get("status") == "error":
        name.append(f" ✗ {row.attributes.get(names.ERROR_TYPE, '')}", style="red")
    return name


def _colour(row: Row) -> str:
    return _COLOURS.get(str(row.attributes.get(names.SPAN_KIND)), "white")


def _queue(row: Row) -> str:
    return f"{row.queue_s * 1000:.1f}" if names.QUEUE in row.attributes else ""


def _replica(row: Row) -> str:
    """What tells a replica from its siblings; the span's name says whose replica it is."""
    return str(row.attributes.get(names.REPLICA, "")).rpartition("#")[2]


def _shown(row: Row, name: str) -> str:
    value = row.attributes.get(name)
    return "" if value is None else str(value)


def _tokens(row: Row) -> str:
    read, written = row.attributes.get(names.INPUT_TOKENS), row.attributes.get(names.OUTPUT_TOKENS)
    if read is None and written is None:
        return ""
    return f"{_count(read)}→{_count(written)}" if written is not None else _count(read)


def _count(tokens: Any) -> str:
    return "?" if tokens is None else str(tokens)


def _legend(rows: Sequence[Row]) -> Text:
    root = rows[0]
    outside = root.total_s - _covered(root.children)
    parts = [f"{_QUEUE} waiting in the replica's queue   {_WORK} working   {_WIRE} on the way, or in the chain"]
    if root.children:
        parts.append(f"   chain and gateway alone: {max(0.0, outside) * 1000:.1f} ms")
    return Text("".join(parts), style="dim")


def _covered(rows: Sequence[Row]) -> float:
    """Seconds in which at least one of the rows runs."""
    covered, until = 0.0, float("-inf")
    for row in sorted(rows, key=lambda r: r.start_s):
        end = row.start_s + row.total_s
        covered += max(0.0, end - max(until, row.start_s))
        until = max(until, end)
    return covered


@dataclass(frozen=True, slots=True)
class Bar:
    """One span over the request's time, as wide as its column: first the queue, then the work, the rest is the way there and back."""

    row: Row
    end_s: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.segments(options.max_width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(MIN_BAR, options.max_width)

    def segments(self, width: int) -> list[Segment]:
        """The bar in ``width`` cells; every span has at least one."""
        row, scale = self.row, width / self.end_s
        first = min(int(row.start_s * scale), width - 1)
        cells = max(1, min(round(row.total_s * scale), width - first))
        queue = min(round(row.queue_s * scale), cells)
        # a root has no replica: all of it is chain
        work = 0 if row.depth == 0 else max(min(round(row.work_s * scale), cells - queue), 1 if queue < cells else 0)
        style = Style.parse("dim" if row.depth == 0 else _colour(row))
        text = _QUEUE * queue + _WORK * work + _WIRE * (cells - queue - work)
        return [Segment(" " * first), Segment(text, style), Segment(" " * (width - first - cells))]
