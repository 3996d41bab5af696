"""What a run gave, as plain data that can be compared, shown and sent: type names beside contents, no addresses, no callbacks.

Some text differs from run to run without meaning: random ids and times. :func:`mask` blanks those that did not come out equal in two runs
of the original.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})?")
_VARYING = re.compile(f"{_UUID.pattern}|{_TIME.pattern}", re.IGNORECASE)
_MAX_DEPTH = 40
_CALLBACKS = ("langchain_core.callbacks.", "langchain_core.tracers.", "llama_index.core.callbacks.")

Plain = Any  #: None, bool, int, float, str, list of Plain, or dict of str to Plain


def plain(value: Any) -> Plain:
    """Equal objects give equal data, objects of another class or content give other data."""
    return _plain(value, 0, frozenset())


def _plain(value: Any, depth: int, above: frozenset[int]) -> Plain:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > _MAX_DEPTH or id(value) in above:
        return f"<{_name(value)}>"
    above = above | {id(value)}

    def inner(item: Any) -> Plain:
        return _plain(item, depth + 1, above)

    match value:
        case dict() | Mapping() if type(value) is dict:
            return _mapping(value, inner)
        case list() if type(value) is list:
            return [inner(item) for item in value]
        case set() | frozenset():
            return {"@": _name(value), "items": sorted((inner(item) for item in value), key=repr)}
        case bytes() | bytearray():
            return {"@": _name(value), "hex": bytes(value).hex()}
        case enum.Enum():
            return {"@": _name(value), "name": value.name}
        case np.ndarray() | np.generic():
            return {"@": f"{_name(value)}:{value.dtype.str}", "values": inner(value.tolist())}
        case BaseException():
            return _error(value, inner)
        case type():
            return f"<class {value.__module__}.{value.__qualname__}>"
        case _:
            return _object(value, inner)


def _mapping(value: Mapping[Any, Any], inner: Callable[[Any], Plain]) -> Plain:
    if all(type(key) is str for key in value):
        return {key: inner(item) for key, item in sorted(value.items()) if not _is_callback(item)}
    return {"@": "dict", "items": sorted(([inner(k), inner(v)] for k, v in value.items()), key=repr)}


def _object(value: Any, inner: Callable[[Any], Plain]) -> Plain:
    found: dict[str, Plain] = {"@": _name(value)}
    if isinstance(value, tuple | list):
        found["items"] = [inner(item) for item in value]
    elif isinstance(value, dict):
        found["items"] = _mapping(value, inner)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<function {getattr(value, '__module__', '')}.{value.__qualname__}>"
    fields = dict(_fields(value))
    if isinstance(value, BaseException):
        fields["args"] = value.args
    found.update(
        {n: inner(item) for n, item in sorted(fields.items()) if not n.startswith("_") and not _is_callback(item)}
    )
    if len(found) == 1 and not fields:
        text = str(value)
        if " at 0x" not in text and not text.startswith("<"):
            found["text"] = text
    return found


def _fields(value: Any) -> Mapping[str, Any]:
    if hasattr(type(value), "__pydantic_fields__"):
        private = value.__pydantic_private__ or {}
        dynamic = private.get("_data")  # where workflow events keep what they were made with
        parts = (value.__dict__, value.__pydantic_extra__, {"data": dynamic} if dynamic else None)
        return {name: item for part in parts for name, item in (part or {}).items()}
    if "__dict__" in dir(value) and isinstance(getattr(value, "__dict__", None), dict):
        return dict(value.__dict__)
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    return {}


def _error(error: BaseException, inner: Callable[[Any], Plain]) -> Plain:
    attributes = {n: inner(v) for n, v in sorted(error.__dict__.items()) if n != "__notes__"}
    return {"@": _name(error), "args": [inner(a) for a in error.args], "text": str(error), "attributes": attributes}


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def is_callback(value: Any) -> bool:
    """Callback managers belong to the caller: they never travel and are not compared."""
    return _is_callback(value)


def _is_callback(value: Any) -> bool:
    return type(value).__module__.startswith(_CALLBACKS)


def varying(value: Plain) -> frozenset[str]:
    """Ids and times in the text of a value."""
    return frozenset(_strings_matching(value))


def _strings_matching(value: Plain) -> Any:
    if isinstance(value, str):
        yield from (m.group(0) for m in _VARYING.finditer(value))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings_matching(key)
            yield from _strings_matching(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_matching(item)


def mask(value: Plain, stable: frozenset[str]) -> Plain:
    """The value with every id and time blanked that is not ``stable``."""
    if isinstance(value, str):
        return _VARYING.sub(lambda m: m.group(0) if m.group(0) in stable else "<varies>", value)
    if isinstance(value, dict):
        masked = [[mask(key, stable), mask(item, stable)] for key, item in value.items()]
        if len({key for key, _ in masked}) < len(
            masked
        ):  # keyed by random ids: what they stood for is kept, in any order
            return {"@": "dict", "items": sorted(masked, key=repr)}
        return dict(sorted(masked, key=lambda pair: str(pair[0])))
    if isinstance(value, list):
        return [mask(item, stable) for item in value]
    return value
