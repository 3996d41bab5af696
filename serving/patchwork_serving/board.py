"""What each replica last said of itself, in Ray's own key-value store: no process of its own, readable from every node.

Entries are small JSON documents, written about once a second; readers leave out those that are old, because a killed replica does not
take its entry away.
"""

from __future__ import annotations

import json
import time
from typing import Any

NAMESPACE = b"patchwork"
PUBLISH_EVERY_S = 1.0
STALE_AFTER_S = 10.0


def publish(app: str, replica: str, facts: dict[str, Any]) -> None:
    """Replace the entry of one replica. Blocks for a round trip to Ray's head: call it from a thread."""
    from ray.experimental import internal_kv

    document = {**facts, "replica": replica, "at": time.time()}  # wall clock: read on other machines
    internal_kv._internal_kv_put(_key(app, replica), json.dumps(document).encode(), namespace=NAMESPACE)


def read(app: str) -> list[dict[str, Any]]:
    """Fresh entries of an application, by replica. Blocks: call it from a thread."""
    from ray.experimental import internal_kv

    keys = internal_kv._internal_kv_list(_key(app, ""), namespace=NAMESPACE)
    entries = []
    for key in sorted(keys):
        value = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
        if value is None:
            continue
        entry = json.loads(value)
        if time.time() - entry["at"] <= STALE_AFTER_S:
            entries.append(entry)
        else:
            internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    return entries


def withdraw(app: str, replica: str) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(_key(app, replica), namespace=NAMESPACE)


def _key(app: str, replica: str) -> bytes:
    return f"patchwork/{app}/{replica}".encode()
