"""Policies: each says in what order the waiting calls of a replica are served. One short file each."""

from __future__ import annotations

from typing import Protocol

from patchwork_scheduler.errors import UnknownPolicy
from patchwork_scheduler.model import Call
from patchwork_scheduler.policies.edf import EarliestDeadlineFirst
from patchwork_scheduler.policies.fifo import Fifo


class Policy(Protocol):
    def rank(self, call: Call) -> float:
        """Lower is served first; fixed while the call waits."""
        ...


_POLICIES: dict[str, type[Policy]] = {"fifo": Fifo, "edf": EarliestDeadlineFirst}


def policy_by_name(name: str) -> Policy:
    """The policy called ``name``; UnknownPolicy lists those that exist."""
    try:
        return _POLICIES[name]()
    except KeyError:
        raise UnknownPolicy(f"no policy is called {name!r}; there are {', '.join(sorted(_POLICIES))}") from None


__all__ = ["EarliestDeadlineFirst", "Fifo", "Policy", "policy_by_name"]
