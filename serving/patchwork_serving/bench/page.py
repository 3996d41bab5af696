"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchwork_serving.bench.report import LoadReport

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.warn{background:#fff3cd;padding:.3rem .8rem;margin:.3rem 0}
img{max-width:100%}
"""

COLUMNS = (
    "offered/s", "completed/s", "goodput/s", "attained", "missed", "refused", "failed", "cancelled", "p50", "p95", "p99", "first p50",
)  # fmt: skip


def page(title: str, reports: Sequence[LoadReport], plots: Mapping[str, Path]) -> str:
    """HTML; plots are embedded."""
    warnings = sorted({warning for report in reports for warning in report.warnings()})
    facts = {**reports[0].settings, **reports[0].environment}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>", f"<title>{_text(title)}</title><style>{_STYLE}</style>",
        f"<h1>{_text(title)}</h1>", *(f"<p class=warn>{_text(warning)}</p>" for warning in warnings),
        f"<p>SLO {seconds(reports[0].slo_s)}; outcomes are shares of what was offered, seconds count from the intended time.</p>",
        _table(COLUMNS, [row(report) for report in reports]),
        *(f"<h2>{_text(name)}</h2><img alt={_quoted(name)} src=data:image/png;base64,{_base64(file)}>" for name, file in plots.items()),
        "<h2>Setting</h2>", _table(("", ""), [(key, _fact(value)) for key, value in facts.items()]), "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def row(report: LoadReport) -> tuple[str, ...]:
    """One line of the table, by :data:`COLUMNS`."""
    document = report.to_json()
    latency, first = document["latency_s"], document["ttft_s"]
    shares = (f"{100 * count / max(report.offered, 1):.1f}%" for count in report.counts.values())
    rates = (f"{rate:.2f}" for rate in (report.offered_per_s, report.completed_per_s, report.goodput_per_s))
    return (*rates, *shares, *(seconds(latency[q]) for q in ("p50", "p95", "p99")), seconds(first["p50"]))


def seconds(value: float | None) -> str:
    """For people: milliseconds below a second."""
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in line) + "</tr>" for line in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _fact(value: Any) -> str:
    return "-" if value is None else str(value)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _text(text: str) -> str:
    return html.escape(text)


def _quoted(text: str) -> str:
    return f'"{html.escape(text, quote=True)}"'
