"""A release: everything that processes need to know to serve one chain. Frozen data, JSON on disk and on wires; no secrets inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.transport import Kind, Way
from patchwork_scheduler.policies import DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """A component as it will be deployed."""

    id: str
    kind: Kind
    way: Way
    engine: (
        str  #: ``llamacpp`` ``openvino`` ``onnx`` ``pgvector`` ``own`` ``vllm`` ``reranker`` ``external`` ``emulated``
    )
    model: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  #: other names under which clients ask for the model
    replicas: int = 1
    num_cpus: float = 0.1  #: Ray bookkeeping, not a limit
    num_gpus: float = 0.0
    max_batch: int = 32
    max_wait_s: float = 0.0  #: how long the host may hold a call to let a batch form while other batches run
    slots: int | None = None  #: calls inside a continuous engine at once; None: the engine's own number
    concurrency: int | None = None  #: calls in flight to an external API, per ingress replica
    policy: str = DEFAULT_POLICY  #: the order of the calls that wait in a replica
    #: Fields of a ``BatchCost`` or ``TokenCost``, from a profile of this engine on this hardware; None: the replica learns it.
    cost: Mapping[str, Any] | None = None
    emulate: Mapping[str, Any] | None = None  #: the engine's real replies, in the time of these ``rows``

    @property
    def is_emulated(self) -> bool:
        """Whether its times are a profile's, not an engine's."""
        return self.engine == "emulated" or self.emulate is not None


@dataclass(frozen=True, slots=True)
class Collection:
    """A user's vector store, exported to Postgres."""

    name: str
    leaf: str
    rows: int
    dim: int
    distance: str
    ef_search: int
    recall: float  #: measured against exact search at export
    exact: bool  #: recall was below the floor: searches scan exactly
    fingerprint: str | None = None  #: of the store's ids at export; a process whose store differs keeps it local


@dataclass(frozen=True, slots=True)
class Release:
    name: str
    target: str  #: as given: ``file.py:attr`` or ``pkg.mod:attr``
    module_dir: str  #: folder put on sys.path; the working directory of a Ray runtime environment
    graph: ComponentGraph
    components: tuple[ComponentSpec, ...]
    collections: tuple[Collection, ...] = ()
    slo_s: float | None = None
    ingress_replicas: int = 1
    created_at: str = ""  #: ISO 8601, UTC
    plan: Mapping[str, Any] | None = None  #: the plan that it applies (``Plan.to_json``)
    settings: Mapping[str, Any] = field(default_factory=dict)  #: resolved, without secrets

    @property
    def emulated(self) -> tuple[str, ...]:
        """Components whose times are a profile's."""
        return tuple(c.id for c in self.components if c.is_emulated)

    def to_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__slots__}
        document["graph"] = self.graph.to_json()
        document["components"] = [asdict(c) for c in self.components]
        document["collections"] = [asdict(c) for c in self.collections]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Release:
        values = dict(document)
        values["graph"] = ComponentGraph.from_json(document["graph"])
        values["components"] = tuple(
            ComponentSpec(**{**c, "leaves": tuple(c["leaves"]), "aliases": tuple(c["aliases"])})
            for c in document["components"]
        )
        values["collections"] = tuple(Collection(**c) for c in document["collections"])
        return cls(**values)
