"""Which replica of an LLM has seen a prompt's beginning, and what that is worth. Pure; it keeps hashes, no text.

Prefill is most of a RAG answer's cost, and an engine that still holds a prefix leaves it out: the instructions and documents that several
questions have in common, a conversation's turns before the last, a loop that adds to its prompt. A prompt is known by its blocks, each
hashed with all before it, as engines themselves keep them (vLLM's automatic prefix caching). What a common beginning saves is measured:
the seconds of calls, by how much of their prompts the replica had seen. Engines without a prefix cache thus save nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from patchwork_adapters import codec, protocol
from patchwork_adapters.errors import CodecError
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.estimate import Learned

#: Bytes of a block: some 100 tokens. What is shorter is not worth going anywhere for.
BLOCK = 512
#: Of a prompt, more is not looked at.
MOST_BLOCKS = 256
#: Blocks that are remembered, and replicas that are for each.
REMEMBERED, HOLDERS = 16_384, 8
#: Calls before what a common beginning saves is believed, and how much they must differ in it (variance of the share seen).
TELLING, VARIED = 10, 0.01
#: Until then, part of a call that is taken to be saved where all of its prompt was seen. Engines keep prompts unless told otherwise, and to
#: read one takes 0.1 to 0.8 of a RAG answer's call. Not more, for where an engine keeps none a replica is passed over for nothing.
ASSUMED = 0.3
#: What saves less is taken to save nothing.
LEAST = 0.005

Keys = tuple[int, ...]


def keys_of(call: LeafCall) -> Keys:
    """One for each block of the call's prompt, and of what all before it say; equal as far as prompts begin the same."""
    prompt = _prompt_of(call)
    key, keys = 0, []
    for start in range(0, min(len(prompt), MOST_BLOCKS * BLOCK), BLOCK):
        key = hash((key, prompt[start : start + BLOCK]))
        keys.append(key)
    return tuple(keys)


def _prompt_of(call: LeafCall) -> bytes:
    """What the engine will read, in its order, or nearly; the payload where that is not known."""
    try:
        if call.method.startswith("POST "):
            return protocol.decode_request(call.payload).body
        if call.method in ("chat", "complete"):
            body = codec.decode(call.payload, allow_pickle=False)["body"]
            return _text_of(body).encode("utf-8", "surrogatepass")
    except (AttributeError, CodecError, KeyError, TypeError):
        pass  # a leaf of the user's own, or a body that the engine will refuse
    return call.payload


def _text_of(body: dict[str, Any]) -> str:
    if "messages" not in body:
        return str(body.get("prompt", body.get("input", "")))
    # templates put tools first
    parts = [str(body["tools"])] if body.get("tools") else []
    parts += (
        f"{message.get('role')}: {message.get('content')}{message.get('tool_calls') or ''}"
        for message in body["messages"]
    )
    return "\n".join(parts)


@dataclass(slots=True)
class PrefixMemory:
    """Of one component."""

    # means over calls: share of the prompt that the replica had seen, seconds over those predicted, and their products
    share: Learned = field(default_factory=Learned)
    ratio: Learned = field(default_factory=Learned)
    share_squared: Learned = field(default_factory=Learned)
    product: Learned = field(default_factory=Learned)
    calls: int = 0
    seen: float = 0.0  #: sum over calls of the share of the prompt that their replica had seen
    _replicas_of: OrderedDict[int, tuple[str, ...]] = field(default_factory=OrderedDict)

    def saved_s(self, keys: Keys, alone_s: float) -> dict[str, float] | None:
        """Replica -> seconds that a call would save there; None when nothing is saved, or no replica has seen its beginning."""
        per_share = self._saved_by_all()
        if per_share < LEAST:
            return None
        return {name: alone_s * per_share * share for name, share in self._shares(keys).items()} or None

    def observe(self, keys: Keys, replica: str, ratio: float | None) -> None:
        """A call was served by ``replica``. ``ratio``: its seconds over those predicted; None: it ran in company and tells nothing."""
        share = self._shares(keys).get(replica, 0.0)
        self.calls += 1
        self.seen += share
        if ratio is not None:
            for mean, value in (
                (self.share, share), (self.ratio, ratio), (self.share_squared, share * share), (self.product, share * ratio),
            ):  # fmt: skip
                mean.observe(value)
        for key in keys:
            before = self._replicas_of.get(key, ())
            if before[:1] != (replica,):
                self._replicas_of[key] = (replica, *(one for one in before if one != replica))[:HOLDERS]
            self._replicas_of.move_to_end(key)
        while len(self._replicas_of) > REMEMBERED:
            self._replicas_of.popitem(last=False)

    def facts(self) -> dict[str, Any]:
        """Calls, the mean share of their prompts that their replica had seen, and the part of a call that seeing all of it saves."""
        return {"calls": self.calls, "seen_share": self.seen / max(self.calls, 1), "saved_share": self._saved_by_all()}

    def _shares(self, keys: Keys) -> dict[str, float]:
        """Replica -> the part of the prompt, from its beginning, that it has seen."""
        found: dict[str, float] = {}
        for count, key in enumerate(keys, 1):
            replicas = self._replicas_of.get(key)
            if replicas is None:
                break
            for replica in replicas:
                found[replica] = count / len(keys)
        return found

    def _saved_by_all(self) -> float:
        """Part of a call's seconds that is saved where all of its prompt has been seen: the slope of a line through what was measured."""
        variance = self.share_squared.mean - self.share.mean**2
        if self.share.count < TELLING or variance < VARIED:
            return ASSUMED
        return min((self.share.mean * self.ratio.mean - self.product.mean) / variance, 1.0)
