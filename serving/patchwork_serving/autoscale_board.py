"""The autoscaler's last word on an application, in Ray's own key-value store: Serve's controller, every ingress replica and ``status`` read
it, and whoever decides next goes on from it. Calls block for a round trip to Ray's head: make them from a thread."""

from __future__ import annotations

import json
from typing import Any

from patchwork_serving.autoscale_policy import NAMESPACE, PREFIX


def read(app: str) -> dict[str, Any]:
    """``{release, mode, targets, decisions, numbers, changes}``; empty when nothing was decided yet."""
    from ray.experimental import internal_kv

    value = internal_kv._internal_kv_get(f"{PREFIX}{app}".encode(), namespace=NAMESPACE)
    return json.loads(value) if value else {}


def write(app: str, document: dict[str, Any]) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(f"{PREFIX}{app}".encode(), json.dumps(document).encode(), namespace=NAMESPACE)


def forget(app: str) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(f"{PREFIX}{app}".encode(), namespace=NAMESPACE)
