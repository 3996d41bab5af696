"""What sample requests did: each leaf call with its place, time and tokens, and the graph that they make of a chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from patchwork_adapters.graph import ComponentGraph


@dataclass(frozen=True, slots=True)
class SampledCall:
    """One leaf call of one request. Times are seconds; ``started`` counts from the start of the request."""

    site: str  #: call-site id, as :class:`patchwork_adapters.transport.LeafCall` carries it at run time
    leaf: str
    component: str
    method: str
    started: float
    seconds: float
    loop: int = 0  #: visits that the request had made here before this one (calls at once are one visit)
    size: int = 1  #: work items inside (texts of a batch embedding)
    prompt_tokens: int | None = None  #: None where the leaf does not tell
    output_tokens: int | None = None
    first_s: float | None = None  #: seconds to the first chunk, streams only
    error: str | None = None  #: class of what it raised

    @property
    def ended(self) -> float:
        return self.started + self.seconds


@dataclass(frozen=True, slots=True)
class SampledRequest:
    number: int  #: of the input, from 0
    seconds: float
    glue_s: float  #: in which no leaf worked
    calls: tuple[SampledCall, ...]  #: by their start
    error: str | None = None  #: class of what the chain raised


@dataclass(frozen=True, slots=True)
class Sampled:
    graph: ComponentGraph  #: with visits, probabilities, seconds and tokens
    requests: tuple[SampledRequest, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {"graph": self.graph.to_json(), "requests": [asdict(request) for request in self.requests]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Sampled:
        """The inverse of :meth:`to_json`."""
        requests = (
            SampledRequest(**{**r, "calls": tuple(SampledCall(**call) for call in r["calls"])})
            for r in document["requests"]
        )
        return cls(ComponentGraph.from_json(document["graph"]), tuple(requests))
