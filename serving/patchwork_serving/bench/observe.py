"""What became of one request, as its client saw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["attained", "missed", "refused", "failed", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("attained", "missed", "refused", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Times are of the caller's clock."""

    status: int | None  #: of HTTP, or of the error event that ended a stream; None: nothing came back
    error: str | None = None  #: the type of the error, for a count; never its text
    retry_after: bool = False
    first_at: float | None = None  #: first chunk of the answer, streams only
    stages: Mapping[str, float] = field(default_factory=dict)  #: seconds by name, of ``server-timing``
    gave_up: bool = False  #: this client waited no longer

    @property
    def is_whole(self) -> bool:
        return self.status is not None and self.status < 400 and self.error is None


@dataclass(frozen=True, slots=True)
class Observation:
    """Seconds from the start of the load."""

    intended: float  #: when the arrivals said that it comes
    sent: float  #: when it went out
    ended: float
    answer: Answer | None  #: None: the load was stopped while it was in flight

    @property
    def latency_s(self) -> float:
        """From the intended time: what waited in this client counts, or a slow server would slow its own measurement."""
        return self.ended - self.intended

    @property
    def late_s(self) -> float:
        """How much later than intended it was sent: the load generator's own fault."""
        return self.sent - self.intended

    @property
    def first_chunk_s(self) -> float | None:
        return None if self.answer is None or self.answer.first_at is None else self.answer.first_at - self.intended


def outcome_of(seen: Observation, slo_s: float) -> Outcome:
    """429, or 503 that asks to come again, is refused; 504 and a client that gave up are missed; other errors are failed."""
    answer = seen.answer
    if answer is None:
        return "cancelled"
    if answer.is_whole:
        return "attained" if seen.latency_s <= slo_s else "missed"
    if answer.gave_up or answer.status == 504:
        return "missed"
    if answer.status == 429 or (answer.status == 503 and answer.retry_after):
        return "refused"
    return "failed"
