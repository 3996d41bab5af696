"""The nouns that all scheduling decisions share. Times are seconds of one clock; durations are seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from patchwork_scheduler.errors import InvalidSloClass, UnknownSloClass

#: How long a call without a deadline is at most put behind later calls that have one: its rank is as if it were due then.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One leaf call waiting for, or inside, a replica."""

    id: str
    arrived: float  #: seconds, same clock as ``deadline``
    deadline: float | None = None  #: absolute seconds, of the whole request; None: no deadline
    size: int = 1  #: work items inside (texts of a batch embedding)
    site: str = ""  #: call-site id
    ahead_s: float = 0.0  #: expected seconds of work from the start of this call to the end of its request
    after_s: float = 0.0  #: the part of ``ahead_s`` that comes after this call
    prompt_tokens: int = 0  #: tokens to prefill; 0 where the engine is no LLM
    output_tokens: int = 0  #: tokens expected to be generated

    @property
    def due(self) -> float:
        """The deadline, or the time at which a call without one counts as due (so that it is never overtaken for ever)."""
        return self.arrived + PATIENCE_S if self.deadline is None else self.deadline

    @property
    def latest_start(self) -> float:
        """Started later than this, the request is expected to miss; infinite without a deadline."""
        return math.inf if self.deadline is None else self.deadline - self.ahead_s


class State(NamedTuple):
    """Where a request is: the call-site that it is about to call, and how often it has called it already."""

    site: str
    loop: int = 0


#: Of the requests let in, to be in time, where a class does not say: docs/decisions/admission.md tells why no more.
TARGET_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class SloClass:
    """A named promise. ``priority``: higher is admitted longer under load. ``share``: of what is admitted, guaranteed to this class."""

    name: str
    deadline_s: float
    first_token_s: float | None = None
    target_share: float = TARGET_SHARE  #: of accepted requests, to be in time
    priority: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        _positive("deadline_s", self.deadline_s, self.name)
        if self.first_token_s is not None:
            _positive("first_token_s", self.first_token_s, self.name)
        for field, value in (("target_share", self.target_share), ("share", self.share)):
            if not 0.0 <= value <= 1.0:
                raise InvalidSloClass(f"{field} of SLO class {self.name!r} must be between 0 and 1, not {value}")


def slo_class(classes: Mapping[str, SloClass], name: str) -> SloClass:
    """The class called ``name``; UnknownSloClass lists those that exist."""
    try:
        return classes[name]
    except KeyError:
        raise UnknownSloClass(f"no SLO class is called {name!r}; there are {', '.join(sorted(classes))}") from None


def _positive(field: str, value: float, name: str) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InvalidSloClass(f"{field} of SLO class {name!r} must be a positive number of seconds, not {value}")
