"""Leaf calls as telemetry and metrics see them: one observer for the transport, both told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from patchwork_adapters.errors import RequestStopped
from patchwork_adapters.transport import LeafCall
from patchwork_serving.gateway.metrics import CallOutcome, GatewayMetrics, ObservedCall
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import RequestTelemetry
from patchwork_serving.transport import Observation
from patchwork_serving.wire import Report


class MeteredCalls:
    """A ``transport.CallObserver``: the span of each call, and its count, seconds and wait in ``patchwork_component_*``."""

    def __init__(
        self, telemetry: RequestTelemetry, metrics: GatewayMetrics, components: Mapping[str, ComponentSpec]
    ) -> None:
        self._telemetry = telemetry
        self._metrics = metrics
        self._components = components

    @contextmanager
    def observe(self, call: LeafCall) -> Iterator[Observation]:
        began = time.monotonic()
        self._metrics.traffic.called(call.component)
        outcome: CallOutcome = "ok"
        with self._telemetry.observe(call) as span:
            seen = _Both(span)
            try:
                yield seen
            except (asyncio.CancelledError, GeneratorExit, RequestStopped):
                outcome = "cancelled"
                raise
            except BaseException:
                outcome = "failed"
                raise
            finally:
                self._count(call, seen.queue_s, time.monotonic() - began, outcome)

    def _count(self, call: LeafCall, queue_s: float, seconds: float, outcome: CallOutcome) -> None:
        spec = self._components.get(call.component)
        self._metrics.observe_call(
            ObservedCall(
                component=call.component,
                kind=spec.kind if spec else "function",
                seconds=seconds,
                queue_s=queue_s,
                outcome=outcome,
            ),
            run_id=call.request.run_id if call.request else None,
        )


class _Both:
    """The span of a call, remembering how long the call waited."""

    def __init__(self, span: Observation) -> None:
        self._span = span
        self.queue_s = 0.0

    @property
    def traceparent(self) -> str | None:
        return self._span.traceparent

    def reply(self, payload: bytes) -> None:
        self._span.reply(payload)

    def report(self, report: Report | None) -> None:
        self.queue_s = report.queue_s if report else 0.0
        self._span.report(report)

    def waited(self, seconds: float) -> None:
        self.queue_s = seconds
        self._span.waited(seconds)
