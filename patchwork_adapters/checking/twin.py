"""An exported store searched in memory: the retriever operations of ``patchwork_adapters.operations``, by exact comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patchwork_adapters import codec
from patchwork_adapters.leaves.spec import ExportedStore
from patchwork_adapters.operations import Hit


class Collections:
    """By name; each holds the rows of one store."""

    def __init__(self, stores: Mapping[str, ExportedStore]) -> None:
        self._rows = {name: {row.id: row.to_dict() for row in store.rows} for name, store in stores.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def run(self, name: str, operation: str, arguments: Mapping[str, Any]) -> bytes:
        """The encoded outcome of an operation."""
        rows = self._rows[name]
        match operation:
            case "search":
                return codec.encode_outcome([hit.to_dict() for hit in _search(rows, arguments)])
            case "get":
                found = [rows[id_] for id_ in arguments["ids"] if id_ in rows]
                hits = [Hit(r["id"], r["text"], r["metadata"], 0.0, r["vector"]) for r in found]
                return codec.encode_outcome([hit.to_dict() for hit in hits])
            case "add":
                rows.update({row["id"]: row for row in arguments["rows"]})
                return codec.encode_outcome(len(arguments["rows"]))
            case "delete":
                ids = list(rows) if arguments["ids"] is None else arguments["ids"]
                return codec.encode_outcome(sum(rows.pop(id_, None) is not None for id_ in ids))
            case other:
                raise ValueError(f"a store has no operation {other!r}")


def _search(rows: Mapping[str, Mapping[str, Any]], arguments: Mapping[str, Any]) -> list[Hit]:
    wanted, where = arguments["ids"], arguments["where"]
    asked = np.asarray(arguments["vector"], dtype=np.float64)
    hits = [
        Hit(row["id"], row["text"], row["metadata"], _cosine(asked, row["vector"]), row["vector"])
        for row in rows.values()
        if (wanted is None or row["id"] in wanted) and all(row["metadata"].get(k) == v for k, v in where.items())
    ]
    return sorted(hits, key=lambda hit: -hit.score)[: arguments["k"]]


def _cosine(a: Any, b: Any) -> float:
    b = np.asarray(b, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
