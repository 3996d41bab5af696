"""What a replica has done since it started, as counters: readers take differences, so a reader that misses one report loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Larger batches are counted together under a multiple of it, so that a report stays small.
EXACT_UP_TO = 32


class Counts:
    """Calls that came, calls that were served, and the seconds of each batch size."""

    def __init__(self) -> None:
        self._arrived = 0
        self._served = 0
        self._batches: dict[int, tuple[int, float]] = {}

    def arrived(self) -> None:
        self._arrived += 1

    def served(self, batch: int, seconds: float, calls: int | None = None) -> None:
        """A batch ended; ``calls`` of a continuous engine end one by one, in a batch of those that ran beside."""
        self._served += batch if calls is None else calls
        size = batch if batch <= EXACT_UP_TO else EXACT_UP_TO * (batch // EXACT_UP_TO)
        count, total = self._batches.get(size, (0, 0.0))
        self._batches[size] = (count + 1, total + seconds)

    def report(self) -> Mapping[str, Any]:
        """For the board: ``served_by_batch`` holds, for each batch size, how many there were and their seconds together."""
        return {
            "arrived": self._arrived,
            "served": self._served,
            "served_by_batch": {str(size): [n, round(s, 6)] for size, (n, s) in sorted(self._batches.items())},
        }
