"""ComponentGraph: what is known about a chain, as frozen data. It holds no status, result or handle and is never executed (D2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from patchwork_adapters.transport import Kind, Way

EdgeKind = Literal["data", "cond", "loop", "map"]
START, END = "__start__", "__end__"


@dataclass(frozen=True, slots=True)
class Component:
    id: str
    kind: Kind
    cls: str  #: ``module.Class`` of the user's leaf
    way: Way
    engine: str  #: engine name; ``own`` when the replica runs the user's object, ``external`` for a hosted API
    leaves: tuple[str, ...] = ()  #: canonical paths
    model: str | None = None
    external: bool = False

    def to_json(self) -> dict[str, Any]:
        """As one item of ``components`` in ``inspect --json``."""
        return {
            "id": self.id, "kind": self.kind, "class": self.cls, "engine": self.engine, "external": self.external,
            "way": self.way, "model": self.model, "leaves": list(self.leaves),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallSite:
    """A place in the chain from which a leaf is called: ``leaf``, or ``leaf@where`` (docs/decisions/call-sites.md).

    Numbers are None until sampled. A *visit* is one call, or several at once; means are over all sampled requests unless said otherwise.
    """

    id: str
    component: str
    visits: float | None = None  #: mean calls per request
    seconds: float | None = None  #: mean seconds per call
    tokens: float | None = None  #: mean of prompt and output tokens together per call, where the leaf tells
    prompt_tokens: float | None = None  #: mean per call
    output_tokens: float | None = None  #: mean per call
    serial: float | None = None  #: mean visits one after another per request: calls at once count once
    loops: int | None = None  #: most visits one after another that one request made
    reached: float | None = None  #: share of requests that came here at all
    size: float | None = None  #: mean work items (texts of a batch embedding) per call


@dataclass(frozen=True, slots=True)
class Edge:
    source: str  #: call-site id or START
    target: str  #: call-site id or END
    kind: EdgeKind
    probability: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Opaque:
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class ComponentGraph:
    target: str
    framework: str  #: ``langchain`` | ``langgraph`` | ``llamaindex``
    components: tuple[Component, ...]
    call_sites: tuple[CallSite, ...] = ()
    edges: tuple[Edge, ...] = ()
    opaque: tuple[Opaque, ...] = ()
    notes: tuple[str, ...] = field(default=())  #: facts a person should know, e.g. state kept in the orchestrator
    requests: int = 0  #: sample requests behind the numbers; 0: static
    glue_s: float | None = None  #: mean seconds per request in which no leaf worked
    #: name in the request by which its state is found again (``session_id``, ``thread_id``): send equal values to one orchestrator
    affinity: str | None = None

    def component(self, component_id: str) -> Component:
        """The component with this id; KeyError names those that exist."""
        for component in self.components:
            if component.id == component_id:
                return component
        raise KeyError(f"no component {component_id!r}; there are {[c.id for c in self.components]}")

    def to_json(self) -> dict[str, Any]:
        """The document that ``patchwork inspect --json`` prints (a contract)."""
        return {
            "target": self.target,
            "framework": self.framework,
            "components": [c.to_json() for c in self.components],
            "call_sites": [asdict(s) for s in self.call_sites],
            "edges": [asdict(e) for e in self.edges],
            "opaque": [asdict(o) for o in self.opaque],
            "notes": list(self.notes),
            "requests": self.requests,
            "glue_s": self.glue_s,
            "affinity": self.affinity,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ComponentGraph:
        """The inverse of :meth:`to_json`."""
        return cls(
            target=document["target"],
            framework=document["framework"],
            components=tuple(
                Component(
                    id=c["id"], kind=c["kind"], cls=c["class"], way=c["way"], engine=c["engine"], leaves=tuple(c["leaves"]),
                    model=c["model"], external=c["external"],
                )
                for c in document["components"]
            ),
            call_sites=tuple(CallSite(**s) for s in document["call_sites"]),
            edges=tuple(Edge(**e) for e in document["edges"]),
            opaque=tuple(Opaque(**o) for o in document["opaque"]),
            notes=tuple(document.get("notes", ())),
            requests=document.get("requests", 0), glue_s=document.get("glue_s"), affinity=document.get("affinity"),
        )  # fmt: skip
