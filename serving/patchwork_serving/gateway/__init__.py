"""The HTTP door of a deployed chain."""

from patchwork_serving.gateway.account import Account
from patchwork_serving.gateway.app import build_gateway
from patchwork_serving.gateway.faults import NotReady, RequestRefused
from patchwork_serving.gateway.metrics import GatewayMetrics, ObservedCall
from patchwork_serving.gateway.port import (
    AskSiblings,
    CancelElsewhere,
    ChainRunner,
    EventFilter,
    NoTelemetry,
    RequestHandle,
    Telemetry,
)
from patchwork_serving.gateway.settings import GatewaySettings

__all__ = [
    "Account",
    "AskSiblings",
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
    "Telemetry",
    "build_gateway",
]
