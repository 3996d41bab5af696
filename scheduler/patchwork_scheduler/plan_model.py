"""What is asked of a plan, and the plan: frozen data with a JSON form that is checked when read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from patchwork_scheduler import document
from patchwork_scheduler.errors import InvalidInput, ProfileMismatch
from patchwork_scheduler.profile_model import Bytes, Name, NotNegative, Positive, Profile
from patchwork_scheduler.resources import Need, Resources, unplaced

PLAN_REMEDY = "make the plan again with 'patchwork plan' instead of editing it"
GOAL_REMEDY = "correct --slo, --rate, or the fixed choices in patchwork.yaml"

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A choice that the user made for a component; None leaves it to the planner."""

    batch: Annotated[int, Field(ge=1)] | None = None
    hardware: Name | None = None
    min_replicas: Count | None = None  #: None: 1. With 0 a component may have none while nothing calls it
    max_replicas: Count | None = None

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.least:
            raise InvalidInput(f"max_replicas is {self.max_replicas}, fewer than min_replicas {self.least}")

    @property
    def least(self) -> int:
        if self.min_replicas is not None:
            return self.min_replicas
        return 1 if self.max_replicas is None or self.max_replicas > 0 else 0

    @classmethod
    def replicas(cls, count: int) -> Fixed:
        """Exactly so many replicas."""
        return cls(min_replicas=count, max_replicas=count)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the plan is to reach."""

    rate_per_s: Positive | None = None  #: requests; None: as many as the resources can bear
    slo_s: Positive | None = None  #: None: no promise
    max_utilisation: Share = 1.0  #: of a component's capacity that may be used; the rest absorbs bursts
    fixed: Mapping[str, Fixed] = field(default_factory=dict)  #: by component id

    __pydantic_config__ = document.CHECKED


@dataclass(frozen=True, slots=True)
class Placement:
    """Equal replicas of a component on the nodes of one type."""

    node_type: Name
    hardware: Name
    replicas: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    seconds: Positive  #: profiled, for a whole batch
    cpus: NotNegative  #: per replica, as the next two
    gpus: NotNegative
    memory_bytes: Bytes

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise InvalidInput(f"gpus is {self.gpus:g}: more than one GPU must be a whole number of them")

    @property
    def calls_per_s(self) -> float:
        return self.replicas * self.batch / self.seconds

    @property
    def need(self) -> Need:
        """Of one replica."""
        return Need(self.cpus, self.gpus, self.memory_bytes)


@dataclass(frozen=True, slots=True)
class PlannedComponent:
    id: Name
    visits: NotNegative  #: calls per request
    capacity_per_s: NotNegative  #: calls that all its replicas can serve
    utilisation: NotNegative  #: at the rate asked for, else at the rate predicted
    path_s: NotNegative  #: seconds that it adds to a request with nobody before it
    placements: tuple[Placement, ...]

    __pydantic_config__ = document.CHECKED

    @property
    def replicas(self) -> int:
        return sum(p.replicas for p in self.placements)


@dataclass(frozen=True, slots=True)
class Marginal:
    """What one more CPU core or GPU in one node of a type would add to the sustainable rate."""

    node_type: Name
    resource: Literal["cpu", "gpu"]
    gain_per_s: NotNegative

    __pydantic_config__ = document.CHECKED


@dataclass(frozen=True, slots=True)
class Plan:
    """How many replicas of each component, where, with which batch; and what is predicted of them."""

    chain: Name
    rate_per_s: Positive  #: requests that all components can sustain, at ``max_utilisation``
    bottleneck: Name  #: the component that limits it
    cost: NotNegative  #: of the replicas, in the prices of their nodes
    path_s: NotNegative  #: one request with nobody before it, chain and hosted APIs included
    full_batch_path_s: NotNegative  #: the same when every batch is full; this is what the SLO bounds
    components: Annotated[tuple[PlannedComponent, ...], Field(min_length=1)]
    marginals: tuple[Marginal, ...] = ()
    target_rate_per_s: Positive | None = None
    slo_s: Positive | None = None
    max_utilisation: Share = 1.0
    bound_per_s: Positive | None = None  #: no plan can be better than this; None when a rate was asked for
    core_s: Positive | None = (
        None  #: that a request keeps cores busy, where replicas share them and that limits the rate
    )
    profile: Profile | None = None  #: what it was made from: deployments seed their predictions from it, and plan again
    resources: Resources | None = None  #: what it may use
    version: Literal[1] = 1

    __pydantic_config__ = document.CHECKED

    def __post_init__(self) -> None:
        ids = [c.id for c in self.components]
        for component_id in ids:
            if ids.count(component_id) > 1:
                raise InvalidInput(f"components: {component_id!r} occurs twice")
        if self.bottleneck not in ids:
            raise InvalidInput(f"bottleneck is {self.bottleneck!r}, which is none of the components {', '.join(ids)}")
        for component in self.components:
            self._check_capacity(component)
        if self.profile is not None and (other := {c.id for c in self.profile.components if not c.external} ^ set(ids)):
            raise InvalidInput(
                f"profile and components are not of the same chain: only one of them has {', '.join(sorted(other))}"
            )
        if self.resources is not None:
            self._check_places(self.resources)

    def _check_places(self, resources: Resources) -> None:
        """Every replica has a place on the nodes that the plan was made for."""
        nodes = {node.name: node for node in resources.types()}
        wanted: dict[str, list[tuple[Need, int]]] = {name: [] for name in nodes}
        for component in self.components:
            for place in component.placements:
                node = nodes.get(place.node_type)
                if node is None:
                    raise InvalidInput(
                        f"components: {component.id!r}: node_type is {place.node_type!r}, and the resources are {', '.join(nodes)}"
                    )
                if place.hardware not in node.offers:
                    raise InvalidInput(
                        f"components: {component.id!r}: hardware is {place.hardware!r}, and {node.name} offers {', '.join(node.offers)}"
                    )
                wanted[node.name].append((place.need, place.replicas))
        for name, needs in wanted.items():
            if unplaced(nodes[name], needs) is not None:
                cpus = sum(need.cpus * count for need, count in needs)
                gpus = sum(need.gpus * count for need, count in needs)
                raise InvalidInput(
                    f"components: the replicas on {name} need {cpus:g} cpus and {gpus:g} gpus, and do not fit on"
                    f" {nodes[name].count} x {nodes[name].cpus:g} cpus and {nodes[name].gpus} gpus"
                )

    def _check_capacity(self, component: PlannedComponent) -> None:
        """A plan edited by hand says one thing in ``replicas`` and another in ``rate_per_s``."""
        capacity = sum(p.calls_per_s for p in component.placements)
        where = f"components: {component.id!r}"
        if abs(capacity - component.capacity_per_s) > 1e-6 * max(capacity, component.capacity_per_s):
            raise InvalidInput(
                f"{where}: capacity_per_s is {component.capacity_per_s:g}, but its placements carry {capacity:g}"
            )
        needed = component.visits * self.rate_per_s
        if needed > capacity * self.max_utilisation * (1 + 1e-6):
            raise InvalidInput(
                f"{where}: its placements carry {capacity:g} calls/s at most, but rate_per_s {self.rate_per_s:g} needs {needed:g}"
            )

    def component(self, component_id: str) -> PlannedComponent:
        """The component with this id; InvalidInput names those that exist."""
        for component in self.components:
            if component.id == component_id:
                return component
        known = ", ".join(c.id for c in self.components)
        raise InvalidInput(f"the plan of {self.chain} has no component {component_id!r}; it has {known}")

    def check_components(self, component_ids: Collection[str]) -> None:
        """ProfileMismatch unless the plan is for exactly these components."""
        mine = {c.id for c in self.components}
        if mine != set(component_ids):
            raise ProfileMismatch(
                f"the plan is of another chain ({self.chain}): it has {', '.join(sorted(mine))}, the chain has"
                f" {', '.join(sorted(component_ids))}; make a plan for this chain with 'patchwork plan'"
            )

    def to_json(self) -> dict[str, Any]:
        return document.write(self)

    @classmethod
    def from_json(cls, value: object, *, what: str = "the plan") -> Plan:
        """The inverse of :meth:`to_json`; InvalidInput names field, value and remedy."""
        return document.read(cls, value, what=what, remedy=PLAN_REMEDY)

    def save(self, path: Path) -> None:
        document.write_file(self, path)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """InvalidInput names file, field, value and remedy."""
        return document.read_file(cls, path, remedy=PLAN_REMEDY)
