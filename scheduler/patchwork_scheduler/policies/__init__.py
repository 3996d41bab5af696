"""Policies: each says in what order the waiting calls of a replica are served. One short file each."""

from __future__ import annotations

from patchwork_scheduler.errors import UnknownPolicy
from patchwork_scheduler.policies.base import Policy, Turn, rank_at
from patchwork_scheduler.policies.edf import EarliestDeadlineFirst
from patchwork_scheduler.policies.fifo import Fifo
from patchwork_scheduler.policies.least_slack import LeastSlack
from patchwork_scheduler.policies.paper import PaperRule

DEFAULT_POLICY = "least_slack"

_POLICIES: dict[str, type[Policy]] = {
    "fifo": Fifo,
    "edf": EarliestDeadlineFirst,
    "least_slack": LeastSlack,
    "paper": PaperRule,
}


def policy_names() -> tuple[str, ...]:
    return tuple(sorted(_POLICIES))


def policy_by_name(name: str = DEFAULT_POLICY) -> Policy:
    """The policy called ``name``; UnknownPolicy lists those that exist."""
    try:
        return _POLICIES[name]()
    except KeyError:
        raise UnknownPolicy(f"no policy is called {name!r}; there are {', '.join(policy_names())}") from None


__all__ = [
    "DEFAULT_POLICY", "EarliestDeadlineFirst", "Fifo", "LeastSlack", "PaperRule", "Policy", "Turn", "policy_by_name", "policy_names",
    "rank_at",
]  # fmt: skip
