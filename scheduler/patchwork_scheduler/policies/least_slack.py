from __future__ import annotations

from patchwork_scheduler.model import PATIENCE_S, Call
from patchwork_scheduler.policies.base import Turn


class LeastSlack:
    """Serve first what would be late first; what is late whatever is done gives way to what can still be in time.

    Slack is deadline - now - ahead; ``now`` is the same for all calls that are ranked together. Without the turn, an overloaded
    replica would spend itself on the calls that it has just lost, and lose the next ones by that (the collapse of plain deadline
    order). A late call is put back by a finite time, so it is not starved.
    """

    holds_admission = False
    heeds_deadlines = True

    def rank(self, call: Call) -> float:
        deadline = call.deadline
        return (call.arrived + PATIENCE_S if deadline is None else deadline) - call.ahead_s

    def turn(self, call: Call) -> Turn | None:
        if call.deadline is None:
            return None
        start = call.deadline - call.ahead_s
        return Turn(start, start + PATIENCE_S)
