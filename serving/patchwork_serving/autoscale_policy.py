"""What runs inside Ray Serve's controller: the number of replicas that the autoscaler decided. Ray sends this module there by value, so it
imports nothing of ours; where the decision comes from is in ``autoscaling``, and why it is so in docs/decisions/autoscaling.md."""

from __future__ import annotations

import json
import time
from typing import Any

NAMESPACE = b"patchwork"
PREFIX = "autoscale/"
#: Serve asks ten times a second for each deployment; a decision is made every few seconds.
READ_EVERY_S = 0.5


class FollowDecisions:
    """A Ray Serve autoscaling policy. Without a decision for this ``release``, and while none can be read, everything stays as it is."""

    def __init__(self, release: str) -> None:
        self._release = release
        self._read_at = float("-inf")
        self._targets: dict[str, int] = {}

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        now = time.monotonic()
        if now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            self._targets = self._read(context.app_name)
        return self._targets.get(context.deployment_name, context.target_num_replicas), {}

    def _read(self, app: str) -> dict[str, int]:
        from ray.experimental import internal_kv

        try:
            value = internal_kv._internal_kv_get(f"{PREFIX}{app}".encode(), namespace=NAMESPACE)
            document = json.loads(value) if value else {}
        except Exception:  # noqa: BLE001  Ray's head may be restarting; Serve's control loop must go on
            return self._targets
        return dict(document["targets"]) if document.get("release") == self._release else {}
