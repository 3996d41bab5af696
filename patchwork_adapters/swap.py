"""Swaps leaves in place: ``obj.__class__`` becomes a generated subclass whose cut methods call a component (design, D1).

The object stays the same object, so closures, globals, containers and everything built on it before see the swap, and it stays an
instance of the user's class. ``undo`` puts the classes back; copies made meanwhile fall back to the user's methods.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import inspect
import itertools
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from patchwork_adapters.binding import ACTIVE, Assignment, Binding, Bound, Slot
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.constructions import Arguments
from patchwork_adapters.exact import user_class
from patchwork_adapters.external import ExternalCalls
from patchwork_adapters.graph import Opaque
from patchwork_adapters.late import watch_constructions
from patchwork_adapters.late_state import state_of
from patchwork_adapters.leaves.spec import LeafSpec, spec_for
from patchwork_adapters.local_calls import local_methods
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.own import baseline_of, own_methods
from patchwork_adapters.protocol import Router
from patchwork_adapters.stores import fingerprint
from patchwork_adapters.walk import Leaf

Override = Callable[..., Any]
_Active = Callable[[], Binding | None]

_ids = itertools.count(1)
_lock = threading.Lock()
_generated: dict[tuple[type, str, str], list[tuple[type, Slot]]] = {}


class Swap:
    """What one call of :func:`swap` changed."""

    def __init__(self, swap_id: int) -> None:
        self._id = swap_id
        self._objects: list[tuple[Any, type, type]] = []  #: (object, its class before, generated class)
        self._slots: list[Slot] = []
        self._rebound: list[Callable[[], None]] = []
        self._cut: OpenAICut | None = None
        self.skipped: list[Opaque] = []  #: leaves that stay local although they have an assignment, and why

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run a block in which the swapped leaves call their components; needed only when the swap is not ``always``."""
        token = ACTIVE.set(ACTIVE.get() | {self._id})
        try:
            yield
        finally:
            ACTIVE.reset(token)

    def is_active(self) -> bool:
        return self._id in ACTIVE.get()

    def undo(self) -> None:
        """Give every leaf its class and its client back; safe to repeat."""
        for slot in self._slots:
            slot.binding = None
        while self._rebound:
            self._rebound.pop()()
        while self._objects:
            obj, before, generated = self._objects.pop()
            if type(obj) is generated:
                object.__setattr__(obj, "__class__", _below_empty_layers(before))
            else:  # below another swap's layer
                _retire(generated)
        if self._cut is not None:
            self._cut.undo()
            self._cut = None


def swap(
    leaves: Sequence[Leaf],
    assignments: Mapping[str, Assignment],
    bridge: Bridge,
    *,
    always: bool = True,
    cut: OpenAICut | None = None,
    external: ExternalCalls | None = None,
    late_classes: Iterable[type] = (),
) -> Swap:
    """Swap each leaf that has an assignment (by path). ``always=False``: only inside :meth:`Swap.active`.

    ``late_classes``: whose objects are constructed as the chain runs, with what is known only then; they stay in this process.

    ``cut``: the process-wide cut of openai clients, when it is installed already; otherwise leaves of the ``protocol`` way get one of
    this swap, which sends a model's requests to the component of the leaf with that model, and those of hosted models through ``external``.
    """
    swapped = Swap(next(_ids))
    speaking = [leaf for leaf in leaves if leaf.path in assignments and assignments[leaf.path].way == "protocol"]
    if cut is None and (speaking or external is not None):
        is_active = (lambda: True) if always else swapped.is_active
        cut = swapped._cut = OpenAICut(bridge, leaf_router(speaking, assignments), is_active, external)
        cut.install()
    for leaf in leaves:
        assignment = assignments.get(leaf.path)
        if assignment is None:
            continue
        if assignment.way in ("protocol", "external"):
            if cut is None:  # nobody watches requests to hosted models
                continue
            cut.usual_leaf.setdefault(assignment.component, leaf.path)
            for client in leaf.spec.openai_clients(leaf.obj):
                cut.attach(client, leaf.path, assignment.component)
        elif (why := _mismatch(leaf, assignment)) is not None:
            swapped.skipped.append(Opaque(leaf.path, why))
        else:
            _swap_class(swapped, leaf, assignment, bridge, always)
    _adopt_late(swapped, leaves, late_classes, bridge, always)
    return swapped


