"""Spans of a component replica: ``queue`` and ``execute`` below the caller's span, made from the times of the report.

They are made when the call is over, so that nothing on the path of a call waits for telemetry, and only where spans are exported: the same
times travel back in the report, from which the ingress draws its waterfall.
"""

from __future__ import annotations

import time

from opentelemetry.trace import SpanKind, Status, StatusCode

from patchwork_serving.telemetry import names
from patchwork_serving.telemetry.collector import NANOS
from patchwork_serving.telemetry.propagation import parent_context
from patchwork_serving.telemetry.setup import Tracing
from patchwork_serving.wire import CallFrame, Report


class ReplicaTelemetry:
    """Records the calls that one replica served."""

    def __init__(self, tracing: Tracing, component: str) -> None:
        self._tracing = tracing
        self._component = component

    def record(self, frame: CallFrame, report: Report, error: str | None = None, ended_ns: int | None = None) -> None:
        """One call that has just ended; ``error`` is the class name of what it raised. Never raises."""
        if not self._tracing.exporting or frame.traceparent is None:
            return
        ended = time.time_ns() if ended_ns is None else ended_ns
        served = ended - int(report.service_s * NANOS)
        queued = served - int(report.queue_s * NANOS)
        parent = parent_context(frame.traceparent)
        common: dict[str, str | int] = {
            names.COMPONENT: self._component,
            names.REPLICA: report.replica,
            names.REQUEST_ID: frame.request_id,
        }
        tracer = self._tracing.tracer
        waiting = tracer.start_span(
            "queue", parent, SpanKind.INTERNAL, {**common, "patchwork.queued": report.queued}, start_time=queued
        )
        waiting.end(served)
        running = tracer.start_span(
            "execute", parent, SpanKind.SERVER,
            {**common, names.METHOD: frame.method, names.BATCH_SIZE: report.batch, names.WORK_ITEMS: frame.size}, start_time=served,
        )  # fmt: skip
        if report.first_frame_s is not None:
            running.add_event("first frame", timestamp=served + int(report.first_frame_s * NANOS))
        if error is not None:
            running.set_attribute(names.ERROR_TYPE, error)
            running.set_status(Status(StatusCode.ERROR))
        running.end(ended)
