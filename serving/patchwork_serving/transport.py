"""Leaf calls over Ray Serve handles: to the replica that will finish first, deadlines as remaining seconds, cancellation, and calls of a
lost replica run elsewhere."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from patchwork_adapters.errors import ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_adapters.transport import LeafCall
from patchwork_serving import replicas_seen
from patchwork_serving.deadlines import until_deadline
from patchwork_serving.per_request import CallsPerRequest
from patchwork_serving.pulses import Pulses
from patchwork_serving.scheduling import Asking, Scheduling, Sending, Step
from patchwork_serving.sharing import Sharing
from patchwork_serving.single_flight import SingleFlight
from patchwork_serving.wire import CallFrame, ErrorFrame, ReplyFrame, Report

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
BACKOFF_S = 0.2
#: How long a call without a deadline waits for a replica to come back before it fails.
UNAVAILABLE_PATIENCE_S = 60.0
#: Handles kept, one per component, method and replica.
MAX_BOUND = 1024
#: Serve's replicas answer actor calls and gRPC. A call by gRPC, or a piece of a stream, takes half the time of both processes
#: (``tests/benchmarks/bench_hop.py``); what it cannot carry, references to objects in Ray's store, our frames do not have.
BY_GRPC = {"_by_reference": False}


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


def serve_replicas(app: str) -> Callable[[str], tuple[str, ...]]:
    """For ``Scheduling``: the replicas of a component that Serve told this process of."""
    return lambda component: replicas_seen.names(app, component)


class RayTransport:
    """Implements ``patchwork_adapters.transport.Transport``.

    A call whose replica died, or is shutting down, is sent again to another one: leaf calls are pure, and the operations that write
    replace by id. A stream is sent again only while nothing of it has been delivered. Equal calls that ``sharing`` allows are made once
    while they are in flight.
    """

    def __init__(
        self,
        handle_of: HandleOf,
        observer: CallObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        scheduling: Scheduling | None = None,
        sharing: Sharing | None = None,
        per_request: CallsPerRequest | None = None,
    ) -> None:
        self._handle_of = handle_of
        self._observer = observer or NoObserver()
        self._clock = clock
        self._scheduling = scheduling or Scheduling()
        self._sharing = sharing or Sharing()
        self._per_request = (
            CallsPerRequest() if per_request is None else per_request
        )  # without calls it is empty: false
        self._flights: SingleFlight[ReplyFrame] = SingleFlight()
        self._bound: dict[tuple[str, str, str], Any] = {}
        self._pulses = Pulses(self._scheduling, self._pulse, clock)

    async def call(self, call: LeafCall) -> bytes:
        """The reply's payload; raises ComponentUnavailable, ComponentFailed or DeadlinePassed."""
        run_id = call.request.run_id if call.request else ""
        # streams take no place: who reads one may make another call before it has ended
        async with self._per_request.place(run_id):
            return await self._call(call)

    async def _call(self, call: LeafCall) -> bytes:
        with self._observer.observe(call) as seen, self._step(call) as step:
            reply = await self._reply(call, step, seen)
            if reply.report is not None:
                seen.report(reply.report)
            payload = b"".join(reply.payloads)
            seen.reply(payload)
            return payload

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        """The reply's frames; the same errors, also after some frames were delivered."""
        with self._observer.observe(call) as seen, self._step(call) as step:
            delivered = False
            async for sending in self._attempts(call, step):
                handle = self._handle(call.component, "stream", sending.hint)
                frames = handle.remote(self._frame(call, step, sending, seen))
                ended = False
                try:
                    async for data in until_deadline(frames, lambda: self._remaining(call)):
                        reply = ReplyFrame.from_bytes(data)
                        if reply.error is not None:
                            ended = True
                            if not delivered and self._runs_elsewhere(step, sending, reply.error):
                                break
                            self._scheduling.replied(step, sending, None, self._clock())
                            raise _raised(call, reply.error)
                        if reply.report is not None:
                            self._scheduling.replied(step, sending, reply.report, self._clock())
                            seen.report(reply.report)
                        else:
                            self._scheduling.heard(sending, self._clock())
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
                    self._lost(step, sending, error)
                    if delivered:
                        raise ComponentUnavailable(
                            f"the replica of {call.component} was lost in the middle of its answer"
                        ) from error
                finally:
                    if not ended:  # the reader left: stop the work behind it
                        frames.cancel()
                    self._scheduling.left(sending)
                if delivered:
                    raise ComponentUnavailable(f"the answer of {call.component} broke off")
            raise _unavailable(call)

    # -- whole replies ---------------------------------------------------------------------------------------------

    async def _reply(self, call: LeafCall, step: Step, seen: Observation) -> ReplyFrame:
        """The reply, by this call's own work or by that of an equal one."""
        sharing = self._sharing
        if sharing.changes(call):
            return await self._changing(call, step, seen)
        if not sharing.can_share(call):
            return await self._own_reply(call, step, seen)
        due = math.inf if step.due is None else step.due
        try:
            async with asyncio.timeout(self._remaining(call)):
                reply, mine = await self._flights.run(
                    sharing.key(call), due, lambda: self._own_reply(call, step, seen), group=call.component
                )
        except TimeoutError:
            raise _late(call) from None
        if not mine:
            step.shared, step.report = True, reply.report
        return reply

    async def _changing(self, call: LeafCall, step: Step, seen: Observation) -> ReplyFrame:
        """A call that writes: searches that begin after it must not be answered by one that began before."""
        self._flights.detach(call.component)
        try:
            return await self._own_reply(call, step, seen)
        finally:
            self._flights.detach(call.component)

    async def _own_reply(self, call: LeafCall, step: Step, seen: Observation) -> ReplyFrame:
        async for sending in self._attempts(call, step):
            try:
                async with asyncio.timeout(self._remaining(call)):
                    reply = await self._send(call, step, sending, seen)
                if reply.error is None:
                    self._scheduling.replied(step, sending, reply.report, self._clock())
                    return reply
                if not self._runs_elsewhere(step, sending, reply.error):
                    self._scheduling.replied(step, sending, None, self._clock())
                    raise _raised(call, reply.error)
            except TimeoutError:
                raise _late(call) from None
            except _lost_errors() as error:
                self._lost(step, sending, error)
            finally:
                self._scheduling.left(sending)
        raise _unavailable(call)

    async def _send(self, call: LeafCall, step: Step, sending: Sending, seen: Observation) -> ReplyFrame:
        handle = self._handle(call.component, "call", sending.hint)
        response = handle.remote(self._frame(call, step, sending, seen))
        try:
            return ReplyFrame.from_bytes(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    # -- one call --------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, call: LeafCall) -> Iterator[Step]:
        step = self._scheduling.begin(call, self._clock())
        try:
            yield step
        finally:
            self._scheduling.end(step, self._clock())

    async def _pulse(self, asking: Asking) -> bytes:
        pulse: bytes = await self._handle(asking.component, "pulse", asking.hint).remote()
        return pulse

    def _handle(self, component: str, method: str, replica: str) -> Any:
        """The method of one replica, or with an empty name of whichever Serve chooses; made once each, as ``options`` copies a handle."""
        key = (component, method, replica)
        handle = self._bound.get(key)
        if handle is None:
            if len(self._bound) >= MAX_BOUND:  # names of replicas long gone
                self._bound.clear()
            handle = self._handle_of(component).options(
                method_name=method, stream=method == "stream", session_id=replica, **BY_GRPC
            )
            self._bound[key] = handle
        return handle

    def _frame(self, call: LeafCall, step: Step, sending: Sending, seen: Observation) -> bytes:
        predicted = step.predicted
        return CallFrame(
            id=sending.call_id,
            request_id=call.request.request_id if call.request else "",
            leaf=call.leaf,
            method=call.method,
            payload=call.payload,
            site=step.site,
            size=call.size,
            stream=call.stream,
            remaining_s=self._remaining(call),
            traceparent=seen.traceparent,
            due_s=None if step.due is None else step.due - self._clock(),
            ahead_s=step.ahead_s,
            after_s=step.after_s,
            prompt_tokens=predicted.prompt_tokens,
            output_tokens=predicted.output_tokens,
        ).to_bytes()

    def _remaining(self, call: LeafCall) -> float | None:
        if call.request is None:
            return None
        remaining = call.request.remaining_s(self._clock())
        return None if remaining is None else max(remaining, 0.0)

    def _lost(self, step: Step, sending: Sending, error: BaseException) -> None:
        """Raises ComponentFailed for a message that is too long: no replica would take it."""
        if _is_too_long(error):
            self._scheduling.replied(step, sending, None, self._clock())
            raise ComponentFailed(
                f"{step.component}: a call or its reply is longer than this Ray cluster lets through; raise "
                "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH there"
            ) from error
        log.warning("a replica of %s was lost; its call runs again (%s)", step.component, type(error).__name__)
        self._scheduling.lost(step, sending, self._clock())

    def _runs_elsewhere(self, step: Step, sending: Sending, error: ErrorFrame) -> bool:
        if error.kind != "EngineDied":
            return False
        self._scheduling.lost(step, sending, self._clock())
        return True

    async def _attempts(self, call: LeafCall, step: Step) -> AsyncIterator[Sending]:
        """Attempts until the deadline or patience ends: at once where another replica has not been tried, else after a growing pause."""
        began = self._clock()
        attempt = 0
        while True:
            sending = self._scheduling.send(step, uuid.uuid4().hex, self._clock())
            self._pulses.listen()
            yield sending
            attempt += 1
            remaining = self._remaining(call)
            if attempt >= MAX_ATTEMPTS and self._clock() - began > UNAVAILABLE_PATIENCE_S:
                return
            if remaining is not None and remaining <= 0.0:
                raise _late(call)
            if attempt >= MAX_ATTEMPTS or not self._scheduling.has_others(step):
                await asyncio.sleep(min(BACKOFF_S * 2**attempt, 2.0))


def _lost_errors() -> tuple[type[BaseException], ...]:
    """What Ray and gRPC raise when a replica, or the way to it, is gone."""
    from grpc.aio import AioRpcError
    from ray.exceptions import RayActorError, WorkerCrashedError
    from ray.serve.exceptions import BackPressureError

    return (RayActorError, WorkerCrashedError, BackPressureError, AioRpcError)


def _is_too_long(error: BaseException) -> bool:
    from grpc import StatusCode
    from grpc.aio import AioRpcError

    return isinstance(error, AioRpcError) and error.code() is StatusCode.RESOURCE_EXHAUSTED


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