def _adopt_late(
    swapped: Swap, leaves: Sequence[Leaf], late_classes: Iterable[type], bridge: Bridge, always: bool
) -> None:
    """From now on, objects that are constructed like a leaf that was made for the walk get its class; others lend the loop to others."""
    classes = {id(obj): generated for obj, _, generated in swapped._objects}
    known: dict[type, list[tuple[Arguments | None, type]]] = {}
    for leaf in leaves:
        if leaf.late is not None and id(leaf.obj) in classes:
            known.setdefault(leaf.late.cls, []).append((leaf.late.arguments, classes[id(leaf.obj)]))
    for cls in late_classes:
        spec = spec_for(cls)
        if spec is None or spec.speaks_openai:
            continue
        staying = Leaf(f"a new {cls.__qualname__}", None, spec.kind, dataclasses.replace(spec, wrap=None))
        binding = Binding(staying.path, Assignment("", "own"), bridge, swapped._id, always)
        generated, slot = _class_for(cls, staying, binding, local_methods(cls, spec.cut(cls)))
        swapped._slots.append(slot)
        known.setdefault(cls, []).append((None, generated))
    for cls, alike in known.items():
        swapped._rebound.append(watch_constructions(cls, functools.partial(_adopt, alike)))


def _adopt(alike: Sequence[tuple[Arguments | None, type]], obj: Any, arguments: Arguments) -> None:
    for wanted, generated in alike:
        slot: Slot = vars(generated)["__patchwork_slot__"]
        if slot.active() is not None and (wanted is None or wanted == arguments):
            object.__setattr__(obj, "__class__", generated)
            return


def leaf_router(leaves: Sequence[Leaf], assignments: Mapping[str, Assignment]) -> Router:
    """Routes by (base URL, model) of the leaves that speak the protocol; everything else goes where it would have gone."""
    routes: dict[tuple[str, str | None], str] = {}
    for leaf in leaves:
        facts = leaf.spec.facts(leaf.obj)
        routes[((facts.base_url or "").rstrip("/"), facts.model)] = assignments[leaf.path].component

    def route(base_url: str, path: str, model: str | None) -> str | None:
        return routes.get((base_url.rstrip("/"), model)) or routes.get(("", model))

    return route


def _mismatch(leaf: Leaf, assignment: Assignment) -> str | None:
    """Why a store cannot be answered by its export: then its answers would be wrong, so it stays."""
    if assignment.fingerprint is None or leaf.spec.export is None:
        return None
    if fingerprint(leaf.spec, leaf.obj) == assignment.fingerprint:
        return None
    return (
        "the store's content in this process differs from what was exported; ingestion is not the same in every process"
    )


def _swap_class(swapped: Swap, leaf: Leaf, assignment: Assignment, bridge: Bridge, always: bool) -> None:
    cls = type(leaf.obj)
    is_late = leaf.late is not None
    baseline = state_of(leaf.obj) if is_late else baseline_of(leaf.obj)
    binding = Binding(leaf.path, assignment, bridge, swapped._id, always, baseline, is_late)
    try:
        generated, slot = _class_for(cls, leaf, binding)
        object.__setattr__(leaf.obj, "__class__", generated)
    except TypeError as error:  # __init_subclass__ wants arguments, or the objects have another layout
        swapped.skipped.append(Opaque(leaf.path, f"objects of {leaf.cls} cannot change their class ({error})"))
        return
    swapped._slots.append(slot)
    swapped._objects.append((leaf.obj, cls, generated))
    for held in leaf.held:
        if held.name not in vars(generated):  # not of the cut: it calls those that are
            continue
        undo = held.rebind()
        if undo is not None:
            swapped._rebound.append(undo)
        else:
            why = f"a {type(held.holder).__name__} holds its {held.name}: calls through it stay in this process"
            swapped.skipped.append(Opaque(leaf.path, why))


def _class_for(
    cls: type, leaf: Leaf, binding: Binding, overrides: Mapping[str, Override] | None = None
) -> tuple[type, Slot]:
    """A generated class that nobody else uses now; building one for a pydantic class takes milliseconds, so they are kept."""
    with _lock:
        pool = _generated.setdefault((cls, leaf.path, binding.assignment.way), [])
        free = next((pair for pair in pool if pair[1].binding is None), None)
        if free is None:
            slot = Slot()
            if overrides is None:
                overrides = _overrides(cls, leaf.spec, binding.assignment)
            free = (_generate(cls, slot, leaf.spec, overrides), slot)
            pool.append(free)
        free[1].binding = binding
        return free


def _below_empty_layers(cls: type) -> type:
    """``cls``, or what lies below the layers of swaps that ended while others lay above them."""
    while (slot := vars(cls).get("__patchwork_slot__")) is not None and slot.binding is None:
        cls = cls.__bases__[0]
    return cls


def _retire(generated: type) -> None:
    """Nobody may take this class over: an object still has it below another."""
    with _lock:
        for pool in _generated.values():
            pool[:] = [pair for pair in pool if pair[0] is not generated]


def _overrides(cls: type, spec: LeafSpec, assignment: Assignment) -> Mapping[str, Override]:
    if assignment.way == "engine" and spec.engine_methods is not None:
        return spec.engine_methods(cls)
    return own_methods(cls, spec.cut(cls), spec.returns_stream)


