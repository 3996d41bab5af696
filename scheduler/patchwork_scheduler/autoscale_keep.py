"""How long a component keeps the replicas it was given: by what starting them again costs, and by whether it missed those taken away.

A replica taken away and needed soon after costs its start, and the requests that wait for it; one kept for nothing costs its place. The
start is learnt, and so is how soon the load comes back: each removal that is regretted doubles the time, each that is not halves it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from patchwork_scheduler.autoscale_model import Change, Scaling
from patchwork_scheduler.autoscale_rates import PEAK_S

BETWEEN_S = PEAK_S  #: between two removals: a peak leaves its window bit by bit
MOST_PATIENCE = 3.0


@dataclass(slots=True)
class Kept:
    """Of one component. Times are seconds."""

    scaling: Scaling
    cold_start_s: float
    patience: float = 1.0  #: how many times as long as it must, it keeps what it was given
    grew_at: float | None = None
    shrank_at: float | None = None  #: since it last grew
    changed_at: float | None = None
    asked: tuple[float, int] | None = None  #: when, and for how many replicas that are not ready yet

    @property
    def for_s(self) -> float:
        """How far back the peak reaches that its replicas must bear, and how long it keeps what it was given."""
        return self.patience * self._settle_s

    @property
    def at_most_s(self) -> float:
        return MOST_PATIENCE * self._settle_s

    def is_settled(self, now: float) -> bool:
        if self.grew_within(self.for_s, now):
            return False
        return self.changed_at is None or now - self.changed_at >= BETWEEN_S

    def grew_within(self, seconds: float, now: float) -> bool:
        return self.grew_at is not None and now - self.grew_at < seconds

    def learn_cold_start(self, ready: int, now: float) -> None:
        if self.asked is not None and ready >= self.asked[1]:
            self.cold_start_s += 0.5 * (now - self.asked[0] - self.cold_start_s)
            self.asked = None

    def changed(self, change: Change, now: float) -> None:
        self.changed_at, self.asked = now, None
        if change.after < change.before:
            self.shrank_at = now
            return
        if self.shrank_at is not None:
            regretted = now - self.shrank_at < self.at_most_s
            self.patience = min(MOST_PATIENCE, 2 * self.patience) if regretted else max(1.0, self.patience / 2)
        self.grew_at, self.shrank_at, self.asked = now, None, (now, change.after)

    @property
    def _settle_s(self) -> float:
        return max(self.scaling.settle_s, self.scaling.settle_cold_starts * self.cold_start_s)
