"""Leaf calls over Ray Serve handles: deadlines as remaining seconds, cancellation, and calls of a lost replica run elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_adapters.transport import LeafCall
from patchwork_serving.deadlines import until_deadline
from patchwork_serving.wire import CallFrame, ErrorFrame, ReplyFrame, Report

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
BACKOFF_S = 0.2
#: How long a call without a deadline waits for a replica to come back before it fails.
UNAVAILABLE_PATIENCE_S = 60.0


class Observation(Protocol):
    """One call as telemetry sees it (``telemetry.CallSpan``)."""

    @property
    def traceparent(self) -> str | None: ...

    def reply(self, payload: bytes) -> None:
        """The whole reply, or one frame of a streamed one."""
        ...

    def report(self, report: Report | None) -> None: ...

    def waited(self, seconds: float) -> None:
        """How long a call of a hosted API waited for its place; others have a report."""
        ...


class CallObserver(Protocol):
    """What watches calls (``telemetry.RequestTelemetry``)."""

    def observe(self, call: LeafCall) -> AbstractContextManager[Observation]:
        """Around one call; an exception that passes through marks it failed."""
        ...


class _Unseen:
    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def reply(self, payload: bytes) -> None: ...

    def report(self, report: Report | None) -> None: ...

    def waited(self, seconds: float) -> None: ...


class NoObserver:
    """Sees nothing; passes the request's own trace parent on."""

    @contextmanager
    def observe(self, call: LeafCall) -> Iterator[Observation]:
        yield _Unseen(call.request.traceparent if call.request else None)


HandleOf = Callable[[str], Any]


def serve_handles(app: str) -> HandleOf:
    """Serve handles of the application's component deployments, made once each; a deployment is named after its component."""
    handles: dict[str, Any] = {}

    def handle_of(component: str) -> Any:
        if component not in handles:
            from ray import serve  # Ray takes seconds to import, and only processes of a deployment need it

            handles[component] = serve.get_deployment_handle(component, app_name=app)
        return handles[component]

    return handle_of


class RayTransport:
    """Implements ``patchwork_adapters.transport.Transport``.

    A call whose replica died, or is shutting down, is sent again to another one: leaf calls are pure, and the operations that write
    replace by id. A stream is sent again only while nothing of it has been delivered.
    """

    def __init__(
        self, handle_of: HandleOf, observer: CallObserver | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._handle_of = handle_of
        self._observer = observer or NoObserver()
        self._clock = clock

    async def call(self, call: LeafCall) -> bytes:
        """The reply's payload; raises ComponentUnavailable, ComponentFailed or DeadlinePassed."""
        with self._observer.observe(call) as seen:
            async for _ in self._attempts(call):
                try:
                    async with asyncio.timeout(self._remaining(call)):
                        reply = await self._send(call, seen)
                except TimeoutError:
                    raise _late(call) from None
                except _lost_errors() as error:
                    log.warning(
                        "a replica of %s was lost; its call runs again (%s)", call.component, type(error).__name__
                    )
                    continue
                if reply.error is not None:
                    if _runs_elsewhere(reply.error):
                        continue
                    raise _raised(call, reply.error)
                if reply.report is not None:
                    seen.report(reply.report)
                payload = b"".join(reply.payloads)
                seen.reply(payload)
                return payload
            raise _unavailable(call)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        """The reply's frames; the same errors, also after some frames were delivered."""
        with self._observer.observe(call) as seen:
            delivered = False
            async for _ in self._attempts(call):
                frames = self._handle_of(call.component).options(stream=True).stream.remote(self._frame(call, seen))
                ended = False
                try:
                    async for data in until_deadline(frames, lambda: self._remaining(call)):
                        reply = ReplyFrame.from_bytes(data)
                        if reply.error is not None:
                            ended = True
                            if not delivered and _runs_elsewhere(reply.error):
                                break
                            raise _raised(call, reply.error)
                        if reply.report is not None:
                            seen.report(reply.report)
                        for payload in reply.payloads:
                            delivered = True
                            seen.reply(payload)
                            yield payload
                        if reply.last:
                            ended = True
                            return
                except TimeoutError:
                    raise _late(call) from None
                except _lost_errors() as error:
                    ended = True
                    if delivered:
                        raise ComponentUnavailable(
                            f"the replica of {call.component} was lost in the middle of its answer"
                        ) from error
                    log.warning(
                        "a replica of %s was lost; its call runs again (%s)", call.component, type(error).__name__
                    )
                finally:
                    if not ended:  # the reader left: stop the work behind it
                        frames.cancel()
            raise _unavailable(call)

    async def _send(self, call: LeafCall, seen: Observation) -> ReplyFrame:
        response = self._handle_of(call.component).call.remote(self._frame(call, seen))
        try:
            return ReplyFrame.from_bytes(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    def _frame(self, call: LeafCall, seen: Observation) -> bytes:
        return CallFrame(
            id=uuid.uuid4().hex,
            request_id=call.request.request_id if call.request else "",
            leaf=call.leaf,
            method=call.method,
            payload=call.payload,
            site=call.site,
            size=call.size,
            stream=call.stream,
            remaining_s=self._remaining(call),
            traceparent=seen.traceparent,
        ).to_bytes()

    def _remaining(self, call: LeafCall) -> float | None:
        if call.request is None:
            return None
        remaining = call.request.remaining_s(self._clock())
        return None if remaining is None else max(remaining, 0.0)

    async def _attempts(self, call: LeafCall) -> AsyncIterator[int]:
        """Attempt numbers with a growing pause between them, until the deadline or patience ends."""
        began = self._clock()
        attempt = 0
        while True:
            yield attempt
            attempt += 1
            remaining = self._remaining(call)
            if attempt >= MAX_ATTEMPTS and self._clock() - began > UNAVAILABLE_PATIENCE_S:
                return
            if remaining is not None and remaining <= 0.0:
                raise _late(call)
            await asyncio.sleep(min(BACKOFF_S * 2**attempt, 2.0))


def _lost_errors() -> tuple[type[BaseException], ...]:
    """What Ray raises when a replica, or the way to it, is gone."""
    from ray.exceptions import RayActorError, WorkerCrashedError
    from ray.serve.exceptions import BackPressureError

    return (RayActorError, WorkerCrashedError, BackPressureError)


def _runs_elsewhere(error: ErrorFrame) -> bool:
    return error.kind == "EngineDied"


def _late(call: LeafCall) -> DeadlinePassed:
    return DeadlinePassed(f"the deadline passed while {call.component} worked on {call.method}")


def _unavailable(call: LeafCall) -> ComponentUnavailable:
    return ComponentUnavailable(f"no replica of {call.component} answered; see `patchwork status` and `patchwork logs`")


def _raised(call: LeafCall, error: ErrorFrame) -> BaseException:
    """The error frame as the exception that the caller's side knows."""
    if error.kind == DeadlinePassed.__name__:
        return DeadlinePassed(error.message)
    if error.retryable:
        return ComponentUnavailable(f"{call.component}: {error.message}")
    return ComponentFailed(f"{call.component}: {error.kind}: {error.message}")
