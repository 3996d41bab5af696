"""Plots of one load, or of a sweep over rates, as PNG files. matplotlib is imported when one is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchwork_serving.bench.report import OVERHEAD, LoadReport

SIZE = (7.0, 4.0)  #: inches, at 120 dots
DPI = 120


def can_plot() -> bool:
    """Whether the ``[bench]`` extra is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(folder: Path, reports: Sequence[LoadReport]) -> dict[str, Path]:
    """Title -> file of each plot that has something to show; ``reports`` are of one sweep, by rate."""
    drawn: dict[str, Path] = {}
    if any(report.latencies for report in reports):
        drawn["Latency"] = _figure(folder / "latency_cdf.png", lambda axes: _cdf(axes, reports))
    if len(reports) > 1:
        drawn["Throughput by rate"] = _figure(folder / "throughput.png", lambda axes: _throughput(axes, reports))
        drawn["Attained share by rate"] = _figure(folder / "attained.png", lambda axes: _attained(axes, reports))
    if any(report.stages for report in reports):
        drawn["Time by stage"] = _figure(folder / "stages.png", lambda axes: _stages(axes, reports))
    return drawn


def _figure(path: Path, paint: Callable[[Any], None]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # not pyplot: it keeps every figure, and would look for a display
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    paint(axes)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)
    return path


def _cdf(axes: Any, reports: Sequence[LoadReport]) -> None:
    for report in reports:
        if report.latencies:
            ordered = np.sort(report.latencies)
            axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), label=f"{report.offered_per_s:.3g}/s")
    axes.axvline(reports[0].slo_s, color="black", linestyle="--", linewidth=1, label="SLO")
    if max(max(report.latencies, default=0.0) for report in reports) > 10 * reports[0].slo_s:
        axes.set_xscale("log")
    axes.set(xlabel="seconds from the intended time", ylabel="share of whole answers", ylim=(0, 1))
    axes.legend()


def _throughput(axes: Any, reports: Sequence[LoadReport]) -> None:
    offered = [report.offered_per_s for report in reports]
    axes.plot(offered, offered, color="black", linestyle=":", linewidth=1, label="offered")
    axes.plot(offered, [report.completed_per_s for report in reports], marker="o", label="completed")
    axes.plot(offered, [report.goodput_per_s for report in reports], marker="o", label="within the SLO")
    axes.set(xlabel="requests offered per second", ylabel="requests per second", ylim=(0, None))
    axes.legend()


def _attained(axes: Any, reports: Sequence[LoadReport]) -> None:
    offered = [report.offered_per_s for report in reports]
    axes.plot(offered, [100 * report.attained_share for report in reports], marker="o", label="attained")
    for outcome in ("missed", "refused", "failed"):
        share = [100 * report.counts[outcome] / max(report.offered, 1) for report in reports]
        if any(share):
            axes.plot(offered, share, marker=".", linestyle="--", label=outcome)
    axes.axhline(90, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="requests offered per second", ylabel="% of offered requests", ylim=(0, 101))
    axes.legend()


def _stages(axes: Any, reports: Sequence[LoadReport]) -> None:
    """Mean milliseconds of a request in each component, queues within, and in none."""
    rows = [_mean_ms(report) for report in reports]
    names = sorted({name for row in rows for name in row})
    places = range(len(reports))
    left = np.zeros(len(reports))
    for name in names:
        width = np.array([row.get(name, 0.0) for row in rows])
        axes.barh(places, width, left=left, label=name)
        left = left + width
    axes.set_yticks(list(places), [f"{report.offered_per_s:.3g}/s" for report in reports])
    axes.set(xlabel="mean milliseconds of a request")
    axes.legend(fontsize="small")


def _mean_ms(report: LoadReport) -> Mapping[str, float]:
    count = max(len(report.latencies), 1)
    found = {name: 1000 * sum(values) / count for name, values in report.stages.items() if name not in OVERHEAD}
    return {**found, "elsewhere": 1000 * sum(report.overheads) / count}
