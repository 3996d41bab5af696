from __future__ import annotations

from patchwork_scheduler.model import Call


class EarliestDeadlineFirst:
    """Serve first what is due first; a call without a deadline counts as due when its patience ends."""

    holds_admission = False
    heeds_deadlines = True

    def rank(self, call: Call) -> float:
        return call.due

    def turn(self, call: Call) -> None:
        return None
