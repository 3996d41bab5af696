"""Which path each application has, and what is needed to give it another: kept in Ray's own key-value store, on the cluster.

An application is at ``/`` while it is alone. Serve cannot change the path of an application by itself, so it is run again with another
one; all versions stay the same, and Serve replaces no replica. The bundle holds secrets: it stays where Serve keeps it anyway.
"""

from __future__ import annotations

from ray import cloudpickle
from ray.experimental import internal_kv

from patchwork_serving.board import NAMESPACE
from patchwork_serving.bundle import Bundle

_PREFIX = "routes/"


def keep(bundle: Bundle, route_prefix: str) -> None:
    internal_kv._internal_kv_put(
        _key(bundle.release.name), cloudpickle.dumps((bundle, route_prefix)), namespace=NAMESPACE
    )


def load(name: str) -> tuple[Bundle, str]:
    """The bundle and the path of an application in :func:`names`."""
    value = internal_kv._internal_kv_get(_key(name), namespace=NAMESPACE)
    bundle, prefix = cloudpickle.loads(value)
    return bundle, prefix


def names() -> list[str]:
    keys = internal_kv._internal_kv_list(_PREFIX.encode(), namespace=NAMESPACE)
    return sorted(key.decode().removeprefix(_PREFIX) for key in keys)


def forget(name: str) -> None:
    internal_kv._internal_kv_del(_key(name), namespace=NAMESPACE)


def _key(name: str) -> bytes:
    return f"{_PREFIX}{name}".encode()
