"""How an engine keeps to what is predicted of it, by its own host's account. Pure: times are arguments."""

from __future__ import annotations

import math
from collections import deque

#: An engine stands still when its work takes so many times the worst that was usual, and so many seconds more than predicted.
STALLED_TIMES = 2.0
STALLED_S = 0.5
#: Pieces of work whose worst is usual.
USUAL_OF = 50
#: Slowness is a mean over so many seconds of work of late, and fades as fast while nothing runs: whoever is avoided is tried again.
OF_LATE_S = 1.0
FADES_IN_S = 5.0
#: Up to here the times are as different as calls are.
SLOW_TIMES = 2.0


class Pace:
    """Owned by one replica host."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=USUAL_OF)
        self._slowness = 1.0
        self._at = 0.0

    def worked(self, predicted_s: float, took_s: float, now: float) -> None:
        """A batch, or a stretch of an engine's steps, took ``took_s``. Nothing when nothing was predicted."""
        if predicted_s <= 0.0:
            return
        ratio = took_s / predicted_s
        self._ratios.append(ratio)
        before = self._faded(now)
        self._slowness = before + (1.0 - math.exp(-took_s / OF_LATE_S)) * (ratio - before)
        self._at = now

    def lasted(self, predicted_s: float, took_s: float) -> None:
        """A silence of the engine ended that was expected to last ``predicted_s``: tells how long they may be."""
        if predicted_s > 0.0:
            self._ratios.append(took_s / predicted_s)

    def is_stalled(self, predicted_s: float, lasts_s: float) -> bool:
        """Whether work that was expected to take ``predicted_s`` and is not done after ``lasts_s`` means that nothing moves."""
        usual = max(self._ratios, default=1.0)
        limit = STALLED_TIMES * predicted_s * max(usual, 1.0)
        return predicted_s > 0.0 and lasts_s > limit and lasts_s - predicted_s > STALLED_S

    def slowness(self, now: float) -> float:
        """How many times as long as predicted the work of late took; 1 unless it clearly did."""
        faded = self._faded(now)
        return faded if faded > SLOW_TIMES else 1.0

    def _faded(self, now: float) -> float:
        return 1.0 + (self._slowness - 1.0) * math.exp(-max(now - self._at, 0.0) / FADES_IN_S)
