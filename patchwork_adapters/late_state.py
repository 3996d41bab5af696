"""The state of leaves that are constructed as the chain runs. Each of them is new in the original, and must be here.

All of them are served by one object in a replica. A call works on a fresh copy of it: what carries data (numbers, texts, containers,
models and objects of the user's classes) is copied, so that no call sees what another left behind; what does the work (weights, clients,
tokenizers) is shared, which is why it is loaded once. The data that a call changes goes back to the caller's object and comes along with
its next call. What a call loads when it is first needed is kept for all.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_adapters.parts import is_user_module

_ATOMS = (str, bytes, int, float, complex, bool, type(None), type)
_PYDANTIC = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def state_of(obj: Any) -> dict[str, Any]:
    """Fields and private attributes by name; values are those of the object itself."""
    state = dict(getattr(obj, "__dict__", None) or {})
    state.update(getattr(obj, "__pydantic_private__", None) or {})
    return state


def set_state(obj: Any, state: Mapping[str, Any]) -> None:
    private = getattr(obj, "__pydantic_private__", None)
    for name, value in state.items():
        (private if private is not None and name in private else obj.__dict__)[name] = value


def fresh(obj: Any) -> Any:
    """A copy that shares with ``obj`` only what does the work."""
    return _copied_object(obj, {})


def copied(value: Any) -> Any:
    return _copied(value, {})


def changes(was: Mapping[str, Any], now: Any) -> dict[str, Any]:
    """The data in an object that is not what it was."""
    return {
        name: value
        for name, value in state_of(now).items()
        if not _is_same(was.get(name), value) and is_data(value) and _travels(type(now), name, value)
    }


def keep_loaded(template: Any, used: Any) -> None:
    """What ``used`` loaded when it was first needed, ``template`` has from now on."""
    was = state_of(template)
    loaded = {name: value for name, value in state_of(used).items() if was.get(name) is None and not is_data(value)}
    set_state(template, loaded)


def holds_iterators(obj: Any) -> bool:
    """Whether its state is something that cannot be copied."""
    return any(hasattr(type(value), "__next__") for value in state_of(obj).values())


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _ATOMS):
        return value
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if kind in (list, deque):
        items = memo[id(value)] = [] if kind is list else deque(maxlen=value.maxlen)
        items.extend(_copied(item, memo) for item in value)
        return items
    if kind is dict:
        same: dict[Any, Any] = {}
        memo[id(value)] = same
        same.update((key, _copied(item, memo)) for key, item in value.items())
        return same
    if kind in (set, bytearray):
        return kind(value)
    if kind is tuple:
        parts = tuple(_copied(item, memo) for item in value)
        return value if all(map(_is, parts, value)) else parts
    if kind is MethodType and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    return _copied_object(value, memo) if _is_record(value) else value


def _copied_object(obj: Any, memo: dict[int, Any]) -> Any:
    cls = type(obj)
    made = memo[id(obj)] = object.__new__(cls)
    for base in cls.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and name not in _PYDANTIC:
                _set_slot(made, name, getattr(obj, name, made), memo)
    for name in _PYDANTIC:
        _set_slot(made, name, getattr(obj, name, made), memo)
    if hasattr(obj, "__dict__"):
        made.__dict__.update({name: _copied(value, memo) for name, value in vars(obj).items()})
    return made


def _set_slot(made: Any, name: str, value: Any, memo: dict[int, Any]) -> None:
    if value is not made:  # else the slot is empty
        object.__setattr__(made, name, _copied(value, memo))


def _is_record(value: Any) -> bool:
    """Carries data: models, dataclasses, objects of classes of the user's own. What installed packages have else does the work."""
    cls = type(value)
    if cls.__module__ == "builtins" or isinstance(value, type | FunctionType | MethodType | ModuleType):
        return False
    has_fields = hasattr(cls, "__pydantic_fields__") or hasattr(cls, "__dataclass_fields__")
    return (has_fields or is_user_module(cls.__module__)) and hasattr(value, "__dict__")


def is_data(value: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Made of nothing but what can be copied and compared."""
    if isinstance(value, _ATOMS) or id(value) in seen:
        return True
    seen = seen | {id(value)}
    if isinstance(value, list | tuple | deque | set | frozenset):
        return all(is_data(item, seen) for item in value)
    if isinstance(value, dict):
        return all(is_data(item, seen) for item in value.values())
    return (_is_record(value) and all(is_data(item, seen) for item in state_of(value).values())) or _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Known to the codec: dates, arrays, messages."""
    try:
        codec.encode(value, allow_pickle=False)
    except CodecError:
        return False
    return True


def _travels(cls: type, name: str, value: Any) -> bool:
    if isinstance(getattr(cls, name, None), functools.cached_property):  # made anew by whoever asks for it
        return False
    try:
        codec.encode(value)
    except CodecError:
        return False
    return True


def _is_same(a: Any, b: Any) -> bool:
    """Unchanged since it was copied."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, (*_ATOMS, set, bytearray)):
        return bool(a == b)
    return _is_record(a) and _is_same(state_of(a), state_of(b))


def _is(a: Any, b: Any) -> bool:
    return a is b
