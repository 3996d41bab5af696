"""Swapped leaves whose calls are carried out, by bytes only, by a second object of the same content."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.checking.twin import Collections
from patchwork_adapters.leaves.spec import spec_for
from patchwork_adapters.own import OwnLeafRunner
from patchwork_adapters.stores import export
from patchwork_adapters.swap import swap
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Leaf


class Twins:
    """A transport: a component is a twin of the user's object, or a copy of the rows of an exported store."""

    def __init__(self) -> None:
        self.runners: dict[str, OwnLeafRunner] = {}
        self.stores: dict[str, Collections] = {}
        self.calls: list[LeafCall] = []

    async def call(self, call: LeafCall) -> bytes:
        self.calls.append(call)
        if call.component in self.stores:
            return self.stores[call.component].run(call.component, call.method, codec.decode(call.payload))
        return await self.runners[call.component].run(call.method, call.payload)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        self.calls.append(call)
        async for frame in self.runners[call.component].stream(call.method, call.payload):
            yield frame


def leaf_of(obj: Any) -> Leaf:
    """The leaf that an object is by itself, an empty store included."""
    spec = spec_for(type(obj))
    assert spec is not None
    return Leaf("leaf", obj, spec.kind, spec)


@contextmanager
def swapped(obj: Any, twin: Any, *, always: bool = True) -> Iterator[Twins]:
    """``obj`` swapped, with its calls carried out by ``twin``; a store that can be exported is, as it is now."""
    leaf, twins = leaf_of(obj), Twins()
    if leaf.spec.export is not None:
        twins.stores["store"] = Collections({"store": export(leaf.spec, obj)})
        assignment = Assignment("store", "engine", collection="store")
    else:
        twins.runners["own"] = OwnLeafRunner(twin)
        assignment = Assignment("own", "own")
    with Bridge(twins) as bridge:
        made = swap([leaf], {leaf.path: assignment}, bridge, always=always)
        assert made.skipped == []
        try:
            yield twins
        finally:
            made.undo()
