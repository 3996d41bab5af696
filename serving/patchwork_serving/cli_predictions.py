"""Predicted against actual remaining time, for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from patchwork_adapters.graph import START
from patchwork_serving.cli_output import table

#: States shown: those that most requests went through.
SHOWN = 8


def predictions_table(predictions: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of ``predictions`` of which any was judged, from the beginning of requests to their end; of many, the rarest are left out."""
    judged = sorted((one for one in predictions if one["judged"]), key=lambda one: -one["judged"])[:SHOWN]
    rows = table("from", "requests", "predicted", "was", "ratio", "off by")
    for one in sorted(judged, key=lambda one: -one["actual_s"]):
        rows.add_row(
            _where(one["site"], one["loop"]), str(one["judged"]), f"{one['predicted_s']:.3g} s", f"{one['actual_s']:.3g} s",
            f"{one['predicted_over_actual']:.2f}", f"{one['mean_error_s']:.3g} s",
        )  # fmt: skip
    return rows


def _where(site: str, loop: int) -> str:
    name = "the door" if site == START else site
    return f"{name}, visit {loop + 1}" if loop else name
