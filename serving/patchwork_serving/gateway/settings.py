"""Settings of one gateway: resolved elsewhere, frozen here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
class SloClass:
    """A named promise."""

    deadline_s: float  #: seconds from the door to the whole answer
    first_token_s: float | None = None  #: seconds from the door to the first chunk of a stream


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
        for name, slo in self.slo_classes.items():
            _positive(f"slo_classes.{name}.deadline_s", slo.deadline_s)

    def slo_class(self, name: str) -> SloClass | None:
        """The class of this name; ``default`` always exists."""
        if name == DEFAULT_SLO and name not in self.slo_classes:
            return SloClass(self.default_slo_s or self.request_timeout_s)
        return self.slo_classes.get(name)


def _positive(name: str, seconds: float) -> None:
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"{name} is {seconds}; it must be a positive number of seconds")
