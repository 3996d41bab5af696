"""Counts and latencies of the last minute. Pure: ``now`` is an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from patchwork_serving.gateway.port import Outcome
from patchwork_serving.gateway.settings import DEFAULT_SLO

LENGTH_S = 60.0
_MAX_KEPT = 100_000  #: bounds memory at rates beyond 1,600 requests/s; the oldest go first


class Finished(NamedTuple):
    """One request that ended."""

    outcome: Outcome
    latency_s: float
    slo: str = DEFAULT_SLO


class Window:
    """What finished within the last ``length_s`` seconds."""

    def __init__(self, length_s: float = LENGTH_S) -> None:
        self._length_s = length_s
        self._finished: deque[tuple[float, Finished]] = deque(maxlen=_MAX_KEPT)

    def add(self, outcome: Outcome, latency_s: float, *, now: float, slo: str = DEFAULT_SLO) -> None:
        self._finished.append((now, Finished(outcome, latency_s, slo)))
        self._forget(now)

    def finished(self, *, now: float) -> tuple[Finished, ...]:
        """What is in the window, oldest first."""
        self._forget(now)
        return tuple(one for _, one in self._finished)

    def summary(self, *, now: float) -> dict[str, Any]:
        return summary_of(self.finished(now=now))

    def _forget(self, now: float) -> None:
        while self._finished and self._finished[0][0] <= now - self._length_s:
            self._finished.popleft()


def summary_of(finished: Sequence[Finished]) -> dict[str, Any]:
    """The ``window`` of ``status --json``, also by SLO class: percentiles are of answers, attained or missed, and None without any."""
    by_class: dict[str, list[Finished]] = {}
    for one in finished:
        by_class.setdefault(one.slo, []).append(one)
    return {**_summary(finished), "classes": {name: _summary(mine) for name, mine in sorted(by_class.items())}}


def attained_share(counts: Mapping[Outcome, int]) -> float | None:
    """Of the requests that were let in and not cancelled, those in time; None when there were none."""
    accepted = counts["attained"] + counts["missed"] + counts["failed"]
    return counts["attained"] / accepted if accepted else None


def _summary(finished: Sequence[Finished]) -> dict[str, Any]:
    counts = Counter(one.outcome for one in finished)
    latencies = sorted(one.latency_s for one in finished if one.outcome in ("attained", "missed"))
    return {
        "requests": len(finished),
        **{outcome: counts[outcome] for outcome in ("attained", "missed", "refused", "failed", "cancelled")},
        "attained_share": attained_share(counts),
        **{f"p{p}_s": percentile(latencies, p) for p in (50, 95, 99)},
    }


def percentile(ordered: list[float], p: int) -> float | None:
    """The nearest-rank percentile of values in order; None when there are none."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * p // 100) - 1)]
