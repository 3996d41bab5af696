"""Reads what a leaf call says and what came back, for attributes only. A payload that cannot be read gives ``{}``: it costs attributes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from patchwork_adapters.transport import LeafCall, Way

#: a streamed reply names its usage and finish reason at the end; this much of the end is kept
TAIL_BYTES = 16 * 1024
#: a captured stream is kept up to this much
CAPTURE_BYTES = 256 * 1024
#: replies beyond this are not parsed whole (embeddings); usage is looked for at both ends
PARSE_BYTES = 128 * 1024
_USAGE_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')

Document = Mapping[str, Any]


def request_document(call: LeafCall, way: Way) -> Document:
    """The arguments of a call: the OpenAI request of a protocol call, the operation's arguments of an engine call; ``{}`` for others."""
    return _guarded(lambda: _request(call, way))


def reply_document(payload: bytes, call: LeafCall, way: Way) -> Document:
    """A whole reply: the OpenAI response, or ``{"result": value}`` of an engine call that returns something else."""
    return _guarded(lambda: _reply(payload, call, way))


def stream_document(frames: Sequence[bytes], way: Way) -> Document:
    """What the frames of a streamed reply say together, in the shape of a whole OpenAI response, ``choices`` with one message."""
    return _guarded(lambda: merged_chunks(list(_chunks(frames, way))))


def _guarded(read: Callable[[], Document]) -> Document:
    try:
        return read()
    except Exception:  # noqa: BLE001 telemetry cannot hurt
        return {}


def _request(call: LeafCall, way: Way) -> Document:
    if way in ("protocol", "external"):
        return _json(_protocol_body(call.payload, request=True))
    if way == "engine":
        from patchwork_adapters import codec

        arguments = codec.decode(call.payload, allow_pickle=False)
        return arguments.get("body", arguments) if isinstance(arguments, dict) else {}
    return {}


def _reply(payload: bytes, call: LeafCall, way: Way) -> Document:
    if way in ("protocol", "external"):
        body = _protocol_body(payload, request=False)
        if len(body) <= PARSE_BYTES:
            return _json(body)
        found = _USAGE_TOKENS.search(body[:512]) or _USAGE_TOKENS.search(body[-512:])
        return {"usage": {"prompt_tokens": int(found[1])}} if found else {}
    if way == "engine":
        from patchwork_adapters import codec

        result = codec.decode_outcome(payload, allow_pickle=False)
        return result if isinstance(result, dict) else {"result": result}
    return {}


def _protocol_body(payload: bytes, *, request: bool) -> bytes:
    from patchwork_adapters.protocol import decode_request, decode_response

    return decode_request(payload).body if request else decode_response(payload).body


def _json(body: bytes) -> Document:
    document = orjson.loads(body) if body else {}
    return document if isinstance(document, dict) else {}


def _chunks(frames: Sequence[bytes], way: Way) -> Iterator[Document]:
    if way == "engine":
        from patchwork_adapters import codec

        for frame in frames:
            chunk = codec.decode_outcome(frame, allow_pickle=False)
            if isinstance(chunk, dict):
                yield chunk
        return
    for line in b"".join(frames).split(b"\n"):
        # the first line of a kept tail may be cut, and "[DONE]" is no JSON
        if line.startswith(b"data: {"):
            try:
                yield _json(line[6:])
            except orjson.JSONDecodeError:
                continue


def merged_chunks(chunks: Sequence[Document]) -> Document:
    """OpenAI stream chunks as one response: model, id, usage, finish reason, and the text of the first choice."""
    merged: dict[str, Any] = {}
    text: list[str] = []
    finish: str | None = None
    for chunk in chunks:
        for key in ("id", "model", "usage"):
            if chunk.get(key):
                merged[key] = chunk[key]
        for choice in chunk.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            if choice.get("index", 0) == 0:
                text.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
    if chunks:
        merged["choices"] = [
            {"finish_reason": finish, "message": {"role": "assistant", "content": "".join(text)}},
        ]
    return merged
