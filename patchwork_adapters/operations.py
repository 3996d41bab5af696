"""Operations of the ``engine`` way: what a swapped leaf may ask of a shared engine, by kind.

The payload is ``codec.encode(arguments)``, the reply ``codec.encode_outcome(result)``. Shapes:

embedder   ``embed``   {"texts": list[str], "normalize": bool | None}           -> float32 array (len(texts), dim)
llm        ``chat``    {"body": OpenAI chat completion request}                 -> OpenAI chat completion response (dict);
                        streamed: OpenAI chunk dicts. ``complete`` likewise for text completions.
reranker   ``score``   {"pairs": list[tuple[str, str]]}                         -> float32 array (len(pairs),)
retriever  ``search``  SearchRequest.to_dict()                                  -> list[Hit as dict], best first
           ``get``     {"collection": str, "ids": list[str]}                    -> list[Hit as dict]
           ``add``     {"collection": str, "rows": list[StoredRow as dict]}     -> number of rows written
           ``delete``  {"collection": str, "ids": list[str] | None}             -> number of rows deleted
           ``add`` and ``delete`` replace by id, as the in-memory stores do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Distance = Literal["cosine", "l2", "inner_product"]


@dataclass(frozen=True, slots=True)
class SearchRequest:
    collection: str
    vector: NDArray[np.float32]  #: shape (dim,)
    k: int
    ids: tuple[str, ...] | None = None  #: search only among these
    where: dict[str, Any] = field(default_factory=dict)  #: metadata equality filters
    with_vectors: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class StoredRow:
    id: str
    text: str
    metadata: dict[str, Any]
    vector: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    text: str
    metadata: dict[str, Any]
    score: float  #: cosine similarity, inner product, or negative L2 distance: higher is nearer
    vector: NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
