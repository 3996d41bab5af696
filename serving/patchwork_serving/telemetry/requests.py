"""The root span of a request and the span of each leaf call below it: what the ingress process records.

``RequestTelemetry`` implements ``gateway.port.Telemetry``, and ``transport.CallObserver`` around each transport call::

    with telemetry.observe(call) as seen:
        frame = CallFrame(..., traceparent=seen.traceparent)
        ...                                  # send, wait
        seen.report(reply.report)            # what the replica told
        seen.reply(payload)                  # the whole reply, or each frame of a streamed one
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from patchwork_adapters.errors import RequestCancelled
from patchwork_adapters.transport import LeafCall
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import documents, extract, names
from patchwork_serving.telemetry.collector import SpanRecord
from patchwork_serving.telemetry.propagation import parent_context, traceparent_of
from patchwork_serving.telemetry.setup import Tracing
from patchwork_serving.wire import Report

AttributeValue = str | bool | int | float
#: outcomes that are no fault of the chain: a root span with them is not marked as an error
_NO_ERROR = {"attained", "missed", "cancelled"}


class RequestHandle:
    """The root span of one request; see ``gateway.port.RequestHandle``."""

    def __init__(self, span: Span, tracing: Tracing) -> None:
        self._span = span
        self._tracing = tracing
        self._ended = False

    @property
    def traceparent(self) -> str | None:
        return traceparent_of(self._span)

    def set(self, key: str, value: AttributeValue) -> None:
        self._span.set_attribute(key, value)

    def end(self, outcome: str, error: str | None = None) -> None:
        """End the root span with ``attained``, ``missed``, ``refused``, ``failed`` or ``cancelled``; a second call does nothing."""
        if self._ended:
            return
        self._ended = True
        self._span.set_attribute(names.OUTCOME, outcome)
        if error is not None:
            self._span.set_attribute(names.ERROR_TYPE, error)
        self._span.set_status(Status(StatusCode.OK if outcome in _NO_ERROR else StatusCode.ERROR))
        self._span.end()

    def finished_spans(self) -> Sequence[SpanRecord]:
        """The spans of this request that have ended, root included, by start; empty unless asked for with ``names.WANTED``."""
        return self._tracing.collector.take(self._span.get_span_context().span_id)


class CallSpan:
    """What is learnt of one leaf call while it runs. Methods never raise and cost next to nothing when nobody records."""

    def __init__(self, span: Span, facts: extract.CallFacts, began: float) -> None:
        #: for ``CallFrame.traceparent``: the replica's spans become children of this one
        self.traceparent: str | None = traceparent_of(span)
        self._span = span
        self._facts = facts
        self._began = began  # time.monotonic()
        self._recording = span.is_recording()
        self._report: Report | None = None
        self._frames = 0
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0

    def set(self, key: str, value: AttributeValue) -> None:
        self._span.set_attribute(key, value)

    def report(self, report: Report | None) -> None:
        """What the replica told about its queue, batch and times."""
        self._report = report

    def waited(self, seconds: float) -> None:
        """How long a call of a hosted API waited for its place."""
        self._span.set_attribute(names.QUEUE, seconds)

    def reply(self, payload: bytes) -> None:
        """The whole reply, or one frame of a streamed one.

        Of a stream the first chunk is timed and the end is kept for its usage; all of it when content was asked for.
        """
        if not self._recording:
            return
        self._frames += 1
        if not self._facts.call.stream:
            self._kept.append(payload)
        elif self._frames > self._head_frames():
            self._keep_chunk(payload)

    def _head_frames(self) -> int:
        """Frames before the first chunk: the protocol way sends status and headers first."""
        return 0 if self._facts.spec.way in ("own", "engine") else 1

    def _keep_chunk(self, payload: bytes) -> None:
        if self._frames == self._head_frames() + 1:
            self._span.set_attribute(names.TIME_TO_FIRST_CHUNK, time.monotonic() - self._began)
        self._kept.append(payload)
        self._kept_bytes += len(payload)
        limit = documents.CAPTURE_BYTES if self._facts.capture else documents.TAIL_BYTES
        while self._kept_bytes > limit and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft())

    def finish(self, error: BaseException | None) -> None:
        """End the span; called once, by :meth:`RequestTelemetry.observe`."""
        if self._recording:
            self._span.set_attributes(extract.attributes(extract.AT_END, self._with_reply()))
            if self._facts.call.stream:
                self._span.set_attribute(names.FRAMES, self._frames)
            _set_outcome(self._span, error)
        self._span.end()

    def _with_reply(self) -> extract.CallFacts:
        facts, way = self._facts, self._facts.spec.way
        if facts.call.stream:
            reply = documents.stream_document(list(self._kept), way)
        else:
            reply = documents.reply_document(self._kept[-1], facts.call, way) if self._kept else {}
        return extract.CallFacts(facts.call, facts.spec, facts.request, reply, self._report, facts.capture)


class RequestTelemetry:
    """Spans of the requests that this process takes; ``components`` are those of the release, by id."""

    def __init__(self, tracing: Tracing, components: Mapping[str, ComponentSpec]) -> None:
        self._tracing = tracing
        self._components = components

    def start_request(
        self, name: str, traceparent: str | None, attributes: Mapping[str, AttributeValue]
    ) -> RequestHandle:
        """Open ``invoke_workflow {name}``. ``attributes[names.WANTED] = True`` keeps its spans for ``finished_spans``."""
        span = self._tracing.tracer.start_span(
            f"invoke_workflow {name}",
            context=parent_context(traceparent),
            kind=SpanKind.INTERNAL,
            attributes={
                names.OPERATION: "invoke_workflow",
                names.WORKFLOW: name,
                names.SPAN_KIND: "CHAIN",
                **attributes,
            },
        )
        return RequestHandle(span, self._tracing)

    @contextmanager
    def observe(self, call: LeafCall, slack_s: float | None = None) -> Iterator[CallSpan]:
        """The span of one leaf call, child of the request's root. ``slack_s``: None means the seconds left until the deadline."""
        span = self._open(call, time.monotonic(), slack_s)
        try:
            yield span
        except BaseException as error:
            span.finish(error)
            raise
        span.finish(None)

    def _open(self, call: LeafCall, now: float, slack_s: float | None) -> CallSpan:
        context = call.request
        spec = self._components.get(call.component) or _unknown(call)
        parent = parent_context(context.traceparent if context else None)
        capture = self._tracing.capture_content or (context is not None and context.capture_content)
        facts = extract.CallFacts(call, spec, capture=capture)
        span = self._tracing.tracer.start_span(extract.span_name(facts), context=parent, kind=SpanKind.CLIENT)
        if span.is_recording():
            facts = extract.CallFacts(call, spec, documents.request_document(call, spec.way), capture=capture)
            span.update_name(extract.span_name(facts))
            span.set_attributes(extract.attributes(extract.AT_START, facts))
            slack = slack_s if slack_s is not None or context is None else context.remaining_s(now)
            if slack is not None:
                span.set_attribute(names.SLACK, slack)
        return CallSpan(span, facts, now)


def _unknown(call: LeafCall) -> ComponentSpec:
    """A call for a component that the release does not name: shown as a function of that name."""
    return ComponentSpec(id=call.component, kind="function", way="own", engine="own")


def _set_outcome(span: Span, error: BaseException | None) -> None:
    match error:
        case None:
            span.set_status(Status(StatusCode.OK))
        # a stream closed early by its reader and a client that left are no faults of the component
        case GeneratorExit() | RequestCancelled():
            span.set_attribute(names.CANCELLED, True)
        case _ if type(error).__name__ == "CancelledError":
            span.set_attribute(names.CANCELLED, True)
        case _:
            span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, getattr(error, "title", None)))
