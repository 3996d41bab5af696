"""``InMemoryVectorStore`` on an exported collection.

Searches go to the component; what is found is returned from the local store by id, so that metadata keep their exact types and the
identity that the original gives them. What the operation cannot express (a filter function, a negative k) runs locally, as before.
Writes go to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from patchwork_adapters.binding import Bound
from patchwork_adapters.leaves.spec import ExportedStore
from patchwork_adapters.operations import SearchRequest, StoredRow

_SCORED = "similarity_search_with_score_by_vector"


def export_in_memory(store: Any) -> ExportedStore:
    return ExportedStore(tuple(_row(entry) for entry in store.store.values()), "cosine")


def in_memory_methods(cls: type) -> Mapping[str, Callable[..., Any]]:
    methods: dict[str, Callable[..., Any]] = {
        "_similarity_search_with_score_by_vector": _search_with_vectors,
        "add_documents": _add_documents,
        "aadd_documents": _aadd_documents,
        "delete": _delete,
        "adelete": _adelete,
        "get_by_ids": _get_by_ids,
        "aget_by_ids": _aget_by_ids,
    }
    if _is_cores(cls, _SCORED):
        methods[_SCORED] = _search_scored
        # the original's asynchronous methods search synchronously; these wait properly. A subclass that changed the synchronous
        # search gets its own version called, as the original would
        if _is_cores(cls, "asimilarity_search_with_score"):
            methods["asimilarity_search_with_score"] = _asearch_scored
        if _is_cores(cls, "asimilarity_search_by_vector") and _is_cores(cls, "similarity_search_by_vector"):
            methods["asimilarity_search_by_vector"] = _asearch_by_vector
    return {name: method for name, method in methods.items() if _is_cores(cls, name)}


def _is_cores(cls: type, name: str) -> bool:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    return owner is not None and owner.__module__ == "langchain_core.vectorstores.in_memory"


def _search_with_vectors(leaf: Bound, embedding: list[float], k: int = 4, filter: Any = None) -> list[Any]:
    if not _can_ask(k, filter):
        found: list[Any] = leaf.local._similarity_search_with_score_by_vector(embedding, k, filter)
        return found
    hits = leaf.ask("search", _request(leaf, embedding, k, with_vectors=True))
    return [(_document(leaf, hit), hit["score"], _vector(leaf, hit)) for hit in hits]


def _search_scored(leaf: Bound, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any) -> list[Any]:
    if not _can_ask(k, filter):
        found: list[Any] = leaf.local.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        return found
    return [(_document(leaf, hit), hit["score"]) for hit in leaf.ask("search", _request(leaf, embedding, k))]


async def _asearch(leaf: Bound, embedding: list[float], k: int) -> list[Any]:
    hits = await leaf.aask("search", _request(leaf, embedding, k))
    return [(_document(leaf, hit), hit["score"]) for hit in hits]


async def _asearch_scored(leaf: Bound, query: str, k: int = 4, **kwargs: Any) -> list[Any]:
    if not _can_ask(k, kwargs.get("filter")):
        found: list[Any] = await leaf.local.asimilarity_search_with_score(query, k, **kwargs)
        return found
    return await _asearch(leaf, await leaf.obj.embedding.aembed_query(query), k)


async def _asearch_by_vector(leaf: Bound, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Any]:
    if not _can_ask(k, kwargs.get("filter")):
        found: list[Any] = await leaf.local.asimilarity_search_by_vector(embedding, k, **kwargs)
        return found
    return [document for document, _ in await _asearch(leaf, embedding, k)]


def _add_documents(leaf: Bound, documents: list[Any], ids: list[str] | None = None, **kwargs: Any) -> list[str]:
    added: list[str] = leaf.local.add_documents(documents, ids, **kwargs)
    if added:
        leaf.ask("add", _rows(leaf, added), size=len(added))
    return added


async def _aadd_documents(leaf: Bound, documents: list[Any], ids: list[str] | None = None, **kwargs: Any) -> list[str]:
    added: list[str] = await leaf.local.aadd_documents(documents, ids, **kwargs)
    if added:
        await leaf.aask("add", _rows(leaf, added), size=len(added))
    return added


def _delete(leaf: Bound, ids: Sequence[str] | None = None, **kwargs: Any) -> None:
    leaf.local.delete(ids, **kwargs)
    if ids:  # the original does nothing without ids; the operation would delete all
        leaf.ask("delete", {"collection": leaf.collection, "ids": list(ids)})


async def _adelete(leaf: Bound, ids: Sequence[str] | None = None, **kwargs: Any) -> None:
    leaf.local.delete(ids, **kwargs)  # not local.adelete: it calls delete, which is ours and would send the same again
    if ids:
        await leaf.aask("delete", {"collection": leaf.collection, "ids": list(ids)})


def _get_by_ids(leaf: Bound, ids: Sequence[str], /) -> list[Any]:
    missing = _missing(leaf, ids)
    return _found(leaf, ids, leaf.ask("get", {"collection": leaf.collection, "ids": missing}) if missing else [])


async def _aget_by_ids(leaf: Bound, ids: Sequence[str], /) -> list[Any]:
    missing = _missing(leaf, ids)
    return _found(leaf, ids, await leaf.aask("get", {"collection": leaf.collection, "ids": missing}) if missing else [])


def _missing(leaf: Bound, ids: Sequence[str]) -> list[str]:
    """Ids that another process may have added."""
    return [id_ for id_ in ids if id_ not in leaf.obj.store]


def _found(leaf: Bound, ids: Sequence[str], elsewhere: list[Any]) -> list[Any]:
    hits = {hit["id"]: hit for hit in elsewhere}
    return [_document(leaf, hits.get(id_, {"id": id_})) for id_ in ids if id_ in leaf.obj.store or id_ in hits]


def _can_ask(k: int, filter: Any) -> bool:
    return filter is None and isinstance(k, int) and k > 0


def _request(leaf: Bound, embedding: Any, k: int, *, with_vectors: bool = False) -> dict[str, Any]:
    vector = np.asarray(embedding, dtype=np.float32)
    return SearchRequest(leaf.collection, vector, k, with_vectors=with_vectors).to_dict()


def _document(leaf: Bound, hit: Mapping[str, Any]) -> Any:
    from langchain_core.documents import Document

    entry = leaf.obj.store.get(hit["id"]) or hit
    return Document(id=entry["id"], page_content=entry["text"], metadata=entry["metadata"])


def _vector(leaf: Bound, hit: Mapping[str, Any]) -> Any:
    entry = leaf.obj.store.get(hit["id"])
    return entry["vector"] if entry is not None else np.asarray(hit["vector"]).tolist()


def _rows(leaf: Bound, ids: Sequence[str]) -> dict[str, Any]:
    return {"collection": leaf.collection, "rows": [_row(leaf.obj.store[id_]).to_dict() for id_ in dict.fromkeys(ids)]}


def _row(entry: Mapping[str, Any]) -> StoredRow:
    return StoredRow(entry["id"], entry["text"], entry["metadata"], np.asarray(entry["vector"], dtype=np.float32))
