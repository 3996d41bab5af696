"""Leaves that the user's functions construct as they run (docs/decisions/late-leaves.md).

A construction whose arguments are known beforehand is carried out once for the walk. The object made is a leaf of the chain like any
other: it gets a component at deploy, and is what the component's replicas work with. Those that the functions construct later, of the
same class with equal arguments, are taken for it. Constructions with other arguments stay in the process and are named.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

from patchwork_adapters.constructions import Arguments, Construction, constructions_in, is_openai_client
from patchwork_adapters.graph import Opaque
from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.late_state import holds_iterators
from patchwork_adapters.leaves.spec import LeafSpec, install_construct_hooks, spec_for
from patchwork_adapters.parts import global_names, is_user_module

#: Methods that have run when the object that they belong to is found.
_ONCE = frozenset({"__init__", "__new__", "__post_init__", "model_post_init", "__init_subclass__"})


@dataclass(frozen=True, slots=True)
class Late:
    """How a leaf comes about."""

    cls: type
    arguments: Arguments
    where: tuple[str, ...]  #: ``file.py:12`` of each construction
    names: tuple[str, ...] = ()  #: by which the code knows it


@dataclass(frozen=True, slots=True)
class Made:
    """One object for all constructions of its class with its arguments."""

    path: str
    obj: Any
    late: Late


@dataclass(slots=True)
class Constructions:
    """Those of a chain's functions, found in rounds: what is made may bring functions of its own."""

    made: list[Made] = field(default_factory=list)
    opaque: list[Opaque] = field(default_factory=list)
    local: dict[type, None] = field(
        default_factory=dict
    )  #: classes that are constructed with arguments known only then
    _seen: set[int] = field(default_factory=set)

    def look_into(self, functions: Iterable[tuple[str, Any]]) -> list[Made]:
        """Look into functions that were not looked into before; what was made for them."""
        before = len(self.made)
        for path, function in functions:
            if isinstance(function, FunctionType) and id(function) not in self._seen:
                self._seen.add(id(function))
                if is_user_module(function.__module__) and function.__name__ not in _ONCE:
                    self._look(path, function)
        return self.made[before:]

    def _look(self, path: str, function: FunctionType) -> None:
        found = constructions_in(function)
        for construction in found:
            why = self._try_make(path, construction)
            if why is not None:
                name, stays = construction.cls.__name__, _stays(construction.cls)
                self.opaque.append(Opaque(path, f"constructs a {name} at {construction.where}{why}: {stays}"))
        named = {construction.cls for construction in found}
        for name in global_names(function.__code__):
            cls = function.__globals__.get(name)
            if isinstance(cls, type) and cls not in named and spec_for(cls) is not None:
                self.opaque.append(Opaque(path, f"may construct a {name} on every call: {_stays(cls)}"))

    def _try_make(self, path: str, construction: Construction) -> str | None:
        """None when its like is there now; else why not."""
        cls, arguments, where = construction.cls, construction.arguments, construction.where
        spec = spec_for(cls)
        if spec is not None and _is_store(spec):  # what it is filled with is the request's
            return " on every call"
        if construction.by:
            self.local[cls] = None
            return f" by {construction.by}"
        if arguments is None:
            self.local[cls] = None
            return " with what is known only then"
        for n, known in enumerate(self.made):
            if known.late.cls is cls and known.late.arguments == arguments:
                late = known.late
                places, names = dict.fromkeys((*late.where, where)), dict.fromkeys((*late.names, *construction.names))
                self.made[n] = replace(known, late=replace(late, where=tuple(places), names=tuple(names)))
                return None
        try:
            obj = _construct(cls, arguments)
        except Exception as error:  # noqa: BLE001  the user's class: it may want what is there only when the function runs
            self.local[cls] = None
            return f", which raised {type(error).__name__} beforehand"
        if holds_iterators(obj):
            self.local[cls] = None
            return ", which holds an iterator of its own"
        name = f"{path}::{cls.__name__}()"
        taken = sum(made.path.startswith(name) for made in self.made)
        self.made.append(
            Made(f"{name}[{taken}]" if taken else name, obj, Late(cls, arguments, (where,), construction.names))
        )
        return None


def _construct(cls: type, arguments: Arguments) -> Any:
    """Heavy classes load no weights until they are asked for something."""
    undo = install_construct_hooks()
    try:
        return cls(*arguments.positional, **arguments.named)
    finally:
        undo()


def _is_store(spec: LeafSpec) -> bool:
    return spec.kind == "retriever" and spec.facade


def _stays(cls: type) -> str:
    spec = spec_for(cls)
    if is_openai_client(cls) or (spec is not None and spec.speaks_openai):
        return "requests for models of components go to them, others to their server"
    return "it runs in the orchestrator"


#: Told of each new object: it, and the arguments that it was constructed with.
OnMade = Callable[[Any, Arguments], None]


def watch_constructions(cls: type, on_made: OnMade) -> Undo:
    """Call ``on_made`` for each object of exactly this class, when it is complete. Returns how to undo it."""
    own = vars(cls).get("__init__")
    original: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls:  # else it is part of the constructor of a class derived from it
            on_made(self, Arguments(args, kwargs))

    cls.__init__ = construct  # type: ignore[misc]

    def undo() -> None:
        if vars(cls).get("__init__") is not construct:
            return  # somebody else's lies above it
        if own is None:
            del cls.__init__  # type: ignore[misc]
        else:
            cls.__init__ = own  # type: ignore[misc]

    return undo
