"""The table of leaf classes: a family module registers a :class:`LeafSpec` per class, and the walk and the swap ask for the nearest one.

Classes are told by name, so that nothing is imported to know them. To add a family, write ``leaves/<family>.py`` that calls
:func:`register` for each class, and name it in ``_FAMILIES``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.import_hooks import Undo, when_imported
from patchwork_adapters.operations import Distance, StoredRow
from patchwork_adapters.transport import Kind

_FAMILIES = (
    "langchain",
    "llamaindex",
    "huggingface",
    "vllm",
    "vllm_llamaindex",
    "llamacpp",
    "ollama_models",
    "users_weights",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a leaf says about itself; enough to choose an engine."""

    model: str | None = None
    base_url: str | None = None  #: of an HTTP API that the leaf speaks to; None: it works in the process
    #: what the engine must know, such as pooling or normalisation
    options: Mapping[str, Any] = field(default_factory=dict)
    #: a setting of this object that its class's engine cannot reproduce: it runs the own way
    why_own: str | None = None


@dataclass(frozen=True, slots=True)
class ExportedStore:
    """The content of a store that lives in the process, in its own order."""

    rows: tuple[StoredRow, ...]
    distance: Distance


#: Overrides for the ``engine`` way, by method name, made for the user's class. Each is a function of ``(leaf, *args, **kwargs)`` of the
#: same colour as the method it replaces (plain, coroutine, generator, asynchronous generator), where ``leaf`` is a
#: :class:`patchwork_adapters.binding.Bound`: ``leaf.ask(operation, arguments)`` (or ``await leaf.aask``, ``leaf.stream``,
#: ``leaf.astream``) asks the component, ``leaf.local.method(...)`` is the user's own method.
EngineMethods = Callable[[type], Mapping[str, Callable[..., Any]]]


def _no_facts(leaf: Any) -> Facts:
    return Facts()


def _no_clients(leaf: Any) -> Iterable[Any]:
    return ()


def _no(_: Any) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LeafSpec:
    cls: str  #: ``module.Class``; the spec is for it and for classes derived from it that have no nearer one
    kind: Kind
    framework: str
    cut: Callable[[type], tuple[str, ...]]  #: methods that run elsewhere in the ``own`` way, given the user's class
    facade: bool = False  #: hides inner leaves of its own kind; otherwise a leaf built on leaves is glue and stays
    inner: frozenset[str] | None = None  #: the only attributes that the walk looks into; None: all
    facts: Callable[[Any], Facts] = _no_facts
    speaks_openai: bool = False  #: calls its model through an ``openai`` client: the ``protocol`` way is possible
    openai_clients: Callable[[Any], Iterable[Any]] = _no_clients  #: those that exist now
    engine: str | None = None  #: the engine that can stand in for the class, None if none can
    engine_methods: EngineMethods | None = None
    export: Callable[[Any], ExportedStore] | None = None  #: for stores that live in the process
    writes: frozenset[str] = frozenset()  #: the engine's methods that change the store
    is_empty: Callable[[Any], bool] = _no  #: a store without content stays where it is: there is nothing to search
    is_light: Callable[[type], bool] = _no  #: classes whose work is too small to move
    #: methods of the cut that return an iterator of chunks without being generators
    returns_stream: frozenset[str] = frozenset()
    #: ``wrap(name, original, override)``: the override, decorated as the class decorates its own
    wrap: Callable[[str, Any, Callable[..., Any]], Callable[..., Any]] | None = None


@dataclass(frozen=True, slots=True)
class ConstructHook:
    """Keeps a class that loads weights in its constructor from doing so in deployed processes."""

    module: str  #: where the class is defined; the hook runs when it is imported
    install: Callable[[ModuleType], Undo]


_specs: dict[str, LeafSpec] = {}
_hooks: list[ConstructHook] = []


def register(spec: LeafSpec) -> None:
    _specs[spec.cls] = spec


def registered(cls: str) -> LeafSpec:
    """The spec of exactly this class, for families that refine one of another; KeyError without one."""
    return _specs[cls]


def register_construct_hook(hook: ConstructHook) -> None:
    _hooks.append(hook)


def install_construct_hooks() -> Undo:
    """In orchestrators, and in replicas of some leaves: heavy constructors build light objects from now on. Returns how to undo it."""
    _load_families()
    undo = [when_imported(hook.module, hook.install) for hook in _hooks]

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return undo_all


def spec_for(cls: type) -> LeafSpec | None:
    """The spec of the nearest base class that has one; None when the class is no leaf or is too light to move."""
    _load_families()
    return _nearest(cls)


def specs() -> Iterator[LeafSpec]:
    _load_families()
    yield from _specs.values()


@functools.lru_cache(maxsize=10_000)
def _nearest(cls: type) -> LeafSpec | None:
    for name in class_names(cls):
        spec = _specs.get(name)
        if spec is not None:
            return None if spec.is_light(cls) else spec
    return None


@functools.cache
def _load_families() -> None:
    for family in _FAMILIES:
        name = f"{__package__}.{family}"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
