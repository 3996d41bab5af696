"""From tokens to text, as they come. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What a decoder writes for bytes that are no character, or not yet.
_BROKEN = "�"


class Detokenizer:
    """The text of a growing sequence, in pieces that put together are the text of the whole.

    A token's text depends on its neighbours (a space before it, a character in several tokens): what is new is what the tokens since the
    last but one piece say beyond what they said before.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._begin = self._read = 0
        self._known = ""  # the text of ids[begin:read]

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens complete; with ``last`` also what will never be complete."""
        self._ids.extend(ids)
        text = self._decode(self._ids[self._begin :])
        if text.endswith(_BROKEN) and not last:
            return ""
        new = text[len(self._known) :]
        self._begin, self._read = self._read, len(self._ids)
        self._known = self._decode(self._ids[self._begin :])
        return new


class Stops:
    """Ends a text before the first of some strings, wherever the pieces are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str, *, last: bool = False) -> tuple[str, bool]:
        """(text that may be shown, whether a stop came). What may be the beginning of a stop is held back until ``last``."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut], False


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
