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
    #: whether what deadlines forbid is left undone: batches grown too long, too much work inside an engine at once
    heeds_deadlines: bool

    def rank(self, call: Call) -> float:
        """Lower is served first, arrival order among equals."""
        ...

    def turn(self, call: Call) -> Turn | None:
        """The one change of rank that the passing of time brings, known beforehand; None: its rank stays."""
        ...


def rank_at(policy: Policy, call: Call, now: float) -> float:
    """The call's rank at ``now``, its turn included."""
    turn = policy.turn(call)
    return turn.rank if turn is not None and turn.when < now else policy.rank(call)
