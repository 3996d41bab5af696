"""The user's chain in a deployed process: imported, found by the same paths as in the builder, and swapped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from patchwork_adapters import sites
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.connection import deployed_here
from patchwork_adapters.errors import AdapterError
from patchwork_adapters.external import ExternalCalls
from patchwork_adapters.import_calls import ImportCalls
from patchwork_adapters.leaves.spec import install_construct_hooks
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.record import ImportRecord
from patchwork_adapters.swap import Swap, swap
from patchwork_adapters.target import LoadedTarget, Target, load_target, parse_target
from patchwork_adapters.walk import Walk, find_leaves
from patchwork_serving.release import Release
from patchwork_serving.routing import ModelRouter
from patchwork_serving.transport import CallObserver, NoObserver

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TakenApart:
    """Undone by ``close``, in the reverse order; idempotent."""

    loaded: LoadedTarget
    walk: Walk
    swap: Swap
    _undo: list[Callable[[], None]]

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()


def take_apart(
    release: Release,
    bridge: Bridge,
    record: ImportRecord,
    *,
    keep: frozenset[str] = frozenset(),
    observer: CallObserver | None = None,
) -> TakenApart:
    """Import the module with its leaf calls answered from the record, find the leaves and swap them, all but those in ``keep``.

    ``observer`` watches the calls of hosted APIs, which do not pass through the bridge's transport.

    Raises AdapterError when the module does not hold the leaves that were deployed: then it is another module.
    """
    undo: list[Callable[[], None]] = [deployed_here()]
    cut = OpenAICut(bridge, ModelRouter.of(release), external=external_calls(release, bridge, observer))
    cut.install()
    undo.append(cut.undo)
    elsewhere = {leaf for spec in release.components if spec.way in ("engine", "own") for leaf in spec.leaves} - keep
    if elsewhere:  # their weights are not loaded here; what is kept loads its own at its first call
        undo.append(install_construct_hooks())
    try:
        with ImportCalls(record, is_recording=False).watching():
            loaded = load_target(_here(release))
        walk = find_leaves(loaded.chain, loaded.module, loaded.root)
        if not elsewhere and any(leaf.late is not None for leaf in walk.leaves):
            # what is constructed on each call must not load its weights on each call
            undo.append(install_construct_hooks())
        assignments = {path: a for path, a in assignments_of(release).items() if path not in keep}
        _check(walk, assignments)
        swapped = swap(walk.leaves, assignments, bridge, cut=cut, late_classes=walk.late_classes)
        undo.append(sites.install(walk))
    except BaseException:
        while undo:
            undo.pop()()
        raise
    undo.append(swapped.undo)
    for skipped in swapped.skipped:
        log.warning("%s stays in the orchestrator: %s", skipped.where, skipped.why)
    return TakenApart(loaded, walk, swapped, undo)


def external_calls(release: Release, bridge: Bridge, observer: CallObserver | None = None) -> ExternalCalls | None:
    """The limits of the release's hosted APIs; None when it has none."""
    hosted = [spec for spec in release.components if spec.way == "external"]
    if not hosted:
        return None
    limits = {spec.id: spec.concurrency for spec in hosted if spec.concurrency is not None}
    base_urls = {spec.id: str(spec.engine_args["base_url"]) for spec in hosted if "base_url" in spec.engine_args}
    watch = (observer or NoObserver()).observe
    return ExternalCalls(bridge, ModelRouter.of(release, "external"), limits, watch, base_urls)


def assignments_of(release: Release) -> dict[str, Assignment]:
    """Where each leaf runs, by path."""
    collections = {c.leaf: c for c in release.collections}
    assignments: dict[str, Assignment] = {}
    for spec in release.components:
        for leaf in spec.leaves:
            collection = collections.get(leaf)
            assignments[leaf] = Assignment(
                spec.id,
                spec.way,
                collection=collection.name if collection else None,
                fingerprint=collection.fingerprint if collection else None,
            )
    return assignments


def _here(release: Release) -> Target:
    """The target in this process: on another node the module's folder is the working directory that Ray unpacked."""
    if release.module_dir:
        return parse_target(release.target)
    place, _, attr = release.target.rpartition(":") if ":" in release.target else (release.target, "", "")
    if place.endswith(".py"):
        place = str(Path.cwd() / Path(place).name)
    return parse_target(f"{place}:{attr}" if attr else place)


def _check(walk: Walk, assignments: Mapping[str, Assignment]) -> None:
    missing = sorted(set(assignments) - {leaf.path for leaf in walk.leaves})
    if missing:
        raise AdapterError(
            f"the module holds no {', '.join(missing)} in this process, though it did when it was deployed; "
            "a chain must come out the same at every import (no branches on time, host or chance at module level)"
        )
