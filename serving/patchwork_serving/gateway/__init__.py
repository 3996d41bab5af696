"""The HTTP door of a deployed chain."""

from patchwork_serving.gateway.app import build_gateway
from patchwork_serving.gateway.faults import NotReady, RequestRefused
from patchwork_serving.gateway.metrics import GatewayMetrics, ObservedCall
from patchwork_serving.gateway.port import (
    CancelElsewhere,
    ChainRunner,
    EventFilter,
    NoTelemetry,
    RequestHandle,
    Telemetry,
)
from patchwork_serving.gateway.settings import GatewaySettings, SloClass

__all__ = [
    "CancelElsewhere",
    "ChainRunner",
    "EventFilter",
    "GatewayMetrics",
    "GatewaySettings",
    "NoTelemetry",
    "NotReady",
    "ObservedCall",
    "RequestHandle",
    "RequestRefused",
    "SloClass",
    "Telemetry",
    "build_gateway",
]
