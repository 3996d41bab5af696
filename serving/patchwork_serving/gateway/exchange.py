"""One request, from the door to its answer."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, assert_never
from uuid import UUID, uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from patchwork_adapters.context import REQUEST, RequestContext
from patchwork_adapters.errors import RequestCancelled, RequestStopped
from patchwork_scheduler.admission import Admit, Decision, Hold, Refuse
from patchwork_serving.asgi import until_left
from patchwork_serving.gateway.bodies import RunConfig, read_json
from patchwork_serving.gateway.core import Gateway
from patchwork_serving.gateway.deadlines import Budget, budget
from patchwork_serving.gateway.edge import ARRIVED, REQUEST_ID
from patchwork_serving.gateway.faults import Fault, NotReady, RequestRefused, fault_of, log_unexpected
from patchwork_serving.gateway.metrics import ObservedCall, Usage
from patchwork_serving.gateway.port import Config, Outcome, RequestHandle
from patchwork_serving.gateway.responses import fault_response
from patchwork_serving.gateway.runs import Run
from patchwork_serving.gateway.witness import Witness, sources_of, with_scores
from patchwork_serving.telemetry import names

TRACE_HEADER = "x-patchwork-trace"
RUN_ID_HEADER = "x-patchwork-run-id"
ATTAINED_HEADER = "x-patchwork-slo-attained"
CLASS_HEADER = "x-patchwork-slo"

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOT_IN_TOKEN = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")  #: what RFC 9110 does not allow in a server-timing name


class Exchange:
    """Ids, deadline, root span and run of one request; says once how it ended."""

    def __init__(self, gateway: Gateway, request: Request, route: str) -> None:
        self.gateway = gateway
        self.route = route
        self.arrived: float = request.scope[ARRIVED]
        self.request_id: str = request.scope[REQUEST_ID]
        self.run: Run | None = None
        self.run_ids: tuple[str, ...] = ()
        self.witness: Witness | None = None
        self.traced = False  #: the answer will tell the trace
        self._request = request
        self._asked_trace = request.headers.get(TRACE_HEADER)
        self._budget: Budget | None = None
        self._handle: RequestHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._first_chunk_at: float | None = None
        self._calls: list[ObservedCall] = []
        self._ended_after_s: float | None = None
        self._outcome: Outcome | None = None
        self._weight = 1  #: inputs of a batch
        self._held = False  #: the work waits at the door first
        self._check_after_s = 0.0

    @property
    def run_id(self) -> str | None:
        return self.run_ids[0] if self.run_ids else None

    def admit(self, configs: Sequence[RunConfig], *, witnessed: bool = False, traceable: bool = False) -> list[Config]:
        """Stamp ids and deadline and open the root span; the configs for the chain, one for each of ``configs``.

        ``witnessed``: the answer tells the tokens that models counted; ``traceable``: it has room for the trace, if asked for.
        Raises InvalidRequest, NotReady, RequestRefused or RunIdTaken.
        """
        gateway = self.gateway
        self.traced = traceable and gateway.settings.allow_trace and self._asked_trace in ("1", "true", "content")
        for config in configs:
            if config.configurable:
                gateway.config_shape.check({"configurable": config.configurable}, "config")
        self._budget = budget(self._request.headers, configs[0].metadata or {}, gateway.settings, now=self.arrived)
        if not gateway.runner.is_ready():
            raise NotReady("the chain's components are not all ready")
        ids = tuple(str(config.run_id or uuid4()) for config in configs)
        self.run = gateway.runs.open(ids)
        self.run_ids = ids
        gateway.metrics.open_run(self.run.id)
        self._weight = len(ids)
        self._held = not self._try_door()
        if (witnessed or self.traced) and gateway.runner.framework != "llamaindex":
            self.witness = Witness()
        callbacks = {"callbacks": [self.witness]} if self.witness else {}
        return [
            {**config.to_config(), "run_id": UUID(run_id), **callbacks}
            for config, run_id in zip(configs, ids, strict=True)
        ]

    def start(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Run:
        """Run ``work`` as this request; its value is :meth:`Run.value`."""
        run = self._opened()
        run.start(self._after_door(work), self._seconds_left(), self._context())
        return run

    def start_stream(self, chunks: Callable[[], AsyncIterator[Any]]) -> Run:
        """Like :meth:`start`, for chunks."""
        run = self._opened()
        run.start_stream(lambda: self._chunks_after_door(chunks), self._seconds_left(), self._context())
        return run

    def first_chunk_sent(self) -> None:
        if self._first_chunk_at is None:
            self._first_chunk_at = time.monotonic()
            self.gateway.metrics.observe_first_chunk(self._first_chunk_at - self.arrived)

    def attained(self) -> bool:
        """The promise is kept so far."""
        assert self._budget is not None
        first = self._budget.first_token_deadline
        if first is not None and self._first_chunk_at is not None and self._first_chunk_at > first:
            return False
        return time.monotonic() <= self._budget.slo_deadline

    def succeed(self) -> None:
        """The whole answer is there."""
        self._end("attained" if self.attained() else "missed", None)

    def fail(self, error: BaseException) -> Fault:
        """What to tell the client about ``error``, which ended this request."""
        fault = fault_of(error)
        log_unexpected(fault, error, self.run_id)
        self._end(_outcome(error, fault, ran=self.run is not None), fault.type)
        return fault

    def abandon(self) -> None:
        """The client has gone, or the server ends this request: stop the work; nobody waits for an answer."""
        if self.run is not None:
            self.run.stop(RequestCancelled("the client has gone"))
        self._end("cancelled", "RequestCancelled")

    def headers(self) -> dict[str, str]:
        """What is known about this request, for its answer."""
        headers = {"server-timing": self._server_timing()}
        if self.run_id is not None:
            attained = self._outcome == "attained" if self._outcome else self.attained()
            headers |= {RUN_ID_HEADER: self.run_id, ATTAINED_HEADER: "true" if attained else "false"}
        if self._budget is not None:
            headers[CLASS_HEADER] = self._budget.slo
        return headers

    def tokens(self) -> Usage:
        """What the engines counted for this request so far."""
        run_id = self.run_id
        calls = self._calls or (self.gateway.metrics.calls_of(run_id) if run_id else [])
        return sum((Usage(call.input_tokens, call.output_tokens) for call in calls), Usage())

    def trace(self, output: Any = None) -> dict[str, Any]:
        """``trace`` and ``sources`` for the answer's metadata, when they were asked for; complete once the request has ended."""
        if not self.traced:
            return {}
        spans = list(self._handle.finished_spans()) if self._handle else []
        retrieved = self.witness.sources() if self.witness else []
        return {"trace": spans, "sources": with_scores(retrieved or sources_of(output), spans)}

    def _try_door(self) -> bool:
        """Whether the request is in; False: ask again later. RequestRefused when it is predicted to be late."""
        found, run_id, now = self._budget, self.run_id, time.monotonic()
        assert found is not None
        assert run_id is not None
        gateway = self.gateway
        if gateway.line.locked() and not self._held:  # those who were held before come in first
            decision: Decision = Hold(0.0, 0.0)
        else:
            decision = gateway.door.decide(run_id, found.slo, found.slo_deadline, now, self._weight)
        match decision:
            case Admit():
                gateway.metrics.observe_decision(found.slo, "admitted")
                return True
            case Refuse(predicted_s, retry_after_s):
                gateway.metrics.observe_decision(found.slo, "refused")
                raise RequestRefused(
                    f"predicted to take {predicted_s:.2f} s, and promised within {found.slo_deadline - now:.2f} s",
                    retry_after_s,
                )
            case Hold(_, check_after_s):
                if not self._held:
                    gateway.metrics.observe_decision(found.slo, "held")
                self._check_after_s = check_after_s
                return False
            case _:
                assert_never(decision)

    async def _wait_at_door(self) -> None:
        if not self._held:
            return
        async with self.gateway.line:
            while True:  # asked again and again, as what it depends on is the clock
                if self._try_door():
                    return
                await asyncio.sleep(self._check_after_s)

    async def _after_door(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        await self._wait_at_door()
        return await work()

    async def _chunks_after_door(self, chunks: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
        await self._wait_at_door()
        iterator = chunks()
        try:
            async for chunk in iterator:
                yield chunk
        finally:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()

    def _opened(self) -> Run:
        run, found = self.run, self._budget
        assert run is not None
        assert found is not None
        given = self._request.headers.get("traceparent", "")
        self._handle = self.gateway.telemetry.start_request(
            self.gateway.settings.name,
            given if _TRACEPARENT.fullmatch(given) else None,
            {
                names.REQUEST_ID: self.request_id,
                names.RUN_ID: run.id,
                names.SLO: found.slo,
                names.ROUTE: self.route,
                names.WANTED: self.traced,
            },
        )
        self._watch = asyncio.create_task(self._stop_when_gone(run), name=f"watch {run.id}")
        return run

    def _context(self) -> contextvars.Context:
        found, run_id = self._budget, self.run_id
        assert found is not None
        assert run_id is not None
        content = self.traced and self._asked_trace == "content" and self.gateway.settings.capture_content
        context = contextvars.copy_context()
        context.run(
            REQUEST.set,
            RequestContext(
                request_id=self.request_id,
                run_id=run_id,
                deadline=found.deadline,
                slo=found.slo,
                traceparent=self._handle.traceparent if self._handle else None,
                capture_content=content,
                slo_deadline=found.slo_deadline,
            ),
        )
        return context

    def _seconds_left(self) -> float:
        assert self._budget is not None
        return self._budget.deadline - time.monotonic()

    async def _stop_when_gone(self, run: Run) -> None:
        """The body has been read, so that the next message can only be the disconnect."""
        await until_left(self._request.receive)
        run.stop(RequestCancelled("the client has gone"))

    def _end(self, outcome: Outcome | None, error: str | None) -> None:
        if self._ended_after_s is not None:
            return
        self._ended_after_s = time.monotonic() - self.arrived
        self._outcome = outcome
        if self._watch is not None:
            self._watch.cancel()
        if self.run is not None:
            whole = error is None and outcome in ("attained", "missed")
            # what a slow reader takes is no work, and the next client may be a fast one
            until = self.run.worked_until(time.monotonic())
            self.gateway.door.finished(self.run.id, until, whole=whole, cancelled=outcome not in ("attained", "missed"))
            self._calls = self.gateway.metrics.calls_of(self.run.id)
            self.gateway.metrics.close_run(self.run.id)
            if not self.run.started:
                self.gateway.runs.discard(self.run)
        if outcome is not None and self._budget is not None:
            self._count(outcome, error, self._budget, self._ended_after_s)

    def _count(self, outcome: Outcome, error: str | None, found: Budget, seconds: float) -> None:
        self.gateway.metrics.observe_request(self.route, found.slo, outcome, seconds)
        self.gateway.window.add(outcome, seconds, now=time.monotonic(), slo=found.slo)
        if self._handle is not None:
            self._handle.set(names.SLACK, found.slo_deadline - self.arrived - seconds)
            self._handle.end(outcome, error)

    def _server_timing(self) -> str:
        """Milliseconds in all, waiting in replicas' queues, and by component."""
        total = self._ended_after_s if self._ended_after_s is not None else time.monotonic() - self.arrived
        spent: dict[str, float] = {"total": total}
        for call in self._calls:
            spent["queue"] = spent.get("queue", 0.0) + call.queue_s
            name = _NOT_IN_TOKEN.sub("_", call.component)
            spent[name] = spent.get(name, 0.0) + call.seconds
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in spent.items())


def _outcome(error: BaseException, fault: Fault, *, ran: bool) -> Outcome | None:
    """How to count a request that ended with ``error``; None: it was not a request that could have been answered."""
    if isinstance(error, RequestRefused | NotReady):
        return "refused"
    if not ran:
        return None
    if fault.status == 504:
        return "missed"
    return "cancelled" if fault.status == 499 else "failed"


async def answer(
    gateway: Gateway, request: Request, route: str, handler: Callable[[Exchange, Any], Awaitable[Response]]
) -> Response:
    """Read the body, let ``handler`` answer, and turn whatever it raises into an error body."""
    exchange = Exchange(gateway, request, route)
    try:
        return await handler(exchange, await read_json(request, gateway.settings))
    except ClientDisconnect:
        return Response(status_code=499)
    except asyncio.CancelledError:
        exchange.abandon()
        raise
    except (Exception, RequestStopped) as error:  # noqa: BLE001 - the loop top of a request
        return fault_response(exchange.fail(error), exchange.run_id, exchange.headers())
