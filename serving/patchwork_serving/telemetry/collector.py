"""Keeps the spans of requests whose client asked for them, so that a waterfall needs no backend."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypedDict

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from patchwork_serving.telemetry import names

#: requests kept at once; each is taken when its response is sent, so more than this means that clients leave
MAX_REQUESTS = 64
#: spans of one request; a chain that loops a thousand times is not read in a terminal
MAX_SPANS = 1000
NANOS = 1_000_000_000


class SpanRecord(TypedDict):
    """A finished span as plain data: what ``/invoke`` returns for a request with ``x-patchwork-trace``."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start_s: float  #: seconds since the epoch
    duration_s: float
    status: str  #: ``ok``, ``error`` or ``unset``
    attributes: dict[str, object]


def span_record(span: ReadableSpan) -> SpanRecord:
    """A finished span as JSON-able data."""
    context, start, end = span.context, span.start_time or 0, span.end_time or 0
    code = span.status.status_code
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}" if context else "",
        span_id=f"{context.span_id:016x}" if context else "",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else None,
        name=span.name,
        start_s=start / NANOS,
        duration_s=max(0, end - start) / NANOS,
        status={StatusCode.OK: "ok", StatusCode.ERROR: "error"}.get(code, "unset"),
        attributes={k: list(v) if isinstance(v, tuple) else v for k, v in (span.attributes or {}).items()},
    )


class Collector(SpanProcessor):
    """Finished spans below each *wanted* root, bounded in requests and in spans."""

    def __init__(self, max_requests: int = MAX_REQUESTS, max_spans: int = MAX_SPANS) -> None:
        self._max_requests = max_requests
        self._max_spans = max_spans
        self._lock = threading.Lock()
        #: span id -> id of its wanted root; holds running and finished spans until the request is taken
        self._root_of: dict[int, int] = {}
        self._spans: OrderedDict[int, list[SpanRecord]] = OrderedDict()

    def wants(self, parent_span_id: int | None, attributes: Attributes) -> bool:
        """Whether a span about to start belongs to a request that asked for its spans."""
        if attributes is not None and attributes.get(names.WANTED) is True:
            return True
        return parent_span_id is not None and parent_span_id in self._root_of

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        parent = span.parent.span_id if span.parent else None
        if not self.wants(parent, span.attributes):
            return
        with self._lock:
            span_id = span.get_span_context().span_id
            root = self._root_of.get(parent) if parent is not None else None
            if root is None:
                root = span_id
                self._spans[root] = []
                while len(self._spans) > self._max_requests:
                    self._forget(next(iter(self._spans)))
            self._root_of[span_id] = root

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None:
            return
        with self._lock:
            root = self._root_of.get(span.context.span_id)
            kept = self._spans.get(root) if root is not None else None
            if kept is not None and (len(kept) < self._max_spans or span.context.span_id == root):
                kept.append(span_record(span))

    def take(self, root_span_id: int) -> list[SpanRecord]:
        """The finished spans below this root, root included, by start; they are forgotten here."""
        with self._lock:
            spans = self._spans.get(root_span_id, [])
            self._forget(root_span_id)
        return sorted(spans, key=lambda span: span["start_s"])

    def _forget(self, root: int) -> None:
        self._spans.pop(root, None)
        for span_id in [span_id for span_id, r in self._root_of.items() if r == root]:
            del self._root_of[span_id]


class RecordWanted(Sampler):
    """Records, without exporting, what another sampler drops, if the client of the request asked for its spans."""

    def __init__(self, inner: Sampler, collector: Collector) -> None:
        self._inner = inner
        self._collector = collector

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: list[Link] | None = None,  # type: ignore[override]
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP:
            return result
        parent = get_current_span(parent_context).get_span_context()
        parent_id = parent.span_id if parent.is_valid else None
        if self._collector.wants(parent_id, attributes):
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        return f"RecordWanted({self._inner.get_description()})"
