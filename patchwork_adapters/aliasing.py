"""What a leaf does to its arguments: a reranker that sets scores on the caller's nodes, sorts the caller's list, and returns its objects.

Both sides list the objects inside the arguments in the same order. The side that runs the leaf sends what changed, and numbers for
objects of the arguments in the result; the caller's side changes its own objects in place and returns them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError

#: Methods that are given objects of the caller to work on. Models and embeddings read theirs.
METHODS = frozenset({
    "compress_documents", "acompress_documents", "_postprocess_nodes", "_apostprocess_nodes", "_retrieve", "_aretrieve", "_run", "_arun",
})  # fmt: skip

#: What has nothing inside and cannot change.
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


@dataclass(frozen=True, slots=True)
class Ref:
    """An object of the arguments, by its place among them."""

    number: int


@dataclass(frozen=True, slots=True)
class Aliased:
    """A result together with what happened to the arguments."""

    result: Any
    changes: Mapping[int, Any]  #: number -> the object's state now
    reach: int  #: the largest number inside


codec.register(50, Ref, is_constant=True)
codec.register(51, Aliased)


class Arguments:
    """The objects inside the arguments of one call, outer ones first: the caller's side looks as deep as the other one refers."""

    def __init__(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        root = [list(args), dict(kwargs)]
        self._objects: list[Any] = [root]
        self._numbers: dict[int, int] = {id(root): 0}
        self._opened = 0  #: so many of the objects have been looked into
        self._reach = -1  #: the largest number that was referred to
        self._before: list[bytes | None] = []

    def remember(self) -> None:
        """Before the call, where the leaf runs."""
        while self._opened < len(self._objects):
            self._open_next()
        self._before = [self._packed(obj) for obj in self._objects]

    def outcome(self, result: Any) -> Any:
        """After the call: the result, or an :class:`Aliased` when it takes more to say what happened."""
        changed = {}
        for number, (obj, before) in enumerate(zip(self._objects, self._before, strict=True)):
            after = self._packed(obj)
            if after is not None and after != before:
                changed[number] = obj
        self._reach = max(changed, default=-1)  # from here on, what the reply refers to
        changes = {number: self._state(obj) for number, obj in changed.items()}
        referred = self._each(result, self._refer)
        return Aliased(referred, changes, self._reach) if self._reach >= 0 else result

    def accept(self, outcome: Any) -> Any:
        """On the caller's side: changes its objects and gives the result made of them."""
        if not isinstance(outcome, Aliased):
            return outcome
        while len(self._objects) <= outcome.reach:  # before anything in them changes
            self._open_next()
        for number, state in outcome.changes.items():
            _set_state(self._objects[number], self._each(state, self._resolve))
        return self._each(outcome.result, self._resolve)

    def _open_next(self) -> None:
        """Number the objects inside the next one."""
        value = self._objects[self._opened]
        self._opened += 1
        if type(value) is not list:
            self._number((value if type(value) is dict else value.__dict__).values())
        elif not _ATOMS.issuperset(map(type, value)):  # else a vector, or empty
            self._number(value)

    def _number(self, items: Iterable[Any]) -> None:
        carries_data: Callable[[type], bool] = _carries_data
        for item in items:
            kind: type = type(item)
            if kind in _ATOMS:
                continue
            if issubclass(kind, tuple):
                self._number(item)
            elif (kind is list or kind is dict or carries_data(kind)) and id(item) not in self._numbers:
                self._numbers[id(item)] = len(self._objects)
                self._objects.append(item)

    def _state(self, obj: Any) -> Any:
        if type(obj) is list:
            return [self._each(item, self._refer) for item in obj]
        fields = obj if type(obj) is dict else _fields(obj) or {}
        state = {name: self._each(item, self._refer) for name, item in fields.items()}
        return [state, sorted(obj.__pydantic_fields_set__)] if hasattr(type(obj), "__pydantic_fields__") else state

    def _packed(self, obj: Any) -> bytes | None:
        try:
            return codec.encode(self._state(obj))
        except CodecError:  # what cannot travel did not come from the caller
            return None

    def _refer(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            return value
        self._reach = max(self._reach, number)
        return Ref(number)

    def _resolve(self, value: Any) -> Any:
        return self._objects[value.number] if isinstance(value, Ref) else value

    def _each(self, value: Any, change: Callable[[Any], Any]) -> Any:
        """``value`` with ``change`` applied to it, or to what a new list, tuple or dict holds."""
        changed = change(value)
        if changed is not value:
            return changed
        if type(value) in (list, tuple):
            return type(value)(self._each(item, change) for item in value)
        if type(value) is dict:
            return {name: self._each(item, change) for name, item in value.items()}
        return value


def _fields(value: Any) -> dict[str, Any] | None:
    kind: type = type(value)
    fields: dict[str, Any] | None = value.__dict__ if _carries_data(kind) else None
    return fields


@functools.lru_cache(maxsize=4096)
def _carries_data(cls: type) -> bool:
    """Whether objects carry data between stages: pydantic models, and dataclasses without slots."""
    has_fields = hasattr(cls, "__pydantic_fields__") or hasattr(cls, "__dataclass_fields__")
    return has_fields and not issubclass(cls, type) and cls.__dictoffset__ != 0


def _set_state(obj: Any, state: Any) -> None:
    if type(obj) is list:
        obj[:] = state
        return
    if hasattr(type(obj), "__pydantic_fields__"):
        state, fields_set = state
        object.__setattr__(obj, "__pydantic_fields_set__", set(fields_set))
    fields = obj if type(obj) is dict else obj.__dict__
    fields.clear()
    fields.update(state)
