"""Settings of one gateway: resolved elsewhere, frozen here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from patchwork_scheduler.model import SloClass
from patchwork_serving.errors import ConfigError

#: first segments of our own routes: an app of that name could not be told from them
RESERVED_NAMES = frozenset(
    {
        "batch",
        "config_schema",
        "docs",
        "info",
        "input_schema",
        "invoke",
        "livez",
        "metrics",
        "openapi.json",
        "output_schema",
    }
    | {"readyz", "runs", "stream", "stream_events", "v1"}
)

DEFAULT_SLO = "default"


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What one gateway is told. ConfigError names the field that has a bad value."""

    name: str
    api_key: str | None = None  #: None: the door is open
    max_body_bytes: int = 4 * 1024 * 1024
    request_timeout_s: float = 120.0  #: no request runs longer; also the largest deadline that a client may ask for
    max_batch_inputs: int = 256
    default_slo_s: float | None = None  #: the promise for requests that name no class; None: request_timeout_s
    slo_classes: Mapping[str, SloClass] = field(default_factory=lambda: MappingProxyType({}))
    default_slo: str | None = (
        None  #: which of them holds for requests that name none; None: ``default``, which always exists then
    )
    max_in_flight: int = 1000  #: requests in this process; beyond it 429
    allow_trace: bool = True  #: answer ``x-patchwork-trace: 1`` with spans and sources
    capture_content: bool = (
        False  #: and ``x-patchwork-trace: content`` with the prompts and documents of that request too
    )
    server_echoes_request_id: bool = (
        False  #: Ray Serve's proxy adds ``x-request-id`` to each answer; a second one would join it
    )
    emulated: tuple[str, ...] = ()  #: components whose times are a profile's; every answer names them
    heartbeat_s: float = (
        15.0  #: silence after which a stream sends a comment: proxies close idle connections after 30-60 s
    )
    drain_s: float = 30.0  #: how long runs in flight may finish at shutdown

    def __post_init__(self) -> None:
        if self.name in RESERVED_NAMES or not self.name or "/" in self.name:
            raise ConfigError(
                f"name {self.name!r} is taken by a route of the gateway or not a path segment; choose another --name"
            )
        for name in ("request_timeout_s", "heartbeat_s", "drain_s"):
            _positive(name, getattr(self, name))
        for name in ("max_body_bytes", "max_batch_inputs", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.default_slo_s is not None:
            _positive("default_slo_s", self.default_slo_s)
        if self.default_slo is not None and self.default_slo not in self.slo_classes:
            raise ConfigError(f"default_slo {self.default_slo!r} is none of the classes {', '.join(self.slo_classes)}")

    @property
    def default_class(self) -> str:
        return self.default_slo or DEFAULT_SLO

    def all_slo_classes(self) -> Mapping[str, SloClass]:
        """By name, the one for requests that name none included."""
        if self.default_slo is not None or DEFAULT_SLO in self.slo_classes:
            return self.slo_classes
        return {DEFAULT_SLO: SloClass(DEFAULT_SLO, self.default_slo_s or self.request_timeout_s), **self.slo_classes}


def _positive(name: str, seconds: float) -> None:
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"{name} is {seconds}; it must be a positive number of seconds")
