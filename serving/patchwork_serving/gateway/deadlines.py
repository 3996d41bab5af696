"""From headers and config to a deadline, once, at the door. Pure: ``now`` is an argument.

Two times come out. ``deadline`` is enforced: the run is cancelled and the answer is 504. It is what the client asked for, and never
later than the gateway's ``request_timeout_s``. ``slo_deadline`` is the promise of the SLO class: an answer after it is still
given, and counts as missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.settings import GatewaySettings

TIMEOUT_HEADER = "x-request-timeout-seconds"
DEADLINE_HEADER = "x-patchwork-deadline-ms"
SLO_HEADER = "x-patchwork-slo"
#: keys of ``config.metadata`` that mean the same to clients that cannot set headers
DEADLINE_KEY, SLO_KEY = "patchwork_deadline_ms", "patchwork_slo"


@dataclass(frozen=True, slots=True)
class Budget:
    """When one request must, and should, be answered; absolute seconds on the clock of ``now``."""

    deadline: float
    slo_deadline: float
    slo: str
    first_token_deadline: float | None = None


def budget(headers: Mapping[str, str], metadata: Mapping[str, Any], settings: GatewaySettings, *, now: float) -> Budget:
    """The deadlines of a request that arrived at ``now``; InvalidRequest names the header or key with a bad value."""
    asked = [
        _seconds(headers.get(TIMEOUT_HEADER), 1.0, TIMEOUT_HEADER, settings),
        _seconds(headers.get(DEADLINE_HEADER), 0.001, DEADLINE_HEADER, settings),
        _seconds(metadata.get(DEADLINE_KEY), 0.001, f"config.metadata.{DEADLINE_KEY}", settings),
    ]
    allowed = min([seconds for seconds in asked if seconds is not None], default=settings.request_timeout_s)
    name = headers.get(SLO_HEADER) or metadata.get(SLO_KEY) or settings.default_class
    classes = settings.all_slo_classes()
    slo = classes.get(name) if isinstance(name, str) else None
    if slo is None:
        raise InvalidRequest(f"{SLO_HEADER}: no such SLO class; there are {', '.join(sorted(classes))}")
    return Budget(
        deadline=now + allowed,
        slo_deadline=now + min(allowed, slo.deadline_s),
        slo=slo.name,
        first_token_deadline=None if slo.first_token_s is None else now + min(allowed, slo.first_token_s),
    )


def _seconds(value: Any, unit_s: float, where: str, settings: GatewaySettings) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    seconds = number * unit_s
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidRequest(f"{where} must be a positive number")
    if seconds > settings.request_timeout_s:
        raise InvalidRequest(f"{where} must be at most {settings.request_timeout_s / unit_s:g}")
    return seconds
