"""What a swapped leaf holds on to: its component, the bridge to it, and the user's own method behind the swap."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from patchwork_adapters import codec
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.context import REQUEST
from patchwork_adapters.sites import site_of
from patchwork_adapters.transport import LeafCall, Way

log = logging.getLogger(__name__)

#: Swaps that are in force in the running code; one that is ``always`` need not be named here.
ACTIVE: ContextVar[frozenset[int]] = ContextVar("patchwork_active_swaps", default=frozenset())


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a leaf runs."""

    component: str
    way: Way
    collection: str | None = None  #: of an exported store
    fingerprint: str | None = (
        None  #: of the store's ids at export (:func:`patchwork_adapters.stores.fingerprint`); None: not checked
    )


@dataclass(frozen=True, slots=True)
class Binding:
    leaf: str
    assignment: Assignment
    bridge: Bridge
    swap_id: int
    always: bool
    baseline: Mapping[str, Any] = field(default_factory=dict)  #: the leaf's fields when it was swapped
    is_late: bool = False  #: the leaf stands for objects that are constructed later, each with a state of its own

    def leaf_call(
        self, method: str, payload: bytes, *, size: int = 1, stream: bool = False, manager: Any = None
    ) -> LeafCall:
        """``manager``: the run manager that the framework gave to the leaf, which knows best where the call comes from."""
        site = site_of(self.leaf, manager)
        return LeafCall(self.assignment.component, self.leaf, method, payload, stream, site, size, REQUEST.get())


@dataclass(slots=True)
class Slot:
    """The one mutable place of a generated class: empty when the swap was undone."""

    binding: Binding | None = None

    def active(self) -> Binding | None:
        """The binding when calls shall go to the component now, else None: the user's own method runs."""
        binding = self.binding
        if binding is None or not (binding.always or binding.swap_id in ACTIVE.get()):
            return None
        return binding

    def writing(self) -> Binding | None:
        """As :meth:`active`, for a call that changes a store.

        A store of a program that runs on beside its components may be changed at any time, and the exported copy may have other readers:
        from its first change on it is searched where it is.
        """
        binding = self.binding
        if binding is None or binding.always:
            return binding
        self.binding = None
        log.warning(
            "%s was written to: it is searched in this process from now on; connect again to export it again",
            binding.leaf,
        )
        return None


class Bound(NamedTuple):
    """A swapped leaf during one call, as overrides of the ``engine`` way get it."""

    obj: Any  #: the user's object
    local: Any  #: ``local.method(...)`` is the user's own method
    binding: Binding

    @property
    def collection(self) -> str:
        """Name of the exported store; only leaves with one ask for it."""
        assert self.binding.assignment.collection is not None
        return self.binding.assignment.collection

    def ask(self, operation: str, arguments: Mapping[str, Any], size: int = 1) -> Any:
        """Result of an operation of ``patchwork_adapters.operations``; raises what it raised there."""
        call = self.binding.leaf_call(operation, codec.encode(dict(arguments)), size=size)
        return codec.decode_outcome(self.binding.bridge.call(call))

    async def aask(self, operation: str, arguments: Mapping[str, Any], size: int = 1) -> Any:
        call = self.binding.leaf_call(operation, codec.encode(dict(arguments)), size=size)
        return codec.decode_outcome(await self.binding.bridge.acall(call))

    def stream(self, operation: str, arguments: Mapping[str, Any]) -> Iterator[Any]:
        call = self.binding.leaf_call(operation, codec.encode(dict(arguments)), stream=True)
        for frame in self.binding.bridge.stream(call):
            yield codec.decode_outcome(frame)

    async def astream(self, operation: str, arguments: Mapping[str, Any]) -> AsyncIterator[Any]:
        call = self.binding.leaf_call(operation, codec.encode(dict(arguments)), stream=True)
        async for frame in self.binding.bridge.astream(call):
            yield codec.decode_outcome(frame)
