"""Which components of a deployed application serve the leaves of a chain in another program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchwork_adapters import stores
from patchwork_adapters.binding import Assignment
from patchwork_adapters.walk import Leaf
from patchwork_serving.assign import Assigned
from patchwork_serving.cli_apps import ask_info
from patchwork_serving.errors import DeployError
from patchwork_serving.state import AppState


def assignments_in(app: AppState, leaves: Sequence[Leaf], assigned: Assigned) -> dict[str, Assignment]:
    """A component of ``app`` for each leaf: models by kind and name, stores by their content. DeployError when one is missing."""
    info = ask_info(app.url.rstrip("/"))
    if info is None:
        raise DeployError(f"{app.name} does not answer at {app.url}; see `patchwork status`")
    found = {leaf.path: _assignment(leaf, assigned, info["release"]) for leaf in leaves}
    missing = [path for path, assignment in found.items() if assignment is None]
    if missing:
        raise DeployError(
            f"{app.name} has no component for {', '.join(missing)}: it was deployed for other models, or its stores hold other documents; "
            "leave the name out to start components for this chain"
        )
    return {path: assignment for path, assignment in found.items() if assignment is not None}


def _assignment(leaf: Leaf, assigned: Assigned, release: Mapping[str, Any]) -> Assignment | None:
    if leaf.spec.export is not None:
        return _store(leaf, release)
    planned = assigned.placed.assignments[leaf.path]
    spec = next(spec for spec in assigned.specs if spec.id == planned.component)
    return next(
        (
            Assignment(component["id"], planned.way)
            for component in release["components"]
            if (component["kind"], component["engine"], component["model"]) == (spec.kind, spec.engine, spec.model)
        ),
        None,
    )


def _store(leaf: Leaf, release: Mapping[str, Any]) -> Assignment | None:
    content = stores.fingerprint(leaf.spec, leaf.obj)
    for collection in release["collections"]:
        if collection["fingerprint"] != content:
            continue
        for component in release["graph"]["components"]:
            if collection["leaf"] in component["leaves"]:
                return Assignment(component["id"], "engine", collection["name"], content)
    return None
