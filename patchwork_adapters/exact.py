"""Whether a value that crossed a boundary is the value that was sent: equal, and of the same type, all the way down."""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_NUMBERS = (int, float, complex, str, bytes, bool, type(None))
_MAX_PLACES = 200_000  #: places looked at in one value; what is larger is data, and alike


def difference(sent: Any, arrived: Any) -> str | None:
    """The first place where two values differ, such as ``.metadata['when']: datetime.datetime became str``; None when there is none.

    Names types and places, never contents.
    """
    waiting: deque[tuple[str, Any, Any]] = deque([("", sent, arrived)])
    met: set[int] = set()
    places = 0
    while waiting and (places := places + 1) < _MAX_PLACES:
        path, before, after = waiting.popleft()
        if before is after or id(before) in met:
            continue
        if user_class(type(before)) is not user_class(type(after)):
            return f"{path or 'the value'}: {_name(before)} became {_name(after)}"
        if isinstance(before, _NUMBERS):
            if before != after and not (_is_nan(before) and _is_nan(after)):
                return f"{path or 'the value'}: another {_name(before)}"
            continue
        met.add(id(before))
        why = _other_shape(before, after)
        if why is not None:
            return f"{path or 'the value'}: {_name(before)} {why}"
        waiting.extend((path + step, a, b) for step, a, b in _inner(before, after))
    return None


def user_class(cls: type) -> type:
    """The user's own class below those that swaps have generated: a swapped leaf travels as an object of it."""
    while "__patchwork_slot__" in vars(cls):
        cls = cls.__bases__[0]
    return cls


def _other_shape(before: Any, after: Any) -> str | None:
    match before:
        case dict():
            return None if list(before) == list(after) else "has other keys"
        case list() | tuple() | deque():
            return None if len(before) == len(after) else "has another length"
        case set() | frozenset():
            return None if before == after else "has other items"
        case np.ndarray() | np.generic():
            same = before.dtype == after.dtype and before.shape == after.shape
            return None if same and _same_bytes(before, after) else "has other numbers"
        case enum.Enum() | type():
            return "is another one"  # one object in every process
        case _:
            return None if _state(before) is not None or _is_equal(before, after) else "is not equal"


def _inner(before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict):
        yield from (
            (f"[{key!r}]" if isinstance(key, int) else f"[{_name(key)} key]", before[key], after[key]) for key in before
        )
        # keys are equal, but 1, 1.0 and True are equal too
        yield from ((" key", a, b) for a, b in zip(before, after, strict=True))
    elif isinstance(before, list | tuple | deque):
        yield from ((f"[{i}]", a, b) for i, (a, b) in enumerate(zip(before, after, strict=True)))
    if (fields := _state(before)) is not None:
        others = _state(after) or {}
        for name in dict.fromkeys([*fields, *others]):
            yield f".{name}", fields.get(name, _MISSING), others.get(name, _MISSING)


class _Missing:
    """Stands for a field that is not there."""


_MISSING = _Missing()


def _state(value: Any) -> Mapping[str, Any] | None:
    """Fields, private ones and slots; None for a value that has none of them, whose ``==`` must do."""
    if isinstance(value, FunctionType | MethodType | BuiltinFunctionType | ModuleType):
        return None
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__"):
                found[name] = getattr(value, name, _MISSING)
    found.update(getattr(value, "__dict__", None) or {})
    if hasattr(type(value), "__pydantic_fields__"):
        found["model_fields_set"] = value.__pydantic_fields_set__
        found.update(value.__pydantic_private__ or {})
        found.update(value.__pydantic_extra__ or {})
    if isinstance(value, BaseException):
        found["args"] = value.args
    return found or None


def _is_equal(before: Any, after: Any) -> bool:
    by_identity: Any = object.__eq__
    if type(before).__eq__ == by_identity:
        return True  # nothing to compare: it has no fields either
    try:
        return bool(before == after)
    except Exception:  # noqa: BLE001  the value's own code; what cannot be compared cannot be blamed
        return True


def _same_bytes(before: Any, after: Any) -> bool:
    if before.dtype.hasobject:
        return bool(before.tolist() == after.tolist())
    return bool(before.tobytes() == after.tobytes())


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
