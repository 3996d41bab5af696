"""Which ingress replica keeps the state that a request is about. Pure (docs/decisions/conversations.md).

A chain's state (checkpoints in memory, histories) lives in the process that made it. The request says what it is about in its config; a
replica is responsible for it by its rank, which Serve gives to a replica's successor, so that nothing else moves when one is replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patchwork_adapters.state import ALL


@dataclass(frozen=True, slots=True)
class Place:
    """An ingress replica."""

    name: str
    rank: int


def keys_of(affinity: str, document: Any) -> frozenset[str]:
    """What the request is about: one key, none when it does not say, several for a batch about several things."""
    if affinity == ALL:
        return frozenset({ALL})
    config = document.get("config") if isinstance(document, dict) else None
    configs = config if isinstance(config, list) else [config]
    found = (_key(affinity.split("+"), one) for one in configs)
    return frozenset(key for key in found if key is not None)


def owner_of(key: str, places: Sequence[Place], count: int) -> str | None:
    """The replica that keeps the key's state, of the ``count`` that there are at rest; None when no replica is known.

    While that one is being replaced, it is one of the others: they cannot have the state, but they can answer.
    """
    rank = _number(key) % count
    name = next((place.name for place in places if place.rank == rank), None)
    return name or max((place.name for place in places), key=lambda name: _number(f"{key} {name}"), default=None)


def _key(names: Sequence[str], config: Any) -> str | None:
    configurable = config.get("configurable") if isinstance(config, dict) else None
    if not isinstance(configurable, dict) or not any(name in configurable for name in names):
        return None
    return repr([str(configurable.get(name)) for name in names])


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
