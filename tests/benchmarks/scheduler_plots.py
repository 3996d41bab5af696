"""Plots of bench_scheduler's policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"fifo": "tab:gray", "edf": "tab:orange", "paper": "tab:red", "least_slack": "tab:blue", "ideal": "tab:green"}


def draw(found: dict[str, Any], folder: Path) -> None:
    """One PNG per graph: goodput and late share of accepted, by load, per arrivals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for graph, facts in found["graphs"].items():
        rows = [row for row in found["rows"] if row["graph"] == graph]
        kinds = list(dict.fromkeys(row["arrivals"] for row in rows))
        figure, axes = pyplot.subplots(
            2, len(kinds), figsize=(4 * len(kinds), 6.5), sharex=True, sharey="row", squeeze=False
        )
        for column, kind in enumerate(kinds):
            for policy in dict.fromkeys(row["policy"] for row in rows):
                line = sorted(
                    (r for r in rows if (r["arrivals"], r["policy"]) == (kind, policy)), key=lambda r: r["load"]
                )
                loads = [r["load"] for r in line]
                style = {"color": COLOURS.get(policy), "label": policy, "linestyle": "--" if policy == "ideal" else "-"}
                axes[0][column].plot(loads, [r["goodput_per_s"] for r in line], **style)
                axes[1][column].plot(loads, [100 * r["missed_share_of_accepted"] for r in line], **style)
            axes[0][column].set_title(kind)
            axes[1][column].set_xlabel("load / capacity")
            axes[1][column].axhline(2.0, color="black", linewidth=0.5)
            axes[1][column].set_yscale("symlog", linthresh=5)
        axes[0][0].set_ylabel("requests in time per second")
        axes[1][0].set_ylabel("late, % of accepted")
        axes[0][0].legend()
        figure.suptitle(
            f"{graph}, simulated from H100 profiles: capacity {facts['capacity_per_s']:.1f}/s, SLO {facts['slo_s']:.2f} s"
        )
        figure.tight_layout()
        figure.savefig(folder / f"scheduler_{graph}.png", dpi=80)
        pyplot.close(figure)
