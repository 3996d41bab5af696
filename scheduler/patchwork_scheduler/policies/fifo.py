from __future__ import annotations

from patchwork_scheduler.model import Call


class Fifo:
    """First come, first served."""

    def rank(self, call: Call) -> float:
        return call.arrived
