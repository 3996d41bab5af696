"""What travels with a request inside a process: set once at the door, read at every leaf call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    request_id: str
    run_id: str
    deadline: float | None = None  #: absolute, seconds of ``time.monotonic()`` in this process; None: no deadline
    slo: str | None = None  #: name of the SLO class
    traceparent: str | None = None  #: W3C traceparent of the request's root span
    capture_content: bool = False  #: the client asked for prompts and documents in the trace
    slo_deadline: float | None = (
        None  #: when the answer was promised, never after ``deadline``: order by this, stop work at ``deadline``
    )

    def remaining_s(self, now: float) -> float | None:
        """Seconds left at ``now`` (negative when late); None without a deadline."""
        return None if self.deadline is None else self.deadline - now


REQUEST: ContextVar[RequestContext | None] = ContextVar("patchwork_request", default=None)


@contextmanager
def request_context(context: RequestContext) -> Iterator[RequestContext]:
    """Run a block as part of one request."""
    token = REQUEST.set(context)
    try:
        yield context
    finally:
        REQUEST.reset(token)
