"""What the user's module asked of its leaves while it was imported, by content (design, D4b).

A builder imports first and records; every later process that imports the same module gets its answers from the record, so that embedding
a corpus happens once. Keys are digests of component, method, path and body: what a call says, not when or where it is made. Entries hold
replies only, never requests, and no headers but those that describe the body.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgpack

from patchwork_adapters.codec import outcome_to_keep
from patchwork_adapters.errors import AnotherVersion, CodecError, ComponentUnavailable
from patchwork_adapters.protocol import decode_request
from patchwork_adapters.transport import LeafCall, Transport

_FORMAT = "patchwork-record-5"
_HEAD = 16  #: bytes of a key that say who is asked


def content_key(call: LeafCall) -> bytes:
    """Who is asked, and a digest of what; equal for calls that say the same in another order of keys or spacing."""
    return _asked_of(call) + hashlib.sha256(_body(call)).digest()


def _asked_of(call: LeafCall) -> bytes:
    """Digest of component, method and whether the call streams."""
    return _digest_of(call.component, call.method, call.stream)


@functools.lru_cache(maxsize=1024)
def _digest_of(component: str, method: str, is_stream: bool) -> bytes:
    digest = hashlib.sha256()
    for part in (component.encode(), method.encode(), b"stream" if is_stream else b""):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:_HEAD]


def _body(call: LeafCall) -> bytes:
    if not call.method.startswith("POST "):
        return call.payload
    request = decode_request(call.payload)
    document = request.json()
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() if document else request.body


class ImportRecord:
    """Replies by content. Grows while it is recorded; saved and loaded whole."""

    def __init__(self) -> None:
        self._frames: dict[bytes, list[bytes]] = {}
        self._asked: set[bytes] = (
            set()
        )  #: starts of keys, so that the body of a call that nothing is like need not be read

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def num_bytes(self) -> int:
        """Size of the replies."""
        return sum(len(frame) for frames in self._frames.values() for frame in frames)

    def get(self, call: LeafCall) -> list[bytes] | None:
        """The frames of the reply (one, unless the call streams); None when nothing like it was asked."""
        return self._frames.get(content_key(call)) if _asked_of(call) in self._asked else None

    def put(self, call: LeafCall, frames: list[bytes]) -> None:
        """Messages of errors are kept without the secrets in them: the record is a file."""
        if not call.method.startswith("POST "):  # else they are HTTP, not outcomes
            frames = [outcome_to_keep(frame) for frame in frames]
        key = content_key(call)
        self._frames[key] = frames
        self._asked.add(key[:_HEAD])

    def remove(self, call: LeafCall) -> None:
        self._frames.pop(content_key(call), None)

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb([_FORMAT, self._frames])
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> ImportRecord:
        """Raises CodecError when the bytes are no record, AnotherVersion when they are one of another version."""
        record = cls()
        if not data:
            return record
        try:
            form, frames = msgpack.unpackb(data, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CodecError("these bytes are not an import record; build again") from error
        if form != _FORMAT:
            raise AnotherVersion(f"this import record is of another version ({form!r}); build again")
        record._frames = frames
        record._asked = {key[:_HEAD] for key in frames}
        return record

    def save(self, path: Path) -> int:
        """Write the whole file or nothing of it; returns its size in bytes."""
        data = self.to_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        return len(data)

    @classmethod
    def load(cls, path: Path) -> ImportRecord:
        """An empty record when there is no file, or one of another version (it is a cache); CodecError when it is damaged."""
        try:
            return cls.from_bytes(path.read_bytes())
        except (FileNotFoundError, AnotherVersion):
            return cls()


class RecordingTransport:
    """Answers from the record what it knows, asks ``inner`` for the rest and keeps complete replies.

    Implements Transport and AnswersNow.
    """

    def __init__(self, inner: Transport, record: ImportRecord) -> None:
        self._inner = inner
        self._record = record
        self.num_asked = 0  #: calls that the record did not know
        self._is_over = False

    def stop_recording(self) -> None:
        """From now on every call is asked, and nothing is kept: the import is over."""
        self._is_over = True

    def answer_now(self, call: LeafCall) -> Sequence[bytes] | None:
        return None if self._is_over else self._record.get(call)

    async def call(self, call: LeafCall) -> bytes:
        if self._is_over:
            return await self._inner.call(call)
        known = self._record.get(call)
        if known is not None:
            return known[0]
        self.num_asked += 1
        reply = await self._inner.call(call)
        self._record.put(call, [reply])
        return reply

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        known = None if self._is_over else self._record.get(call)
        if known is not None:
            for frame in known:
                yield frame
            return
        self.num_asked += 1
        frames: list[bytes] = []
        inner = self._inner.stream(call)
        try:
            async for frame in inner:
                frames.append(frame)
                yield frame
        finally:
            close = getattr(inner, "aclose", None)
            if close is not None:
                await close()
        if not self._is_over:
            self._record.put(call, frames)  # reached only when the stream came to its end


class ReplayTransport:
    """Answers from the record what it knows and hands the rest to ``fallback``. Implements Transport and AnswersNow.

    While a deployed process imports the module everything should be known; without a fallback an unknown call is ComponentUnavailable.
    """

    def __init__(self, record: ImportRecord, fallback: Transport | None = None) -> None:
        self._record = record
        self._fallback = fallback
        self.num_missed = 0

    def answer_now(self, call: LeafCall) -> Sequence[bytes] | None:
        return self._record.get(call)

    async def call(self, call: LeafCall) -> bytes:
        known = self._record.get(call)
        return known[0] if known is not None else await self._other(call).call(call)

    async def stream(self, call: LeafCall) -> AsyncIterator[bytes]:
        known = self._record.get(call)
        if known is not None:
            for frame in known:
                yield frame
            return
        inner = self._other(call).stream(call)
        try:
            async for frame in inner:
                yield frame
        finally:
            close = getattr(inner, "aclose", None)
            if close is not None:
                await close()

    def _other(self, call: LeafCall) -> Transport:
        self.num_missed += 1
        if self._fallback is None:
            raise ComponentUnavailable(
                f"the module asks component {call.component} at import for something that was not asked when it was built; "
                "deploy again, or move the call out of the import"
            )
        return self._fallback
