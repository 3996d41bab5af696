"""Stand-ins for objects that are expensive to build: built when something of them is used that is not known beforehand.

In a deployed process a leaf's constructor gets one in place of its model. The swapped methods never touch it, so no weights are
loaded; code that reaches past them still gets the real thing, later.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from patchwork_adapters.import_hooks import Undo

_OWN = frozenset({
    "deferred_build", "deferred_known", "deferred_set", "deferred_settings", "deferred_real", "deferred_lock", "deferred_kind",
    "deferred_fluent", "deferred_calls",
})  # fmt: skip
#: Whether the running code builds something real: what it constructs on the way is needed now.
_BUILDING: ContextVar[bool] = ContextVar("patchwork_building_deferred", default=False)


class Deferred:
    """Acts as ``build()`` would.

    ``known`` attributes are answered without building. Attributes that are set before it is built are set on the real object, too.
    ``settings`` is how it was asked for, kept for whoever maps it onto an engine. ``kind`` is the class that it says it is of.
    ``fluent``: methods that change the object and return it, such as ``eval``: their calls are kept, and made when it is built.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        known: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        kind: type | None = None,
        fluent: frozenset[str] = frozenset(),
    ) -> None:
        self.deferred_build = build
        self.deferred_known = dict(known or {})
        self.deferred_set: dict[str, Any] = {}
        self.deferred_settings = dict(settings or {})
        self.deferred_real: Any = None
        self.deferred_lock = threading.RLock()
        self.deferred_kind = kind
        self.deferred_fluent = fluent
        self.deferred_calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self.deferred_kind or Deferred

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copying and pickling probe for these before __init__ ran
        for answers in (self.deferred_set, self.deferred_known):
            if name in answers:
                return answers[name]
        if name in self.deferred_fluent and self.deferred_real is None:
            return lambda *args, **kwargs: self._later(name, args, kwargs)
        return getattr(real_of(self), name)

    def _later(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.deferred_lock:
            if self.deferred_real is not None:
                return getattr(self.deferred_real, name)(*args, **kwargs)
            self.deferred_calls.append((name, args, kwargs))
            return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
            return
        with self.deferred_lock:
            self.deferred_set[name] = value
            if self.deferred_real is not None:
                setattr(self.deferred_real, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return real_of(self)(*args, **kwargs)

    def __len__(self) -> int:
        return len(real_of(self))

    def __iter__(self) -> Iterator[Any]:
        return iter(real_of(self))

    def __getitem__(self, key: Any) -> Any:
        return real_of(self)[key]

    def __bool__(self) -> bool:  # else truth would ask for the length
        return True


def real_of(deferred: Deferred) -> Any:
    """The real object; built once, whichever thread comes first."""
    with deferred.deferred_lock:
        if deferred.deferred_real is None:
            token = _BUILDING.set(True)
            try:
                real = deferred.deferred_build()
            finally:
                _BUILDING.reset(token)
            for name, args, kwargs in deferred.deferred_calls:
                real = getattr(real, name)(*args, **kwargs)
            for name, value in deferred.deferred_set.items():
                setattr(real, name, value)
            deferred.deferred_real = real
        return deferred.deferred_real


_replacing = threading.RLock()


@contextmanager
def module_replaced(name: str, **attributes: Any) -> Iterator[None]:
    """For constructors that import a heavy package by themselves: meanwhile ``name`` is a module with these attributes only.

    One at a time in the process; the package need not be installed.
    """
    with _replacing:
        real = sys.modules.get(name)
        stand_in = ModuleType(name)
        vars(stand_in).update(attributes)
        sys.modules[name] = stand_in
        try:
            yield
        finally:
            if real is None:
                del sys.modules[name]
            else:
                sys.modules[name] = real


def is_building() -> bool:
    return _BUILDING.get()


def constructed_with(class_name: str, module_name: str, **attributes: Any) -> Callable[[ModuleType], Undo]:
    """For a construct hook: while a class constructs, the module that it imports its model from has these attributes."""

    def install(module: ModuleType) -> Undo:
        cls = getattr(module, class_name)
        original = cls.__init__

        @functools.wraps(original)
        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            with module_replaced(module_name, **attributes):
                original(self, *args, **kwargs)

        cls.__init__ = construct

        def undo() -> None:
            cls.__init__ = original

        return undo

    return install
