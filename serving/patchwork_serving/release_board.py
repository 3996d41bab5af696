"""What of a release may change while the ingress that runs stays: its plan, and how many replicas its components have.

Deploying again with other numbers replaces nothing that runs, so ingress replicas look them up here, in Ray's own key-value store. Calls
block for a round trip to Ray's head: make them from a thread.
"""

from __future__ import annotations

import dataclasses
import json

from patchwork_serving.board import NAMESPACE
from patchwork_serving.release import Release

_PREFIX = "release/"


def write(release: Release) -> None:
    from ray.experimental import internal_kv

    document = {"replicas": {spec.id: spec.replicas for spec in release.components}, "plan": release.plan}
    internal_kv._internal_kv_put(_key(release.name), json.dumps(document).encode(), namespace=NAMESPACE)


def current(release: Release) -> Release:
    """``release`` with the numbers that were deployed last."""
    from ray.experimental import internal_kv

    value = internal_kv._internal_kv_get(_key(release.name), namespace=NAMESPACE)
    return release if value is None else updated(release, value)


def updated(release: Release, document: bytes) -> Release:
    """``release`` with what is written in ``document``; components that it does not name, of another release, keep theirs."""
    written = json.loads(document)
    components = tuple(
        dataclasses.replace(spec, replicas=written["replicas"].get(spec.id, spec.replicas))
        for spec in release.components
    )
    return dataclasses.replace(release, components=components, plan=written["plan"])


def forget(app: str) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(_key(app), namespace=NAMESPACE)


def _key(app: str) -> bytes:
    return f"{_PREFIX}{app}".encode()
