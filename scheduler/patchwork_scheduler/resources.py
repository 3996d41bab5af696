"""The machines that a plan may use, and whether a set of replicas fits on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from patchwork_scheduler import document
from patchwork_scheduler.errors import InvalidInput
from patchwork_scheduler.profile_model import Bytes, Name, NotNegative

REMEDY = "correct the resources given to 'patchwork plan'"
_EPS = 1e-9  #: fractions of a GPU are floats; ten times 0.1 must fit


@dataclass(frozen=True, slots=True)
class NodeType:
    """Nodes of one shape. Prices only order plans of equal rate: a GPU counts as many cores, as in every public price list."""

    name: Name
    cpus: NotNegative
    gpus: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Bytes | None = None  #: per node; None: not limited
    count: Annotated[int, Field(ge=1)] = 1
    hardware: tuple[
        Name, ...
    ] = ()  #: what the nodes offer, as profiles name it; empty: ``cpu``, and ``gpu`` where there are any
    cpu_price: NotNegative = 1.0
    gpu_price: NotNegative = 16.0

    __pydantic_config__ = document.CHECKED

    @property
    def offers(self) -> tuple[str, ...]:
        return self.hardware or (("cpu", "gpu") if self.gpus else ("cpu",))

    def fits(self, need: Need) -> int:
        """How many replicas that need this fit on one empty node."""
        limits = [_times(self.cpus, need.cpus), _times(self.memory_bytes, need.memory_bytes)]
        if need.gpus > 0:
            limits.append(self.gpus * _times(1, need.gpus) if need.gpus <= 1 else _times(self.gpus, need.gpus))
        return int(min(limits))


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica occupies."""

    cpus: float
    gpus: float
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Resources:
    """Nodes, listed by type or one by one: entries of equal shape are one type and go by the first one's name."""

    nodes: Annotated[tuple[NodeType, ...], Field(min_length=1)]

    __pydantic_config__ = document.CHECKED

    @classmethod
    def machine(cls, *, cpus: float, gpus: int = 0, memory_bytes: int | None = None) -> Resources:
        """One machine."""
        return cls((NodeType("machine", cpus=cpus, gpus=gpus, memory_bytes=memory_bytes),))

    def types(self) -> tuple[NodeType, ...]:
        """Nodes of equal shape merged: what is decided per type costs the same for two nodes and for two hundred."""
        merged: dict[NodeType, tuple[str, int]] = {}
        for node in self.nodes:
            shape = replace(node, name="shape", count=1)
            name, count = merged.get(shape, (node.name, 0))
            merged[shape] = (name, count + node.count)
        types = tuple(replace(shape, name=name, count=count) for shape, (name, count) in merged.items())
        names = [t.name for t in types]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInput(
                    f"nodes: the name {name!r} stands for nodes of different shapes; name them differently"
                )
        return types

    def with_one_more(self, type_name: str, resource: str) -> Resources:
        """One ``cpu`` or ``gpu`` more in one node of a type."""
        nodes: list[NodeType] = []
        for node in self.types():
            if node.name != type_name:
                nodes.append(node)
                continue
            if node.count > 1:
                nodes.append(replace(node, count=node.count - 1))
            larger = replace(node, cpus=node.cpus + 1) if resource == "cpu" else replace(node, gpus=node.gpus + 1)
            nodes.append(replace(larger, name=f"{node.name}+1 {resource}", count=1, hardware=node.offers))
        return Resources(tuple(nodes))

    def to_json(self) -> dict[str, Any]:
        return document.write(self)

    @classmethod
    def from_json(cls, value: object, *, what: str = "resources") -> Resources:
        """InvalidInput names field, value and remedy."""
        return document.read(cls, value, what=what, remedy=REMEDY)


@dataclass(frozen=True, slots=True)
class _Node:
    """What is left of a node; GPUs one by one, because a fraction must come from a single one."""

    cpus: float
    memory_bytes: float
    gpus: tuple[float, ...]

    def room(self, need: Need) -> int:
        limits = [_times(self.cpus, need.cpus), _times(self.memory_bytes, need.memory_bytes)]
        if 0 < need.gpus < 1:
            limits.append(sum(_times(left, need.gpus) for left in self.gpus))
        elif need.gpus:
            limits.append(_times(sum(left >= 1 - _EPS for left in self.gpus), need.gpus))
        return int(min(limits))

    def take(self, need: Need, copies: int) -> _Node:
        return _Node(
            self.cpus - need.cpus * copies,
            self.memory_bytes - need.memory_bytes * copies,
            self._gpus_after(need, copies),
        )

    def _gpus_after(self, need: Need, copies: int) -> tuple[float, ...]:
        left = sorted(self.gpus)  # fullest first, so that whole GPUs stay whole
        if need.gpus >= 1:
            return tuple(left[: len(left) - round(need.gpus * copies)])
        for index in range(len(left)):
            here = min(copies, int(_times(left[index], need.gpus))) if need.gpus else 0
            left[index] -= here * need.gpus
            copies -= here
        return tuple(left)


def unplaced(node: NodeType, wanted: Sequence[tuple[Need, int]]) -> Need | None:
    """What of ``wanted`` (needs and copies) finds no place on the nodes of this type, or None: first fit, largest first.

    Equal nodes and equal replicas are handled together, so thousands of replicas cost as little as a few.
    """
    empty = _Node(node.cpus, math.inf if node.memory_bytes is None else node.memory_bytes, (1.0,) * node.gpus)
    nodes: list[tuple[_Node, int]] = [(empty, node.count)]
    for need, copies in sorted(wanted, key=lambda item: _share(node, item[0]), reverse=True):
        left: list[tuple[_Node, int]] = []
        for state, count in nodes:
            room = state.room(need)
            full = min(count, copies // room) if room and copies else 0
            if full:
                left.append((state.take(need, room), full))
                copies -= full * room
            if full < count and room and copies:
                left.append((state.take(need, copies), 1))
                copies, full = 0, full + 1
            if full < count:
                left.append((state, count - full))
        if copies:
            return need
        nodes = left
    return None


def _share(node: NodeType, need: Need) -> tuple[bool, float]:
    shares = [need.cpus / node.cpus if node.cpus else 0.0, need.gpus / node.gpus if node.gpus else 0.0]
    if node.memory_bytes:
        shares.append(need.memory_bytes / node.memory_bytes)
    return need.gpus >= 1, max(shares)


def _times(have: float | None, need: float) -> float:
    """How often ``need`` goes into ``have``; infinite when nothing is needed or nothing limits."""
    return math.inf if need == 0 or have is None or have == math.inf else math.floor(have / need + _EPS)