def methods_of(leaf: Leaf, assignment: Assignment) -> tuple[str, ...]:
    """Names of the methods that a swap of the leaf replaces."""
    return tuple(_overrides(user_class(type(leaf.obj)), leaf.spec, assignment))


def _generate(cls: type, slot: Slot, spec: LeafSpec, overrides: Mapping[str, Override]) -> type:
    holder: dict[str, type] = {}

    def body(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = cls.__module__
        namespace["__qualname__"] = cls.__qualname__
        namespace["__doc__"] = cls.__doc__
        namespace["__patchwork_slot__"] = slot
        if not cls.__dictoffset__:  # its objects have slots only, and the layout must stay
            namespace["__slots__"] = ()
        for name, override in overrides.items():
            original = inspect.getattr_static(cls, name, None)
            active = slot.writing if name in spec.writes else slot.active
            method = _gated(holder, active, name, override, original)
            if spec.wrap is not None:
                method = _decorated(holder, active, name, spec.wrap(name, original, method), original)
            namespace[name] = method
        namespace["__reduce_ex__"] = _reduce_as(cls, holder)

    holder["cls"] = generated = types.new_class(cls.__name__, (cls,), {}, body)
    return generated


def _reduce_as(cls: type, holder: Mapping[str, type]) -> Override:
    """Pickles as the user's class, which other processes have."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        layer: Any = holder["cls"]
        reduced = super(layer, self).__reduce_ex__(protocol)
        if not isinstance(reduced, tuple):
            return reduced
        function, args, *rest = reduced
        args = tuple(cls if arg is type(self) else arg for arg in args)
        # pickle insists that __newobj__ makes an object of the very class of the one it pickles
        return (_new if function is copyreg.__newobj__ else function, args, *rest)  # type: ignore[attr-defined]

    return __reduce_ex__


def _new(cls: type, *args: Any) -> Any:
    return cls.__new__(cls, *args)


def _gated(holder: Mapping[str, type], active: _Active, name: str, override: Override, original: Any) -> Override:
    """The method of the generated class: the override while the swap is in force, otherwise the user's; in the override's colour."""

    def local(obj: Any) -> Any:
        cls = holder["cls"]
        return super(cls, obj) if isinstance(obj, cls) else obj  # taken while the swap was there, called after its undo

    make = next(make for is_colour, make in _COLOURS if is_colour(override))
    method = make(active, local, name, override)
    return functools.wraps(original)(method) if inspect.isfunction(original) else method


def _decorated(holder: Mapping[str, type], active: _Active, name: str, decorated: Override, original: Any) -> Override:
    """Chooses before the decorators: the user's own method has its own, and what they announce must not be announced twice."""

    def chosen(obj: Any) -> Any:
        if active() is not None:
            return decorated.__get__(obj)
        cls = holder["cls"]
        return getattr(super(cls, obj) if isinstance(obj, cls) else obj, name)  # else: called after the undo

    if inspect.iscoroutinefunction(original):

        async def later(self: Any, *args: Any, **kwargs: Any) -> Any:
            return await chosen(self)(*args, **kwargs)

        return functools.wraps(original)(later)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return chosen(self)(*args, **kwargs)

    return functools.wraps(original)(method) if inspect.isfunction(original) else method


def _async_generator(active: _Active, local: Override, name: str, override: Override) -> Override:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = active()
        if binding is None:
            chunks = getattr(local(self), name)(*args, **kwargs)
        else:
            chunks = override(Bound(self, local(self), binding), *args, **kwargs)
        try:
            async for chunk in chunks:
                yield chunk
        finally:  # leaving early must reach the component now, not when the collector comes by
            await chunks.aclose()

    return method


def _generator(active: _Active, local: Override, name: str, override: Override) -> Override:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = active()
        if binding is None:
            return (yield from getattr(local(self), name)(*args, **kwargs))
        return (yield from override(Bound(self, local(self), binding), *args, **kwargs))

    return method


def _coroutine(active: _Active, local: Override, name: str, override: Override) -> Override:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = active()
        if binding is None:
            return await getattr(local(self), name)(*args, **kwargs)
        return await override(Bound(self, local(self), binding), *args, **kwargs)

    return method


def _plain(active: _Active, local: Override, name: str, override: Override) -> Override:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        binding = active()
        if binding is None:
            return getattr(local(self), name)(*args, **kwargs)
        return override(Bound(self, local(self), binding), *args, **kwargs)

    return method


_COLOURS: tuple[tuple[Callable[[Override], bool], Callable[..., Override]], ...] = (
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
    (inspect.iscoroutinefunction, _coroutine),
    (callable, _plain),
)
