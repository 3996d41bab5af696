"""Which shard has seen a prompt's beginning: its tokens may still be in that shard's cache, and prefill is most of a RAG answer's cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

REMEMBERED = 1024


class PromptAffinity:
    """Remembers the last prompts' shards. Pure: it holds digests, no text."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._shard_of: OrderedDict[int, int] = OrderedDict()

    def choose(self, body: Mapping[str, Any], running: Sequence[int], slots: Sequence[int]) -> int:
        """The shard that had this prompt, while it has a free slot; else the one with the fewest sequences."""
        key = _key(body)
        known = self._shard_of.get(key)
        if known is not None and running[known] < slots[known]:
            self._shard_of.move_to_end(key)
            return known
        chosen = min(range(len(running)), key=lambda shard: running[shard] / slots[shard])
        self._shard_of[key] = chosen
        self._shard_of.move_to_end(key)
        if len(self._shard_of) > self._size:
            self._shard_of.popitem(last=False)
        return chosen


def _key(body: Mapping[str, Any]) -> int:
    """Of the prompt; of a conversation, up to its first user message, so that every turn of it has the same key."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return hash(orjson.dumps(body.get("prompt", body.get("input"))))
    first = next((i for i, message in enumerate(messages) if _is_user(message)), len(messages) - 1)
    return hash(orjson.dumps(messages[: first + 1]))


def _is_user(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"
