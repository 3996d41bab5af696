"""Attained share and goodput by offered rate, of each system's best setting: a PNG for each application."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines.measuring import SHARE


def draw(output: Path, document: Mapping[str, Any]) -> None:
    """Beside ``output``; applications without a comparison are left out."""
    from matplotlib.figure import Figure

    for name, app in document["applications"].items():
        best = app.get("compared", {}).get("best", {})
        if not best:
            continue
        figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        for system, run in best.items():
            points = app["systems"][system][run["setting"]]["points"]
            offered = [point["offered_per_s"] for point in points]
            left.plot(offered, [100 * point["attained_share"] for point in points], marker="o", label=system)
            right.plot(offered, [point["goodput_per_s"] for point in points], marker="o", label=system)
        left.axhline(100 * SHARE, color="black", linestyle=":", linewidth=1)
        left.set(xlabel="requests offered per second", ylabel="% within the SLO", ylim=(0, 101))
        right.set(xlabel="requests offered per second", ylabel="requests within the SLO per second", ylim=(0, None))
        kind = "emulated H100 engines" if document["engines"]["emulated"] else "real small models"
        figure.suptitle(f"{name}, {kind}, SLO {app['slo_s']:.2g} s")
        left.legend()
        figure.savefig(output.with_name(f"{output.stem}_{name}.png"))
