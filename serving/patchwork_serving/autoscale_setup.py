"""From a release and its settings to an autoscaler: what its components cost, how many each may have, and of what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from patchwork_scheduler.autoscale import Autoscaler
from patchwork_scheduler.autoscale_model import Bounds, Scaling
from patchwork_scheduler.plan_model import Plan, PlannedComponent
from patchwork_scheduler.profile_model import ComponentProfile, Measured, Point, Profile
from patchwork_scheduler.resources import NodeType, Resources
from patchwork_serving.config import Config
from patchwork_serving.release import ComponentSpec, Release

Mode = Literal["off", "advisory", "on", "ray"]
#: What a replica of an unmeasured component is taken to keep busy; ``num_cpus`` of most components is Ray's bookkeeping.
CORES = 1.0
#: Ray Serve wants a number where there is no limit.
MANY = 1000


def mode_of(config: Config, release: Release) -> Mode:
    """As configured; by default a planned release is watched and advised, and nothing else is."""
    return config.autoscale.mode or ("advisory" if release.plan is not None else "off")


def scaled(release: Release) -> list[ComponentSpec]:
    """The components whose replicas may change."""
    return [spec for spec in release.components if spec.way != "external"]


def bounds_of(spec: ComponentSpec, config: Config) -> Bounds:
    """A component with ``replicas`` in ``patchwork.yaml``, and no limits of its own, keeps them."""
    wish, general = config.components.get(spec.id), config.autoscale
    if wish is not None and wish.replicas is not None and wish.min_replicas is None and wish.max_replicas is None:
        return Bounds(spec.replicas, spec.replicas)
    least = general.min if wish is None or wish.min_replicas is None else wish.min_replicas
    most = general.max if wish is None or wish.max_replicas is None else wish.max_replicas
    return Bounds(least, None if most is None else max(most, least))


def release_key(release: Release, config: Config) -> str:
    """Changes when decisions for the release before mean nothing for this one: other components, counts, plan or limits."""
    facts = [
        [(spec.id, spec.replicas) for spec in scaled(release)],
        release.plan,
        config.autoscale.model_dump(mode="json"),
        [asdict(bounds_of(spec, config)) for spec in scaled(release)],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the components' costs."""

    profile: Profile
    batches: Mapping[str, int]
    assumed: tuple[str, ...] = ()  #: components that nobody measured


def autoscaler_of(release: Release, config: Config, nodes: Iterable[Mapping[str, Any]]) -> Autoscaler:
    """``nodes``: as ``ray.nodes()`` tells them."""
    known = known_of(release)
    settings = config.autoscale
    scaling = Scaling(
        plan_for=settings.utilisation,
        up_at=min(1.0, settings.utilisation + 0.1),
        down_to=settings.utilisation + 0.03,
        settle_s=settings.settle_s,
        idle_s=settings.idle_s,
    )
    return Autoscaler(
        known.profile,
        _resources(config, release, known.profile, nodes),
        scaling,
        bounds={spec.id: bounds_of(spec, config) for spec in scaled(release)},
        batches=known.batches,
        assumed=known.assumed,
        slo_s=release.slo_s,
    )


def known_of(release: Release) -> Known:
    """From the plan and the profile inside it; without a plan, from what will be observed."""
    if release.plan is None:
        specs = scaled(release)
        components = tuple(_assumed(spec) for spec in specs)
        return Known(Profile(release.name, components), {}, tuple(spec.id for spec in specs))
    plan = Plan.from_json(release.plan)
    external = tuple(c for c in plan.profile.components if c.external) if plan.profile else ()
    glue_s = plan.profile.glue_s if plan.profile else 0.0
    components = tuple(_planned(c, plan.profile) for c in plan.components if c.placements)
    batches = {c.id: c.placements[0].batch for c in plan.components if c.placements}
    return Known(Profile(plan.chain, components + external, glue_s=glue_s), batches)


def _assumed(spec: ComponentSpec) -> ComponentProfile:
    """One second a call: the autoscaler waits until it knows better."""
    cpus = 0.0 if spec.num_gpus else max(spec.num_cpus, CORES)
    return ComponentProfile(
        spec.id, 1.0, (Measured("any", (Point(1, 1.0),), cpus=cpus, gpus=spec.num_gpus),), spec.kind
    )


def _planned(planned: PlannedComponent, profile: Profile | None) -> ComponentProfile:
    """As measured where most of its replicas are; without the profile, what the plan says of them."""
    place = max(planned.placements, key=lambda p: p.replicas)
    if profile is not None:
        component = profile.component(planned.id)
        wanted = (place.hardware, place.cpus, place.gpus)
        here = tuple(m for m in component.measured if (m.hardware, m.cpus, m.gpus) == wanted)
        if here:
            return replace(component, measured=here)
    point = Point(place.batch, place.seconds, memory_bytes=place.memory_bytes)
    return ComponentProfile(
        planned.id, planned.visits, (Measured(place.hardware, (point,), cpus=place.cpus, gpus=place.gpus),)
    )


def _resources(config: Config, release: Release, profile: Profile, nodes: Iterable[Mapping[str, Any]]) -> Resources:
    """What ``patchwork.yaml`` allows, else what the plan was made for, else the cluster's living nodes."""
    hardware = tuple(sorted({m.hardware for c in profile.components for m in c.measured}))
    wish = config.autoscale
    if wish.cpus is not None or wish.gpus is not None:
        return Resources((NodeType("allowed", float(wish.cpus or 0), wish.gpus or 0, hardware=hardware),))
    planned_for = None if release.plan is None else Plan.from_json(release.plan).resources
    if planned_for is not None:
        return planned_for
    living = [node["Resources"] for node in nodes if node.get("Alive")]
    return Resources(
        tuple(
            NodeType(f"node-{i}", float(one.get("CPU", 0)), int(one.get("GPU", 0)), hardware=hardware)
            for i, one in enumerate(living)
        )
    )
