"""What one replica of the gateway has counted, and what several have counted together: any of them answers for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric, generate_latest
from prometheus_client.samples import Sample

from patchwork_serving.gateway.predictions import merged
from patchwork_serving.gateway.window import Finished, summary_of

#: Label that tells the replicas' series apart: each counts from its own start, and a sum of them would fall when one is replaced.
REPLICA_LABEL = "ingress"


@dataclass(frozen=True, slots=True)
class Account:
    """Travels between replicas of one application."""

    replica: str
    families: tuple[Metric, ...]  #: of ``GatewayMetrics``
    finished: tuple[Finished, ...]  #: the requests of the last minute
    in_flight: int
    door: Mapping[str, Any] = field(default_factory=dict)  #: ``Door.facts``
    decisions: tuple[Mapping[str, Any], ...] = ()  #: ``time``, ``what``, ``why``, oldest first


def exposition(
    accounts: Sequence[Account],
    components: Iterable[Mapping[str, Any]],
    app: str,
    autoscale: Mapping[str, Any] | None = None,
) -> bytes:
    """All accounts in Prometheus' text format, the components' queues (``replicas`` of ``status --json``) and the autoscaler's numbers."""
    return generate_latest(_Collected([*_merged(accounts), *_queues(components, app), *_autoscale(autoscale, app)]))


def together(accounts: Sequence[Account]) -> dict[str, Any]:
    """The parts of ``/info`` that are about traffic. Percentiles are of all requests, not of the replicas' percentiles."""
    return {
        "in_flight": sum(account.in_flight for account in accounts),
        "window": summary_of([one for account in accounts for one in account.finished]),
        "ingress": [{"replica": account.replica, "in_flight": account.in_flight} for account in accounts],
        "scheduler": _doors([account.door for account in accounts]),
    }


def decisions(accounts: Sequence[Account], others: Iterable[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
    """What was decided, by all replicas of the ingress and by ``others``, in order of time."""
    found = [*others, *(one for account in accounts for one in account.decisions)]
    return sorted(found, key=lambda one: str(one.get("time", "")))


_DOOR = ("margin", "delay_s", "judged", "predicted_over_actual", "mean_error_s")


def _doors(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each replica of the ingress decides by itself: counts are added, predictions are judged together, margins are told side by side."""
    decided: dict[str, Counter[str]] = {}
    for one in facts:
        for name, counts in one.get("decided", {}).items():
            decided.setdefault(name, Counter()).update(counts)
    return {
        "admission": next((one["admission"] for one in facts if "admission" in one), "off"),
        "decided": decided,
        "calls_shared": sum(one.get("calls_shared", 0) for one in facts),
        "prefixes": _prefixes([one.get("prefixes", {}) for one in facts]),
        "doors": [{key: one[key] for key in _DOOR if key in one} for one in facts],
        "predictions": merged([one.get("predictions", ()) for one in facts]),
    }


def _prefixes(told: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Component -> ``PrefixMemory.facts`` of all replicas of the ingress, weighted by their calls."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({name for one in told for name in one}):
        ours = [one[name] for one in told if name in one]
        calls = sum(one["calls"] for one in ours)
        means = {key: sum(one["calls"] * one[key] for one in ours) / calls for key in ("seen_share", "saved_share")}
        found[name] = {"calls": calls, **means}
    return found


class _Collected:
    """Families in the shape of a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _merged(accounts: Sequence[Account]) -> list[Metric]:
    merged: dict[str, Metric] = {}
    for account in accounts:
        for family in account.families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type, family.unit))
            into.samples.extend(_labelled(sample, account.replica) for sample in family.samples)
    return list(merged.values())


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={**sample.labels, REPLICA_LABEL: replica}) if replica else sample


def _queues(components: Iterable[Mapping[str, Any]], app: str) -> list[Metric]:
    families = {
        "queued": Metric("patchwork_component_queued", "Calls that wait in a component's replicas.", "gauge"),
        "running": Metric("patchwork_component_running", "Calls that a component's replicas work on.", "gauge"),
        "ready": Metric("patchwork_component_replicas", "Replicas of a component that are ready.", "gauge"),
    }
    for row in components:
        for key, family in families.items():
            if isinstance(row.get(key), int):
                family.add_sample(family.name, {"app": app, "component": str(row["component"])}, float(row[key]))
    return [family for family in families.values() if family.samples]


def _autoscale(told: Mapping[str, Any] | None, app: str) -> list[Metric]:
    """The last decision, which one replica makes for all."""
    if not told:
        return []
    numbers, changes = told.get("numbers") or {}, told.get("changes") or {}
    families = [
        _family("rate", "Requests per second, as the autoscaler sees them.", {"": numbers.get("rate_per_s")}, app, ""),
        _family("forecast", "Requests per second when a new replica would serve.", {"": numbers.get("forecast_per_s")}, app, ""),
        _family("target_replicas", "Replicas that the last decision wants.", numbers.get("targets"), app, "component"),
        _family("utilisation", "Of the replicas asked for, at the forecast.", numbers.get("utilisation"), app, "component"),
        _family("drift", "Observed over profiled seconds.", numbers.get("drift"), app, "component"),
        _family("changes", "Changes of replicas.", changes, app, "direction", "counter"),
    ]  # fmt: skip
    return [family for family in families if family.samples]


def _family(
    name: str, about: str, values: Mapping[str, Any] | None, app: str, label: str, type: str = "gauge"
) -> Metric:
    family = Metric(f"patchwork_autoscale_{name}", about, type)
    for key, value in (values or {}).items():
        if isinstance(value, int | float):
            labels = {"app": app, label: key} if label else {"app": app}
            family.add_sample(family.name + ("_total" if type == "counter" else ""), labels, float(value))
    return family
