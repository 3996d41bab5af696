"""What the autoscaler is told and what it answers: frozen data. Times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Served:
    """Batches of one size that ended."""

    batches: int
    seconds: float  #: of all of them together


@dataclass(frozen=True, slots=True)
class Seen:
    """One component during an interval."""

    calls: int = 0  #: that began, as the ingress sent them
    served: Mapping[int, Served] = field(default_factory=dict)  #: by batch size
    queued: int = 0  #: calls that wait now
    running: int = 0  #: calls or batches inside engines now
    ready: int = 0  #: replicas that report now


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened since the last one."""

    seconds: float  #: how long the interval was
    requests: int = 0  #: that came to the door, refused ones included
    late: int = 0  #: requests that ended late, or were refused because they would have
    components: Mapping[str, Seen] = field(default_factory=dict)

    def of(self, component_id: str) -> Seen:
        return self.components.get(component_id, _NOTHING)


_NOTHING = Seen()


@dataclass(frozen=True, slots=True)
class Scaling:
    """How eagerly replicas are added and taken away. Utilisations are shares of a component's capacity."""

    plan_for: float = 0.75  #: utilisation that a plan aims at; the rest absorbs bursts
    up_at: float = (
        0.85  #: replicas are added when the forecast exceeds it; above ``plan_for``, so that noise moves nothing
    )
    #: replicas are taken away when the rest would stay below it at the recent peak, which is above the mean that plans are made for
    down_to: float = 0.78
    settle_s: float = 20.0  #: how far back the recent peak reaches, and how long a component keeps what it was given
    #: the same in cold starts of the component, where that is longer: what is dear to start again is kept longer
    settle_cold_starts: float = 2.0
    drain_s: float = 10.0  #: calls that wait beyond a batch per replica are to be gone after this long
    idle_s: float = 120.0  #: a component that may have no replica loses its last one after so long without a call
    late_share: float = 0.05  #: of recent requests; above it, plans leave more room
    late_room: float = 0.8  #: then, utilisations are multiplied by this
    drift: float = 1.3  #: observed seconds over profiled ones, or the inverse, from which the profile is not believed
    drift_batches: float = 20.0  #: batches that must have been seen for that


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many replicas a component may have; None: as many as the resources carry."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Another number of replicas for a component, and why."""

    component: str
    before: int
    after: int
    why: str

    @property
    def what(self) -> str:
        return f"{self.component}: {self.before} to {self.after} replica{'' if self.after == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to run from now on."""

    at: float
    targets: Mapping[str, int]  #: replicas by component
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()  #: new ones: drift that began, a limit that was reached
    rate_per_s: float = 0.0  #: requests, now
    forecast_per_s: float = 0.0  #: requests, when replicas asked for now would serve
    utilisation: Mapping[str, float] = field(default_factory=dict)  #: of the replicas asked for before, at the forecast
    drift: Mapping[str, float] = field(
        default_factory=dict
    )  #: observed over profiled seconds, of components seen enough

    def to_json(self) -> dict[str, Any]:
        return {
            "targets": dict(self.targets),
            "rate_per_s": round(self.rate_per_s, 4),
            "forecast_per_s": round(self.forecast_per_s, 4),
            "utilisation": {k: round(v, 4) for k, v in self.utilisation.items()},
            "drift": {k: round(v, 4) for k, v in self.drift.items()},
        }
