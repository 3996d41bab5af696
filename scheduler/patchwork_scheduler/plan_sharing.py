"""Replicas that share cores: on a machine that is too small for each to have those that it keeps busy. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from patchwork_scheduler.plan_model import Fixed
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import NodeType, Resources

STEP = 0.01  #: shares are multiples of it


def needed_cores(profile: Profile, resources: Resources, fixed: Mapping[str, Fixed]) -> float:
    """Cores that one replica of everything (or the fixed number) keeps busy on a single machine; 0 when there are several nodes."""
    node = _only(resources)
    return 0.0 if node is None else sum(_least(c, node, fixed) for c in profile.components if not c.external)


def sharing_cores(
    profile: Profile, resources: Resources, fixed: Mapping[str, Fixed], keep: Collection[str] = ()
) -> Profile:
    """The profile with shares instead of whole cores, where a single machine has fewer than one replica of everything keeps busy.

    Shares are in proportion to what is kept busy, but for components in ``keep``, which have the cores that they were given. What
    replicas do together is then bounded by the cores there are (``Plan.core_s``).
    """
    node = _only(resources)
    needed = needed_cores(profile, resources, fixed)
    if node is None or needed <= node.cpus:
        return profile
    kept = sum(_least(c, node, fixed) for c in profile.components if c.id in keep)
    if node.cpus - kept <= 0:
        return profile  # what was given by hand is too much already: that is told instead
    factor = (node.cpus - kept) / (needed - kept)
    return replace(
        profile, components=tuple(c if c.external or c.id in keep else _smaller(c, factor) for c in profile.components)
    )


def _only(resources: Resources) -> NodeType | None:
    nodes = resources.types()
    return nodes[0] if len(nodes) == 1 and nodes[0].count == 1 else None


def _least(component: ComponentProfile, node: NodeType, fixed: Mapping[str, Fixed]) -> float:
    wish = fixed.get(component.id, Fixed())
    here = [m.cpus for m in component.measured if m.hardware in node.offers and wish.hardware in (None, m.hardware)]
    return wish.least * min(here, default=0.0)


def _smaller(component: ComponentProfile, factor: float) -> ComponentProfile:
    measured = tuple(
        m.given(cpus=max(STEP, math.floor(m.cpus * factor / STEP) * STEP)) if m.cpus else m for m in component.measured
    )
    return replace(component, measured=measured)
