"""What is coming: demand by component when a replica asked for now would serve, and how pressed requests are. With its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from patchwork_scheduler.autoscale_rates import Trend


@dataclass(frozen=True, slots=True)
class Outlook:
    """One step's view."""

    trend: Trend
    visits: Mapping[str, float]  #: calls per request
    cold_start_s: Mapping[str, float]
    demand: Mapping[str, float]  #: calls per second, backlog included
    backlog: Mapping[str, float]  #: calls that wait beyond a batch per replica
    utilisation: Mapping[str, float]  #: of the replicas asked for before, of components whose service times are known
    late: float = 0.0  #: share of recent requests; 0 when within what is allowed
    tight: bool = False  #: waiting takes much of the time that requests have to spare

    @property
    def pressed(self) -> bool:
        return self.tight or self.late > 0

    def why_more(self, name: str, before: int) -> str:
        """Why ``before`` replicas are too few."""
        if before == 0:
            return "called while it had no replica"
        reasons = [self._expected(self.cold_start_s[name])]
        waiting = f"with {self.backlog[name]:.0f} calls that wait, " if self.backlog[name] >= 1 else ""
        if name in self.utilisation:
            share = f"{self.utilisation[name]:.0%} of what {_replicas(before)} {_carry(before)}"
            reasons.append(f"{waiting}that is {self.demand[name]:.3g} calls/s, {share}")
        if self.late:
            reasons.append(f"{self.late:.0%} of requests were late")
        elif self.tight:
            reasons.append("waiting takes half of the time that requests have to spare")
        return "; ".join(reasons)

    def _expected(self, ahead_s: float) -> str:
        now, then = self.trend.level, self.trend.after(ahead_s)
        if abs(then - now) < 0.01 * max(now, 0.01):
            return f"{now:.3g} requests/s"
        return f"{now:.3g} requests/s, {then:.3g} expected when a new replica serves in {ahead_s:.0f} s"


def why_fewer(peak_per_s: float, over_s: float, after: int, utilisation: float) -> str:
    """Why the replicas that remain are enough."""
    return f"at most {peak_per_s:.3g} calls/s in the last {over_s:.0f} s, of which {_replicas(after)} would be used at {utilisation:.0%}"


def _replicas(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def _carry(count: int) -> str:
    return "carries" if count == 1 else "carry"
