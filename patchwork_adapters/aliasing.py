"""What a leaf does to its arguments: a reranker that sets scores on the caller's nodes, sorts the caller's list, and returns its objects.

Both sides list the objects inside the arguments in the same order. The side that runs the leaf sends what changed, and numbers for
objects of the arguments in the result; the caller's side changes its own objects in place and returns them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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


codec.register(50, Ref)
codec.register(51, Aliased)


class Arguments:
    """The objects inside the arguments of one call."""

    def __init__(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._collect([list(args), dict(kwargs)])
        self._before: list[bytes | None] = []

    def remember(self) -> None:
        """Before the call, where the leaf runs."""
        self._before = [self._packed(obj) for obj in self._objects]

    def outcome(self, result: Any) -> Any:
        """After the call: the result, or an :class:`Aliased` when it takes more to say what happened."""
        changes = {}
        for number, (obj, before) in enumerate(zip(self._objects, self._before, strict=True)):
            after = self._packed(obj)
            if after is not None and after != before:
                changes[number] = self._state(obj)
        referred = self._each(result, self._refer)
        return Aliased(referred, changes) if changes or _has_refs(referred) else result

    def accept(self, outcome: Any) -> Any:
        """On the caller's side: changes its objects and gives the result made of them."""
        if not isinstance(outcome, Aliased):
            return outcome
        for number, state in outcome.changes.items():
            _set_state(self._objects[number], self._each(state, self._resolve))
        return self._each(outcome.result, self._resolve)

    def _collect(self, root: Any) -> None:
        """The objects inside ``root``, each before those inside of it."""
        numbers, objects = self._numbers, self._objects
        carries_data: Callable[[type], bool] = _carries_data

        def visit(value: Any, kind: type) -> None:
            if issubclass(kind, tuple):
                items: Any = value
            else:
                fields = value if kind is list or kind is dict else value.__dict__ if carries_data(kind) else None
                if fields is None or id(value) in numbers:
                    return
                numbers[id(value)] = len(objects)
                objects.append(value)
                items = value if kind is list else fields.values()
                if kind is list and _ATOMS.issuperset(map(type, items)):  # a vector, or empty
                    return
            for item in items:
                if (inside := type(item)) not in _ATOMS:
                    visit(item, inside)

        visit(root, type(root))

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
        return value if number is None else Ref(number)

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


def _has_refs(value: Any) -> bool:
    match value:
        case Ref():
            return True
        case list() | tuple():
            return any(map(_has_refs, value))
        case dict():
            return any(map(_has_refs, value.values()))
        case _:
            return False
