"""The port between a swapped leaf and whatever runs it.

A swapped leaf turns each call of a cut method into a :class:`LeafCall` and hands it to a :class:`Transport`. Payloads are bytes in the
form that the *way* of running asks for (design, D4):

``own``       payload = ``codec.encode((fields, args, kwargs))``; reply = ``codec.encode_outcome(value or exception)``; a stream's
              frames are ``encode_outcome`` of each chunk.
``protocol``  payload = :func:`patchwork_adapters.protocol.encode_request`; reply = ``encode_response``; a stream's first frame is the
              response head with an empty body, the others are raw body bytes (server-sent events).
``engine``    payload = ``codec.encode(dict of the operation's arguments)``; reply = ``codec.encode_outcome(result)``. Operations, by
              kind, are listed in ``patchwork_adapters.operations``.

A transport raises :class:`~patchwork_adapters.errors.ComponentError` or ``RequestStopped`` when the call could not be carried out. An
exception of the user's own leaf travels in the reply, so that it arrives as the same class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from patchwork_adapters.context import RequestContext

Kind = Literal["llm", "embedder", "retriever", "reranker", "tool", "function"]
Way = Literal["own", "protocol", "engine", "external"]


class LeafCall(NamedTuple):  # a frozen dataclass takes four times as long to make, and one is made for each call
    component: str  #: id of the component that serves the leaf
    leaf: str  #: canonical path of the leaf in the user's module, equal in every process
    method: str  #: cut method (``own``), ``POST /v1/...`` (``protocol``) or operation (``engine``)
    payload: bytes
    stream: bool = False
    site: str = ""  #: call-site id, empty when unknown
    size: int = 1  #: work items inside (texts of a batch embedding); 1 for a single call
    request: RequestContext | None = None


class Transport(Protocol):
    """Carries leaf calls to components; called on one I/O loop only, from any number of tasks."""

    async def call(self, call: LeafCall) -> bytes:
        """The whole reply. Cancelling the awaiting task cancels the work behind it."""
        ...

    def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        """The reply in frames, in order; closing the iterator early cancels the work behind it."""
        ...


@runtime_checkable
class AnswersNow(Protocol):
    """What a :class:`Transport` may have besides: answers that need no waiting, such as those of a record.

    They are given in the thread that asks, whichever it is, and the I/O loop is left asleep: waking it and being woken costs more than
    most such answers.
    """

    def answer_now(self, call: LeafCall) -> Sequence[bytes] | None:
        """The frames of the reply (one, unless the call streams); None to be asked by ``call`` or ``stream``.

        Called in any thread, several at once. Neither waits nor needs a running loop; raises what ``call`` would raise.
        """
        ...
