"""Bound methods of leaves that were taken before the swap: ``RunnableLambda(embeddings.embed_query)``.

Such an object holds the function of the user's class, and a change of the leaf's class does not reach it. So whoever holds it is given
a new one, in place.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any


class Held:
    """A bound method and who holds it. Changed by :meth:`rebind` only, whose undos run in reverse order."""

    def __init__(self, holder: Any, method: MethodType) -> None:
        self.holder = holder
        self.method = method

    @property
    def name(self) -> str:
        return str(self.method.__name__)

    def rebind(self) -> Callable[[], None] | None:
        """Have the holder call what the object's class has under that name now; how to undo it, or None where that is not possible."""
        old, new = self.method, getattr(self.method.__self__, self.name)
        if not _replace(self.holder, old, new):
            return None
        self.method = new

        def undo() -> None:
            if _replace(self.holder, new, old):
                self.method = old

        return undo


def _replace(holder: Any, old: Any, new: Any) -> bool:
    """Whether ``holder`` had ``old`` and has ``new`` now. A tuple or a set cannot be changed."""
    match holder:
        case tuple() | frozenset() | set():
            return False
        case dict():
            return _replace_items(holder, old, new)
        case list() | deque():
            places = [i for i, item in enumerate(holder) if item is old]
            for i in places:
                holder[i] = new
            return bool(places)
        case functools.partial():
            return _replace_in_partial(holder, old, new)
        case FunctionType():
            return _replace_in_function(holder, old, new)
        case MethodType():
            return _replace_in_function(holder.__func__, old, new)
        case _:
            return any([_replace_items(part, old, new) for part in _parts(holder)] + [_replace_slots(holder, old, new)])


def _replace_items(items: dict[Any, Any], old: Any, new: Any) -> bool:
    keys = [key for key, item in items.items() if item is old]
    for key in keys:
        items[key] = new
    return bool(keys)


def _replace_in_partial(holder: functools.partial[Any], old: Any, new: Any) -> bool:
    def other(value: Any) -> Any:
        return new if value is old else value

    values = (holder.func, *holder.args, *holder.keywords.values())
    if not any(value is old for value in values):
        return False
    keywords = {name: other(value) for name, value in holder.keywords.items()}
    state = (other(holder.func), tuple(map(other, holder.args)), keywords, holder.__dict__)
    holder.__setstate__(state)  # type: ignore[attr-defined]
    return True


def _replace_in_function(function: Any, old: Any, new: Any) -> bool:
    found = False
    for cell in function.__closure__ or ():
        try:
            if cell.cell_contents is old:
                cell.cell_contents, found = new, True
        except ValueError:  # the cell is still empty
            continue
    if any(item is old for item in function.__defaults__ or ()):
        function.__defaults__ = tuple(new if item is old else item for item in function.__defaults__)
        found = True
    return any([found, *(_replace_items(items, old, new) for items in (function.__kwdefaults__ or {}, function.__globals__))])  # fmt: skip


def _parts(holder: Any) -> Iterator[dict[Any, Any]]:
    for name in ("__dict__", "__pydantic_extra__", "__pydantic_private__"):
        part = getattr(holder, name, None)
        if isinstance(part, dict):
            yield part


def _replace_slots(holder: Any, old: Any, new: Any) -> bool:
    found = False
    for cls in type(holder).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and getattr(holder, name, None) is old:
                object.__setattr__(holder, name, new)
                found = True
    return found
