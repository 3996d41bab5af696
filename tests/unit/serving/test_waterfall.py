"""The waterfall of a request in a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from patchwork_serving.telemetry.waterfall import Bar, render_waterfall, tree


def span(
    name: str, span_id: str, parent: str | None, start: float, seconds: float, **attributes: Any
) -> dict[str, Any]:
    return {
        "trace_id": "t", "span_id": span_id, "parent_id": parent, "name": name, "start_s": 100.0 + start, "duration_s": seconds,
        "status": attributes.pop("status", "ok"), "attributes": {k.replace("__", "."): v for k, v in attributes.items()},
    }  # fmt: skip


RAG = [
    span("chat m", "c", "r", 0.4, 0.6, patchwork__queue_s=0.3, patchwork__service_s=0.3, patchwork__batch_size=4,
         patchwork__replica="llm-0", gen_ai__usage__input_tokens=31, gen_ai__usage__output_tokens=3, openinference__span__kind="LLM"),
    span("invoke_workflow demo", "r", "outside", 0.0, 1.0),
    span("retrieval docs", "b", "r", 0.1, 0.2),
]  # fmt: skip


def drawn(spans: list[dict[str, Any]], width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_waterfall(spans))
    return out.getvalue()


def test_children_come_below_their_parent_by_start() -> None:
    assert [(row.depth, row.span["name"]) for row in tree(RAG)] == [
        (0, "invoke_workflow demo"), (1, "retrieval docs"), (1, "chat m"),
    ]  # fmt: skip


def test_a_row_tells_time_queue_batch_tokens_and_replica() -> None:
    line = next(line for line in drawn(RAG).splitlines() if "chat m" in line)
    for told in ("600.0", "300.0", "4", "31→3", "llm-0"):
        assert told in line


def test_the_time_outside_every_call_is_the_chains_own() -> None:
    assert "chain and gateway alone: 200.0 ms" in drawn(RAG)


def test_waiting_and_working_are_drawn_apart() -> None:
    row = tree(RAG)[2]
    assert [segment.text for segment in Bar(row, 1.0).segments(10)] == ["    ", "░░░███", ""]


def test_every_span_has_a_cell_and_none_leaves_the_column() -> None:
    for start, seconds in [(0.0, 0.0), (0.999, 0.001), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]:
        row = tree([span("root", "r", None, 0.0, 1.0), span("x", "x", "r", start, seconds)])[1]
        cells = "".join(segment.text for segment in Bar(row, 1.0).segments(20))
        assert len(cells) == 20
        assert cells.strip()


def test_a_failed_span_is_marked_with_its_error() -> None:
    failed = span("chat m", "c", "r", 0.0, 0.1, status="error", error__type="ComponentFailed")
    assert "✗ ComponentFailed" in drawn([span("invoke_workflow demo", "r", None, 0, 1), failed])


def test_no_spans_and_spans_without_times_are_drawn_too() -> None:
    assert drawn([]).strip() == "no spans"
    assert "x" in drawn([span("x", "x", None, 0.0, 0.0)], width=40)
