"""One trace per request across processes, drawn in a terminal or sent to any OTLP backend. Nothing here raises into a request."""

from patchwork_serving.telemetry.collector import SpanRecord
from patchwork_serving.telemetry.replica import ReplicaTelemetry
from patchwork_serving.telemetry.requests import CallSpan, RequestHandle, RequestTelemetry
from patchwork_serving.telemetry.setup import Tracing, check_environment, forwarded_environment, open_tracing

__all__ = [
    "CallSpan",
    "ReplicaTelemetry",
    "RequestHandle",
    "RequestTelemetry",
    "SpanRecord",
    "Tracing",
    "check_environment",
    "forwarded_environment",
    "open_tracing",
]
