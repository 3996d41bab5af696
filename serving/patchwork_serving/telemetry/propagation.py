"""Parents are handed over as W3C ``traceparent`` strings, never by ambient context: callbacks run in contexts that nobody promised."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def parent_context(traceparent: str | None, tracestate: str | None = None) -> Context:
    """The context to start a child in; an empty one, which makes a new root, when there is no valid traceparent."""
    if not traceparent:
        return Context()
    carrier = {"traceparent": traceparent}
    if tracestate:
        carrier["tracestate"] = tracestate
    return _PROPAGATOR.extract(carrier, context=Context())


def traceparent_of(span: Span) -> str | None:
    """The span as a W3C traceparent; None when tracing is off and there was no parent either."""
    if not span.get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=set_span_in_context(span, Context()))
    return carrier.get("traceparent")
