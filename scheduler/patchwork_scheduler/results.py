"""What a simulation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchwork_scheduler.estimate import Calibration
from patchwork_scheduler.model import SloClass, State


@dataclass(frozen=True, slots=True)
class ComponentUse:
    replicas: int
    busy_share: float  #: of the time; an engine with continuous batching is busy with one call as with a hundred
    work_share: float  #: work that calls brought, of what the replicas can do at their best batch

    def to_json(self) -> dict[str, Any]:
        return {"replicas": self.replicas, "busy_share": self.busy_share, "work_share": self.work_share}


@dataclass(slots=True)
class Results:
    """Counts, and seconds of those that ran to their end. ``offered = attained + missed + refused``."""

    slo: SloClass
    offered: int = 0
    attained: int = 0
    missed: int = 0
    refused: int = 0
    end: float = 0.0
    last_arrival: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)  #: from the request's arrival to the first token of its last call
    retry_after: list[float] = field(default_factory=list)
    margin: float = 1.0
    calibration: Mapping[State, Calibration] = field(default_factory=dict)
    components: Mapping[str, ComponentUse] = field(default_factory=dict)  #: those that have replicas

    def finish(self, latency_s: float, in_time: bool) -> None:
        self.latencies.append(latency_s)
        if in_time:
            self.attained += 1
        else:
            self.missed += 1

    def refuse(self, retry_after_s: float) -> None:
        self.refused += 1
        self.retry_after.append(retry_after_s)

    @property
    def accepted(self) -> int:
        return self.offered - self.refused

    @property
    def attained_share(self) -> float:
        """Of what was offered."""
        return self.attained / self.offered if self.offered else 1.0

    @property
    def missed_share(self) -> float:
        """Of what was accepted."""
        return self.missed / self.accepted if self.accepted else 0.0

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.latencies)) if self.latencies else 0.0

    def goodput(self, span_s: float | None = None) -> float:
        """Requests in time per second, of ``span_s`` (default: while requests arrived)."""
        return self.attained / max(span_s or self.last_arrival or self.end, 1e-9)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.latencies, q)) if self.latencies else 0.0

    def first_token_percentile(self, q: float) -> float | None:
        """None where the last component of no request gives tokens."""
        return float(np.percentile(self.ttft, q)) if self.ttft else None

    def to_json(self) -> dict[str, Any]:
        return {
            "offered": self.offered, "attained": self.attained, "missed": self.missed, "refused": self.refused,
            "attained_share": self.attained_share, "missed_share_of_accepted": self.missed_share,
            "goodput_per_s": self.goodput(), "slo_s": self.slo.deadline_s,
            "latency_s": {"p50": self.percentile(50), "p95": self.percentile(95), "p99": self.percentile(99)},
            "ttft_s": _percentiles(self.ttft), "retry_after_s": _percentiles(self.retry_after),
            "components": {name: use.to_json() for name, use in self.components.items()},
            "predictions": [
                {"site": state.site, "loop": state.loop, **one.to_json()} for state, one in self.calibration.items() if one.count
            ],
        }  # fmt: skip

    def check_invariants(self) -> None:
        """Assert that every offered request is accounted for once."""
        assert self.offered == self.attained + self.missed + self.refused
        assert len(self.latencies) == self.attained + self.missed


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
