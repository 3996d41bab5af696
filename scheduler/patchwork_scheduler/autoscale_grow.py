"""Adding replicas within the resources: those that do not fit take the place of what others do not need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from patchwork_scheduler.autoscale_capacity import Capacity, Wanted


class Grown(NamedTuple):
    """Replicas by component after adding, and what stood in the way of more ("" when nothing did)."""

    replicas: dict[str, int]
    limit: str = ""


def grown(
    targets: Mapping[str, int],
    up: Mapping[str, int],
    wanted: Wanted,
    *,
    may_give: Collection[str],
    pressure: Mapping[str, float],
    capacity: Capacity,
) -> Grown:
    """``up`` on top of ``targets``, as far as it fits. ``may_give``: components that may be lowered to what is wanted of them;
    ``pressure``: demand in replicas, so that the fullest grows first."""
    after = {**targets, **up}
    if capacity.fits(after):
        return Grown(after)
    lowered = dict(targets)
    for name in may_give:
        lowered[name] = min(targets[name], wanted.replicas.get(name, targets[name]))
    if capacity.fits({**lowered, **up}):
        return Grown({**lowered, **up})
    if not capacity.fits(lowered):
        return Grown(
            dict(targets), "the replicas that run already need more than the resources given to the autoscaler"
        )
    return _one_by_one(lowered, up, pressure, capacity)


def _one_by_one(
    after: dict[str, int], up: Mapping[str, int], pressure: Mapping[str, float], capacity: Capacity
) -> Grown:
    while missing := [name for name in up if after[name] < up[name]]:
        missing.sort(key=lambda name: pressure.get(name, 0.0) / max(after[name], 0.5), reverse=True)
        fitting = next((name for name in missing if capacity.fits(after | {name: after[name] + 1})), None)
        if fitting is None:
            return Grown(
                after, f"there is no room for more replicas of {', '.join(sorted(missing))}; give more resources"
            )
        after[fitting] += 1
    return Grown(after)
