"""Server-sent events of an answer, looked at as they come: when the first chunk came, how it ended, where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def stages_of(header: str | None) -> dict[str, float]:
    """Seconds by name of a ``server-timing`` header; entries without a duration are passed over."""
    found: dict[str, float] = {}
    for entry in (header or "").split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    found[name] = float(value.strip('" ')) / 1000.0
                except ValueError:
                    continue
    return found


class EventWatch:
    """Feed it the body's bytes; ``first`` turns true with the first chunk that says something."""

    def __init__(self) -> None:
        self.first = False
        self.ended = False
        self.status = 200
        self.error: str | None = None
        self.stages: dict[str, float] = {}
        self._rest = b""
        self._name = b""

    def feed(self, block: bytes) -> None:
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            self._line(line.rstrip(b"\r"))

    def _line(self, line: bytes) -> None:
        if line.startswith(b"event:"):
            self._name = line[6:].strip()
            self.ended = self.ended or self._name == b"end"
        elif line.startswith(b"data:"):
            self._data(line[5:].strip())
        elif not line:
            self._name = b""

    def _data(self, data: bytes) -> None:
        raise NotImplementedError

    def _fail(self, status: Any, kind: str) -> None:
        self.status = status if isinstance(status, int) else 500
        self.error = kind


class LangServeEvents(EventWatch):
    """``metadata``, ``data``..., ``metadata``, ``end``; or ``error``."""

    def _data(self, data: bytes) -> None:
        if self._name == b"data":
            self.first = self.first or data not in (b"", b'""')
        elif self._name == b"metadata":
            told = _mapping(data).get("server_timing")
            self.stages = stages_of(told) if isinstance(told, str) else self.stages
        elif self._name == b"error":
            told = _mapping(data)
            self._fail(told.get("status_code"), _type_of(told))


class OpenAIEvents(EventWatch):
    """Chunks of a chat completion, then ``[DONE]``."""

    def _data(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.ended = True
        elif data.startswith(b'{"error"'):
            told = _mapping(data)
            self._fail(_mapping_of(told.get("error")).get("code"), _type_of(told))
        elif not self.first:
            choices = _mapping(data).get("choices")
            delta = choices[0].get("delta") if isinstance(choices, list) and choices else None
            self.first = bool(_mapping_of(delta).get("content"))


class AnyBytes(EventWatch):
    """A body of which nothing is known: the first byte is the first chunk, and its end is its end."""

    def feed(self, block: bytes) -> None:
        self.first = self.first or bool(block)

    @property
    def ended(self) -> bool:
        return True

    @ended.setter
    def ended(self, value: bool) -> None: ...


def error_type(body: bytes) -> str | None:
    """The type of the error in a body of ours or of OpenAI's kind."""
    document = _mapping(body)
    return _type_of(document) if "error" in document else None


def _type_of(document: Mapping[str, Any]) -> str:
    kind = _mapping_of(document.get("error")).get("type")
    return kind if isinstance(kind, str) else "error"


def _mapping(data: bytes) -> dict[str, Any]:
    try:
        return _mapping_of(json.loads(data))
    except ValueError:
        return {}


def _mapping_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
