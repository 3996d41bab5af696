from __future__ import annotations

import math

from patchwork_scheduler.model import Call


class EarliestDeadlineFirst:
    """Serve first what is due first; calls without a deadline come last, in arrival order among themselves."""

    def rank(self, call: Call) -> float:
        return math.inf if call.deadline is None else call.deadline
