"""What a policy is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from patchwork_scheduler.model import Call


class Turn(NamedTuple):
    """From ``when`` on, a call that still waits has another rank."""

    when: float
    rank: float


class Policy(Protocol):
    """In what order the waiting calls of a replica are served."""

    #: whether the door stays shut while a request that waits is expected to miss (the paper's rule)
    holds_admission: bool

    def rank(self, call: Call) -> float:
        """Lower is served first, arrival order among equals."""
        ...

    def turn(self, call: Call) -> Turn | None:
        """The one change of rank that the passing of time brings, known beforehand; None: its rank stays."""
        ...
