"""Frames between orchestrator and replica: msgpack, between our own processes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack


@dataclass(frozen=True, slots=True)
class CallFrame:
    id: str
    request_id: str
    leaf: str
    method: str
    payload: bytes
    site: str = ""
    size: int = 1
    stream: bool = False
    remaining_s: float | None = None  #: seconds left when the frame was sent; None: no deadline
    traceparent: str | None = None
    due_s: float | None = (
        None  #: seconds left, when sent, to the promised end (SLO), never after ``remaining_s``; orders calls
    )
    ahead_s: float = 0.0  #: predicted seconds from the start of this call to the end of its request
    after_s: float = 0.0  #: the part of ``ahead_s`` that comes after this call
    prompt_tokens: int = 0  #: predicted; 0 where the engine is no LLM
    output_tokens: int = 0  #: predicted

    def to_bytes(self) -> bytes:
        return _pack([getattr(self, name) for name in self.__slots__])

    @classmethod
    def from_bytes(cls, data: bytes) -> CallFrame:
        return cls(*msgpack.unpackb(data))


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells with each reply; the router and telemetry live on it."""

    replica: str
    queue_s: float = 0.0  #: seconds the call waited in the replica's queue
    service_s: float = 0.0  #: seconds from leaving the queue to the last frame
    first_frame_s: float | None = None  #: seconds from leaving the queue to the first frame, streams only
    batch: int = 1  #: calls that ran together
    queued: int = 0  #: calls waiting in the replica after this one
    running: int = 0
    queued_s: float = 0.0  #: predicted seconds of work waiting in the replica
    running_s: float = 0.0  #: predicted seconds until the work that runs in it is done
    prompt_tokens: int = 0  #: what the call really had, where the engine is an LLM
    output_tokens: int = 0
    alone_s: float = 0.0  #: seconds that the engine's cost model gives the call alone; 0: no model
    occupied_s: float = 0.0  #: by how much it delays others, by the same model; 0: no model

    def to_list(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a replica answers when it is asked how it fares, while calls are in it and none is answered."""

    replica: str
    well: bool  #: its engine lives, and moves as fast as it usually does, or nearly
    queued_s: float = 0.0  #: as in ``Report``
    running_s: float = 0.0
    slowness: float = 1.0  #: times as long as predicted that its work took of late; 1 unless it clearly did

    def to_bytes(self) -> bytes:
        return _pack([getattr(self, name) for name in self.__slots__])

    @classmethod
    def from_bytes(cls, data: bytes) -> Pulse:
        return cls(*msgpack.unpackb(data))


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """Why a call was not carried out; an exception of the user's own leaf travels in a payload instead."""

    kind: str  #: class name
    message: str
    status: int
    retryable: bool


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """A piece of a reply: several payloads when a stream's frames were coalesced, and on the last piece a report or an error."""

    payloads: tuple[bytes, ...] = ()
    report: Report | None = None
    error: ErrorFrame | None = None
    last: bool = True

    def to_bytes(self) -> bytes:
        error = self.error
        return _pack(
            [
                self.payloads,
                self.report.to_list() if self.report else None,
                [error.kind, error.message, error.status, error.retryable] if error else None,
                self.last,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ReplyFrame:
        payloads, report, error, last = msgpack.unpackb(data)
        return cls(tuple(payloads), Report(*report) if report else None, ErrorFrame(*error) if error else None, last)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
