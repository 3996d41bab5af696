"""The replicas that Ray Serve told this process of, by deployment: written by ``replica_router``, read by the transport.

A module of its own, because Serve carries the router's module by value: a table inside it would exist twice.
"""

from __future__ import annotations

Names = tuple[str, ...]

_NAMES: dict[tuple[str, str], Names] = {}


def tell(app: str, deployment: str, names: Names) -> None:
    """Replace what is known. Safe from any thread: one assignment."""
    _NAMES[app, deployment] = names


def names(app: str, deployment: str) -> Names:
    """Unique ids of the replicas that can be called; empty before the first call through a handle. The same object until it changes."""
    return _NAMES.get((app, deployment), ())
