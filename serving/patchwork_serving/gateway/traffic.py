"""What came through one gateway since it started, as counters: the autoscaler's readers take differences."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from patchwork_serving.gateway.port import Outcome


class Traffic:
    """Requests that came, those that were late, and calls by component. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._calls: Counter[str] = Counter()

    def began(self) -> None:
        with self._lock:
            self._in_flight += 1

    def left(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def ended(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[outcome] += 1

    def called(self, component: str) -> None:
        """A call of a component began."""
        with self._lock:
            self._calls[component] += 1

    def report(self) -> dict[str, Any]:
        """For the board. ``late``: answered after the deadline, or refused because they would have been."""
        with self._lock:
            ended = self._outcomes.total()
            late = self._outcomes["missed"] + self._outcomes["refused"]
            return {"requests": ended + self._in_flight, "late": late, "calls": dict(self._calls)}
