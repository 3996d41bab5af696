from __future__ import annotations

from patchwork_scheduler.model import Call


class Fifo:
    """First come, first served."""

    holds_admission = False
    heeds_deadlines = False

    def rank(self, call: Call) -> float:
        return call.arrived

    def turn(self, call: Call) -> None:
        return None
