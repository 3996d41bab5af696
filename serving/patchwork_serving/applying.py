"""A plan becomes a release: how many replicas, with which batches, cores and GPUs. Pure; a plan that does not fit changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from patchwork_scheduler.cost import fit_cost
from patchwork_scheduler.errors import IncompleteProfile, InvalidInput
from patchwork_scheduler.plan_model import PLAN_REMEDY, Placement, Plan, PlannedComponent
from patchwork_scheduler.profile_model import Profile
from patchwork_serving.release import ComponentSpec, Release

#: Engines that batch inside: for them a batch is the number of calls that may be in at once.
_CONTINUOUS = frozenset({"llamacpp", "openvino", "vllm", "own"})
#: What an emulated replica asks of Ray: it sleeps.
_EMULATED_CPUS = 0.01


def apply_plan(release: Release, plan: Plan) -> Release:
    """The release with the plan's choices. ProfileMismatch or InvalidInput when the plan is not one for these components."""
    placed = [spec for spec in release.components if spec.way != "external"]
    plan.check_components([spec.id for spec in placed])
    planned = {c.id: c for c in plan.components}
    components = tuple(
        planned_spec(spec, planned[spec.id], plan.profile) if spec.id in planned else spec
        for spec in release.components
    )
    return dataclasses.replace(release, components=components, plan=plan.to_json())


def planned_spec(spec: ComponentSpec, planned: PlannedComponent, profile: Profile | None) -> ComponentSpec:
    """One component as planned; with no placement it keeps its settings and has no replica."""
    if not planned.placements:
        return dataclasses.replace(spec, replicas=0)
    place = _main(planned)
    batch: dict[str, Any] = {"slots": place.batch} if _is_continuous(spec) else {"max_batch": place.batch}
    cpus, gpus = (_EMULATED_CPUS, 0.0) if spec.is_emulated else (place.cpus, place.gpus)
    return dataclasses.replace(
        spec, replicas=planned.replicas, num_cpus=cpus, num_gpus=gpus, cost=_cost(spec, place, profile), **batch
    )


def _main(planned: PlannedComponent) -> Placement:
    """The placement that says what each replica asks for: replicas of one component are equal in Ray Serve."""
    first = planned.placements[0]
    asked = {(p.cpus, p.gpus) for p in planned.placements}
    if len(asked) > 1:
        raise InvalidInput(
            f"the plan: {planned.id!r} is placed on hardware of different sorts ({', '.join(p.hardware for p in planned.placements)}), "
            f"which one deployment cannot have; fix its hardware, or give fewer sorts of nodes; {PLAN_REMEDY}"
        )
    return max(planned.placements, key=lambda p: (p.replicas, -p.batch), default=first)


def _is_continuous(spec: ComponentSpec) -> bool:
    return spec.emulate is None and (spec.engine in _CONTINUOUS or (spec.engine == "emulated" and spec.kind == "llm"))


def _cost(spec: ComponentSpec, place: Placement, profile: Profile | None) -> Mapping[str, Any] | None:
    """What its calls cost by the profile; what it knew before where the profile tells nothing."""
    if spec.is_emulated or profile is None:
        return spec.cost
    component = next((c for c in profile.components if c.id == spec.id), None)
    measured = next((m for m in component.measured if m.hardware == place.hardware), None) if component else None
    if measured is None or component is None:
        return spec.cost
    rows: list[dict[str, float]] = [dict(row) for row in measured.rows]
    if not rows and spec.kind != "llm":
        rows = [{"batch": p.batch, "seconds": p.seconds} for p in measured.batch_points(component.tokens)]
    try:
        return dataclasses.asdict(fit_cost(rows))
    except IncompleteProfile:
        return spec.cost
