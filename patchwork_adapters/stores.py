"""Vector stores that live in the user's process: their content, and how to tell that two processes hold the same."""

from __future__ import annotations

import hashlib
from typing import Any

from patchwork_adapters.leaves.spec import ExportedStore, LeafSpec


def export(spec: LeafSpec, store: Any) -> ExportedStore:
    """The store's rows in its own order; only for specs that have ``export``."""
    assert spec.export is not None
    return spec.export(store)


def fingerprint(spec: LeafSpec, store: Any) -> str:
    """Digest of ids and texts in order. Vectors take no part: they are computed elsewhere and may differ in the last bit."""
    digest = hashlib.sha256()
    for row in export(spec, store).rows:
        digest.update(f"{len(row.id)}:{row.id}{len(row.text)}:{row.text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
