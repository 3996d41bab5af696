"""What one gateway counts: Prometheus metrics ``patchwork_*`` and the calls of each run in flight.

The registry is the gateway's own, so that several gateways live in one process. Methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily

from patchwork_serving.gateway.port import Outcome
from patchwork_serving.gateway.traffic import Traffic

CONTENT_TYPE = CONTENT_TYPE_LATEST

#: seconds; a retrieval takes milliseconds, a long answer on a CPU a minute
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)

CallOutcome = Literal["ok", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One finished call of a component."""

    component: str
    kind: str
    seconds: float  #: as the orchestrator saw it, queue included
    queue_s: float = 0.0
    outcome: CallOutcome = "ok"
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


class GatewayMetrics:
    """Made by whoever builds gateway and orchestrator, and given to both: the orchestrator calls :meth:`observe_call`."""

    def __init__(self, app: str) -> None:
        self.registry = CollectorRegistry()
        self._calls: dict[str, list[ObservedCall]] = {}
        self._lock = threading.Lock()
        self.traffic = Traffic()  #: what the autoscaler reads
        self._requests = self._counter("requests", "Requests by outcome.", "slo", "outcome")
        self._responses = self._counter("http_responses", "HTTP responses.", "route", "status")
        self._decisions = self._counter("admission", "Requests at the door by what was decided.", "slo", "decision")
        self._seconds = self._histogram("request_duration_seconds", "From the door to the whole answer.", "route")
        self._first = self._histogram("ttft_seconds", "From the door to the first chunk of a stream.")
        self._in_flight = Gauge(
            "patchwork_requests_in_flight", "Requests that are running.", ["app"], registry=self.registry
        )
        self._component_calls = self._counter("component_calls", "Calls.", "component", "kind", "outcome")
        self._component_seconds = self._histogram("component_seconds", "A call, its wait included.", "component")
        self._component_queue = self._histogram("queue_wait_seconds", "A call's wait in the replica.", "component")
        self._tokens = self._counter("tokens", "Tokens of LLM calls.", "component", "direction")
        self._app = app
        self._in_flight.labels(app)  # so that the first scrape shows 0

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"patchwork_{name}", about, ["app", *labels], registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        labelnames = ["app", *labels]
        return Histogram(f"patchwork_{name}", about, labelnames, buckets=_SECONDS, registry=self.registry)

    def observe_call(self, call: ObservedCall, run_id: str | None = None) -> None:
        """Count a finished call, for the components' metrics and for the run that made it."""
        self._component_calls.labels(self._app, call.component, call.kind, call.outcome).inc()
        self._component_seconds.labels(self._app, call.component).observe(call.seconds)
        self._component_queue.labels(self._app, call.component).observe(call.queue_s)
        for direction, count in (("input", call.input_tokens), ("output", call.output_tokens)):
            if count:
                self._tokens.labels(self._app, call.component, direction).inc(count)
        with self._lock:
            calls = self._calls.get(run_id) if run_id else None
            if calls is not None:
                calls.append(call)

    def open_run(self, run_id: str) -> None:
        """Keep the calls of this run until :meth:`close_run`."""
        with self._lock:
            self._calls[run_id] = []
        self.traffic.began()
        self._in_flight.labels(self._app).inc()

    def calls_of(self, run_id: str) -> list[ObservedCall]:
        with self._lock:
            return list(self._calls.get(run_id, ()))

    def close_run(self, run_id: str) -> None:
        with self._lock:
            known = self._calls.pop(run_id, None) is not None
        if known:
            self.traffic.left()
            self._in_flight.labels(self._app).dec()

    def observe_request(self, route: str, slo: str, outcome: Outcome, seconds: float) -> None:
        self.traffic.ended(outcome)
        self._requests.labels(self._app, slo, outcome).inc()
        if outcome in ("attained", "missed"):
            self._seconds.labels(self._app, route).observe(seconds)

    def observe_decision(self, slo: str, decision: str) -> None:
        """``admitted``, ``refused``, or ``held`` (once, and admitted later)."""
        self._decisions.labels(self._app, slo, decision).inc()

    def observe_first_chunk(self, seconds: float) -> None:
        self._first.labels(self._app).observe(seconds)

    def observe_response(self, route: str, status: int) -> None:
        self._responses.labels(self._app, route, str(status)).inc()

    def families(self) -> tuple[Metric, ...]:
        """Everything as it is now."""
        return tuple(self.registry.collect())

    def expose(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


_PREDICTIONS = {
    "work_s": ("patchwork_predicted_work_seconds", "Work expected from a call-site to the end of the request."),
    "time_s": ("patchwork_predicted_time_seconds", "Time expected from a call-site to the end, waiting included."),
    "predicted_over_actual": ("patchwork_prediction_ratio", "Predicted over actual time to the end; 1 when right."),
    "mean_error_s": ("patchwork_prediction_error_seconds", "Mean absolute error of the predicted time to the end."),
}


def door_families(app: str, facts: Mapping[str, Any]) -> tuple[Metric, ...]:
    """What the door knows (``Door.facts``), as gauges."""
    families = []
    for key, name, about in (
        ("margin", "patchwork_admission_margin", "Part of a request's spare time that predicted delay may use."),
        (
            "delay_s",
            "patchwork_admission_delay_seconds",
            "By how much a request coming now is predicted to be delayed.",
        ),
    ):
        if key in facts:
            families.append(GaugeMetricFamily(name, about, labels=["app"]))
            families[-1].add_metric([app], facts[key])
    for key, (name, about) in _PREDICTIONS.items():
        family = GaugeMetricFamily(name, about, labels=["app", "site", "loop"])
        for one in facts.get("predictions", ()):
            if one[key] is not None:
                family.add_metric([app, one["site"], str(one["loop"])], one[key])
        families.append(family)
    return tuple(family for family in families if family.samples)
