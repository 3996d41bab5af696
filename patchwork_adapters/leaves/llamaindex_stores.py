"""``SimpleVectorStore`` on an exported collection.

It keeps vectors and metadata only; texts are the document store's, which stays where it is. Default-mode queries with at most flat
equality filters go to the component, all others run locally. Writes go to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from patchwork_adapters.binding import Bound
from patchwork_adapters.leaves.spec import ExportedStore
from patchwork_adapters.operations import SearchRequest, StoredRow


def export_simple(store: Any) -> ExportedStore:
    return ExportedStore(tuple(_row(store, id_) for id_ in store.data.embedding_dict), "cosine")


def simple_methods(cls: type) -> Mapping[str, Callable[..., Any]]:
    methods: dict[str, Callable[..., Any]] = {
        "query": _query,
        "aquery": _aquery,
        "add": _add,
        "async_add": _async_add,
        "delete": _delete,
        "adelete": _adelete,
        "delete_nodes": _delete_nodes,
        "adelete_nodes": _adelete_nodes,
        "clear": _clear,
        "aclear": _aclear,
    }
    return {name: method for name, method in methods.items() if _is_cores(cls, name)}


def _is_cores(cls: type, name: str) -> bool:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    return owner is not None and owner.__module__.startswith("llama_index.core.")


def _query(leaf: Bound, query: Any, **kwargs: Any) -> Any:
    request = _request(leaf, query, kwargs)
    return leaf.local.query(query, **kwargs) if request is None else _result(leaf.ask("search", request))


async def _aquery(leaf: Bound, query: Any, **kwargs: Any) -> Any:
    request = _request(leaf, query, kwargs)
    # not local.aquery: it calls query, which is ours and would decide again
    return leaf.local.query(query, **kwargs) if request is None else _result(await leaf.aask("search", request))


def _request(leaf: Bound, query: Any, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """None: the operation cannot express the query."""
    where = _equalities(leaf.obj, query.filters)
    k = query.similarity_top_k
    if (
        kwargs
        or where is None
        or query.mode != "default"
        or query.query_embedding is None
        or not isinstance(k, int)
        or k <= 0
    ):
        return None
    ids = None if query.node_ids is None else tuple(query.node_ids)
    vector = np.asarray(query.query_embedding, dtype=np.float32)
    return SearchRequest(leaf.collection, vector, k, ids=ids, where=where).to_dict()


def _equalities(store: Any, filters: Any) -> dict[str, Any] | None:
    """Flat equality filters joined by "and"; None for any other."""
    if filters is None or not filters.filters:
        return {}
    if not store.data.metadata_dict or filters.condition not in (None, "and"):
        return None
    found: dict[str, Any] = {}
    for one in filters.filters:
        value = getattr(one, "value", None)
        if getattr(one, "operator", None) != "==" or type(value) not in (str, int) or one.key in found:
            return None  # a float equals an int, and may not survive a database exactly
        found[one.key] = value
    return found


def _result(hits: list[Any]) -> Any:
    from llama_index.core.vector_stores.types import VectorStoreQueryResult

    # the type that the original computes: it shows where somebody prints the scores
    similarities: list[Any] = [np.float64(hit["score"]) for hit in hits]
    return VectorStoreQueryResult(similarities=similarities, ids=[hit["id"] for hit in hits])


def _add(leaf: Bound, nodes: Sequence[Any], **kwargs: Any) -> list[str]:
    added: list[str] = leaf.local.add(nodes, **kwargs)
    if added:
        leaf.ask("add", _rows(leaf, added), size=len(added))
    return added


async def _async_add(leaf: Bound, nodes: Sequence[Any], **kwargs: Any) -> list[str]:
    added: list[str] = leaf.local.add(nodes, **kwargs)
    if added:
        await leaf.aask("add", _rows(leaf, added), size=len(added))
    return added


def _delete(leaf: Bound, ref_doc_id: str, **kwargs: Any) -> None:
    _ask_delete(leaf, _gone(leaf, lambda: leaf.local.delete(ref_doc_id, **kwargs)))


async def _adelete(leaf: Bound, ref_doc_id: str, **kwargs: Any) -> None:
    await _aask_delete(leaf, _gone(leaf, lambda: leaf.local.delete(ref_doc_id, **kwargs)))


def _delete_nodes(leaf: Bound, node_ids: list[str] | None = None, filters: Any = None, **kwargs: Any) -> None:
    _ask_delete(leaf, _gone(leaf, lambda: leaf.local.delete_nodes(node_ids, filters, **kwargs)))


async def _adelete_nodes(leaf: Bound, node_ids: list[str] | None = None, filters: Any = None, **kwargs: Any) -> None:
    await _aask_delete(leaf, _gone(leaf, lambda: leaf.local.delete_nodes(node_ids, filters, **kwargs)))


def _clear(leaf: Bound) -> None:
    leaf.local.clear()
    leaf.ask("delete", {"collection": leaf.collection, "ids": None})


async def _aclear(leaf: Bound) -> None:
    leaf.local.clear()
    await leaf.aask("delete", {"collection": leaf.collection, "ids": None})


def _gone(leaf: Bound, act: Callable[[], None]) -> list[str]:
    """Ids that an act removes from the local store."""
    before = list(leaf.obj.data.embedding_dict)
    act()
    return [id_ for id_ in before if id_ not in leaf.obj.data.embedding_dict]


def _ask_delete(leaf: Bound, ids: list[str]) -> None:
    if ids:
        leaf.ask("delete", {"collection": leaf.collection, "ids": ids})


async def _aask_delete(leaf: Bound, ids: list[str]) -> None:
    if ids:
        await leaf.aask("delete", {"collection": leaf.collection, "ids": ids})


def _rows(leaf: Bound, ids: Sequence[str]) -> dict[str, Any]:
    return {"collection": leaf.collection, "rows": [_row(leaf.obj, id_).to_dict() for id_ in dict.fromkeys(ids)]}


def _row(store: Any, id_: str) -> StoredRow:
    metadata = (store.data.metadata_dict or {}).get(id_, {})
    return StoredRow(id_, "", metadata, np.asarray(store.data.embedding_dict[id_], dtype=np.float32))
