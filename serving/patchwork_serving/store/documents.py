"""Rows as Postgres can hold them beside their exact content, and hits as they go over the wire."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from patchwork_adapters import codec
from patchwork_serving.store.port import Found

_THREE_ENTRIES, _FIVE_ENTRIES = 0x83, b"\x85"  # msgpack's headers of maps of that size
_SCORE, _VECTOR, _NO_VECTOR = b"\xa5score\xcb", b"\xa6vector", b"\xa6vector\xc0"
_VALUE = b"\x00"  # codec's mark of an outcome that is a value


def searchable(text: str) -> str:
    """``text`` without what a Postgres text cannot hold: NUL and lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def filter_form(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as JSON for filters: dates and the like as text, NaN and infinity as null. Both sides of a comparison go through it."""
    plain: dict[str, Any] = json.loads(
        searchable(json.dumps(metadata, default=str, ensure_ascii=False, skipkeys=True)), parse_constant=lambda _: None
    )
    return {searchable(key): _without_nul(value) for key, value in plain.items()}


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return searchable(value)
        case list():
            return [_without_nul(item) for item in value]
        case dict():
            return {searchable(key): _without_nul(item) for key, item in value.items()}
        case _:
            return value


def encode_hits(hits: Sequence[Found]) -> bytes:
    """``codec.encode_outcome([hit.to_hit().to_dict() for hit in hits])``, without decoding a document only to encode it again."""
    parts = [_VALUE, _array_header(len(hits))]
    for hit in hits:
        if hit.document[0] != _THREE_ENTRIES:
            return codec.encode_outcome([hit.to_hit().to_dict() for hit in hits])
        parts += (_FIVE_ENTRIES, hit.document[1:], _SCORE, struct.pack(">d", hit.score))
        parts += (_NO_VECTOR,) if hit.vector is None else (_VECTOR, codec.encode(hit.vector))
    return b"".join(parts)


def _array_header(length: int) -> bytes:
    if length < 16:
        return bytes([0x90 | length])
    return b"\xdc" + struct.pack(">H", length) if length < 2**16 else b"\xdd" + struct.pack(">I", length)
