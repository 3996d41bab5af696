"""The largest rate that is sustained: found by trying rates, each an open-loop load of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from patchwork_serving.bench.report import LoadReport

SHARE = 0.9  #: of what is offered is attained


@dataclass(frozen=True, slots=True)
class Sustained:
    """``rate`` is what was offered, on average, at the largest rate tried that was sustained; 0 when none was."""

    rate: float
    reports: tuple[LoadReport, ...]  #: of every rate tried, by rate
    is_bound: bool = False  #: the largest rate allowed was sustained: the true one is at least this

    @property
    def best_goodput_per_s(self) -> float:
        return max((report.goodput_per_s for report in self.reports), default=0.0)


def sustainable_rate(
    measure: Callable[[float], LoadReport],
    low: float,
    high: float,
    *,
    share: float = SHARE,
    tolerance: float = 0.05,
    is_sustained: Callable[[LoadReport], bool] | None = None,
) -> Sustained:
    """Doubles from ``low`` until a rate is not sustained, then bisects (geometrically) to within ``tolerance``.

    ``measure(rate)`` runs a load. Stops early at a partial report. A rate counts with what its arrivals offered, which differs
    from what was asked for by chance.
    """
    sustained = is_sustained or (lambda report: report.attained_share >= share)
    tried: list[tuple[float, LoadReport]] = []

    def holds(rate: float) -> bool:
        report = measure(rate)
        tried.append((rate, report))
        return sustained(report) and not report.partial

    below, above = _bracket(holds, low, high, lambda: bool(tried and tried[-1][1].partial))
    while below and above and above / below > 1 + tolerance and not tried[-1][1].partial:
        middle = math.sqrt(below * above)
        if holds(middle):
            below = middle
        else:
            above = middle
    reports = tuple(report for _, report in sorted(tried, key=lambda one: one[0]))
    best = next((report.offered_per_s for rate, report in tried if rate == below), 0.0) if below else 0.0
    return Sustained(best, reports, is_bound=bool(below) and above is None)


def _bracket(
    holds: Callable[[float], bool], low: float, high: float, stopped: Callable[[], bool]
) -> tuple[float | None, float | None]:
    """(largest known to hold, smallest known not to); looks below ``low`` three halvings deep when that does not hold."""
    if holds(low):
        below = low
        while below < high:
            if stopped():
                return below, None
            rate = min(2 * below, high)
            if not holds(rate):
                return below, rate
            below = rate
        return below, None
    above = low
    for _ in range(3):
        if stopped():
            break
        rate = above / 2
        if holds(rate):
            return rate, above
        above = rate
    return None, above
