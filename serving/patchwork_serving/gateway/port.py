"""The ports of the gateway: what it asks of the chain behind it, and of telemetry beside it.

A runner is called inside ``patchwork_adapters.context.request_context``: ``REQUEST`` holds ids, deadline and traceparent. Cancelling the
awaiting task, or closing an iterator early, must cancel the work behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from patchwork_scheduler.admission import Admit, Decision
from patchwork_serving.scheduling import Told

if TYPE_CHECKING:
    from patchwork_serving.gateway.account import Account

JsonSchema = dict[str, Any]
Config = dict[
    str, Any
]  #: a LangChain ``RunnableConfig``: tags, metadata, run_name, run_id, configurable, callbacks, limits
Outcome = Literal["attained", "missed", "refused", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events ``/stream_events`` sends; None: no restriction. The names are those of ``Runnable.astream_events``."""

    include_names: Sequence[str] | None = None
    include_types: Sequence[str] | None = None
    include_tags: Sequence[str] | None = None
    exclude_names: Sequence[str] | None = None
    exclude_types: Sequence[str] | None = None
    exclude_tags: Sequence[str] | None = None

    def to_kwargs(self) -> dict[str, Sequence[str] | None]:
        """As keyword arguments of ``Runnable.astream_events``."""
        return {name: getattr(self, name) for name in self.__slots__}


class ChainRunner(Protocol):
    """The chain as the gateway sees it. Values are live Python objects: str, dicts, messages, Documents, LlamaIndex responses."""

    name: str
    framework: str  #: ``langchain`` | ``langgraph`` | ``llamaindex``

    def release_info(self) -> dict[str, Any]:
        """What is deployed, as JSON, without secrets."""
        ...

    def input_schema(self) -> JsonSchema: ...

    def output_schema(self) -> JsonSchema: ...

    def config_schema(self) -> JsonSchema: ...

    async def invoke(self, input: Any, config: Config | None, kwargs: Mapping[str, Any]) -> Any:
        """The chain's answer; raises what the chain raises, ComponentError, or RequestStopped."""
        ...

    async def batch(self, inputs: Sequence[Any], configs: Sequence[Config], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """One answer per input, in order; ``configs`` has as many items as ``inputs``."""
        ...

    def stream(self, input: Any, config: Config | None, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The chain's answer in chunks."""
        ...

    def stream_events(
        self,
        input: Any,
        config: Config | None,
        kwargs: Mapping[str, Any],
        version: Literal["v1", "v2"],
        events: EventFilter,
    ) -> AsyncIterator[Mapping[str, Any]]:
        """``astream_events`` of the chain; NotImplementedError where the framework has none."""
        ...

    def is_ready(self) -> bool:
        """True when a request would be served now."""
        ...

    async def status(self) -> dict[str, Any]:
        """Replicas, queues and decisions, as JSON."""
        ...


class Door(Protocol):
    """Decides who comes in (``scheduling.Scheduling``). Times are of one clock, ``time.monotonic()`` here."""

    def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
        """Whether the request may come in; if admitted it counts as in until :meth:`finished`. ``weight``: inputs of a batch."""
        ...

    def finished(self, run_id: str, now: float, *, whole: bool, cancelled: bool = False) -> None:
        """The request ended, with its ``whole`` answer or without. Safe to repeat, and for requests that were never let in."""
        ...

    def facts(self, now: float) -> Mapping[str, Any]:
        """What it knows and counts, as JSON."""
        ...

    def told(self) -> Sequence[Told]:
        """Its latest decisions, oldest first."""
        ...


class OpenDoor:
    """Lets everybody in."""

    def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
        return Admit(0.0)

    def finished(self, run_id: str, now: float, *, whole: bool, cancelled: bool = False) -> None:
        return None

    def facts(self, now: float) -> Mapping[str, Any]:
        return {"admission": "off"}

    def told(self) -> Sequence[Told]:
        return ()


class CancelElsewhere(Protocol):
    """Asks the other replicas of the ingress to cancel a run that is not in flight here; True when one had it."""

    async def __call__(self, run_id: str) -> bool: ...


class AskSiblings(Protocol):
    """Asks the other replicas of the ingress what they have counted; those that do not answer in time are left out. Never raises."""

    async def __call__(self) -> Sequence[Account]: ...


class RequestHandle(Protocol):
    """The root span of one request."""

    @property
    def traceparent(self) -> str | None:
        """W3C traceparent of the root span; None when nothing is traced."""
        ...

    def set(self, key: str, value: str | bool | int | float) -> None:
        """Set one attribute of the root span; never raises."""
        ...

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """End the root span; ``error`` is the class name of what was raised. Never raises; a second call does nothing."""
        ...

    def finished_spans(self) -> Sequence[Mapping[str, Any]]:
        """Spans of this request that have ended, root included, as JSON, oldest first.

        Called once, after :meth:`end`, and only for requests that were started with the attribute ``names.WANTED``.
        """
        ...


class Telemetry(Protocol):
    def start_request(
        self, name: str, traceparent: str | None, attributes: Mapping[str, str | bool | int | float]
    ) -> RequestHandle:
        """Open the root span ``invoke_workflow {name}`` as a child of ``traceparent`` (valid W3C, or None). Never raises."""
        ...


class _Untraced:
    traceparent: str | None = None

    def set(self, key: str, value: str | bool | int | float) -> None:
        return None

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        return None

    def finished_spans(self) -> Sequence[Mapping[str, Any]]:
        return ()


class _PassedOn(_Untraced):
    """Hands the client's own traceparent on, so that the engines below still join its trace."""

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent


class NoTelemetry:
    """Records nothing."""

    def start_request(
        self, name: str, traceparent: str | None, attributes: Mapping[str, str | bool | int | float]
    ) -> RequestHandle:
        return _PassedOn(traceparent)
