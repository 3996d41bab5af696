"""Predicted against actual remaining time, by state, of several replicas of the ingress together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

#: What is expected from a state on, and what was expected and came, means over the requests judged.
_EXPECTED = ("work_s", "work_p98_s", "time_s")
_JUDGED = ("predicted_s", "actual_s", "mean_error_s")


def merged(doors: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """One row for each state, in the order in which states were first seen; each replica counts by the requests that it has judged."""
    by_state: dict[tuple[Any, Any], list[Row]] = {}
    for rows in doors:
        for row in rows:
            by_state.setdefault((row["site"], row["loop"]), []).append(row)
    return [_one(site, loop, rows) for (site, loop), rows in by_state.items()]


def _one(site: Any, loop: Any, rows: Sequence[Row]) -> dict[str, Any]:
    judged = sum(row["judged"] for row in rows)
    found = {"site": site, "loop": loop, **{key: _mean(key, rows, len(rows) if not judged else 0) for key in _EXPECTED}}
    if not judged:
        return {**found, "judged": 0, **dict.fromkeys((*_JUDGED, "predicted_over_actual"))}
    told = {key: _mean(key, [row for row in rows if row["judged"]], 0) for key in _JUDGED}
    ratio = told["predicted_s"] / told["actual_s"] if told["actual_s"] else 1.0
    return {**found, "judged": judged, **told, "predicted_over_actual": ratio}


def _mean(key: str, rows: Sequence[Row], equally: int) -> float:
    """By requests judged, or ``equally`` among so many."""
    if equally:
        return sum(float(row[key]) for row in rows) / equally
    weights = [float(row["judged"]) for row in rows]
    return sum(float(row[key]) * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)
