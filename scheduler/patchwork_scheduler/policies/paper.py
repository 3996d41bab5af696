from __future__ import annotations

from patchwork_scheduler.model import Call
from patchwork_scheduler.policies.base import Turn

#: Longer than any call waits: what is flagged comes before all that is not, and in arrival order among itself.
AHEAD_OF_ALL_S = 1e9


class PaperRule:
    """The rule of the Patchwork paper: a request expected to miss is flagged and jumps the queue; the door is shut meanwhile."""

    holds_admission = True
    heeds_deadlines = False

    def rank(self, call: Call) -> float:
        return call.arrived

    def turn(self, call: Call) -> Turn | None:
        if call.deadline is None:
            return None
        return Turn(call.latest_start, call.arrived - AHEAD_OF_ALL_S)
