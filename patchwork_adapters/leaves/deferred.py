"""Stand-ins for objects that are expensive to build: built when something of them is used that is not known beforehand.

In a deployed process a leaf's constructor gets one in place of its model. The swapped methods never touch it, so no weights are
loaded; code that reaches past them still gets the real thing, later.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_OWN = frozenset(
    {"deferred_build", "deferred_known", "deferred_set", "deferred_settings", "deferred_real", "deferred_lock"}
)


class Deferred:
    """Acts as ``build()`` would.

    ``known`` attributes are answered without building. Attributes that are set before it is built are set on the real object, too.
    ``settings`` is how it was asked for, kept for whoever maps it onto an engine.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        known: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.deferred_build = build
        self.deferred_known = dict(known or {})
        self.deferred_set: dict[str, Any] = {}
        self.deferred_settings = dict(settings or {})
        self.deferred_real: Any = None
        self.deferred_lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copying and pickling probe for these before __init__ ran
        for answers in (self.deferred_set, self.deferred_known):
            if name in answers:
                return answers[name]
        return getattr(real_of(self), name)

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
            real = deferred.deferred_build()
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
