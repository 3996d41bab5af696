"""Which calls may be answered by an equal one in flight: those that are pure, whoever asks. Pure itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.protocol import decode_request
from patchwork_adapters.transport import Kind, LeafCall
from patchwork_serving.release import ComponentSpec

#: By kind, the methods whose answer depends on their arguments alone. Leaves that run as the user's own object are left out: nothing is
#: known of what else their methods do.
_PURE: Mapping[Kind, frozenset[str]] = {
    "embedder": frozenset({"embed", "POST /v1/embeddings"}),
    "retriever": frozenset({"search", "get"}),
    "reranker": frozenset({"score"}),
}
_WRITES: Mapping[Kind, frozenset[str]] = {"retriever": frozenset({"add", "delete"})}
_NONE: frozenset[str] = frozenset()


class Sharing:
    """``components``: those of the release; without any, nothing is shared. ``llm``: whether greedy LLM calls (temperature 0) are."""

    def __init__(self, components: Mapping[str, ComponentSpec] | None = None, *, llm: bool = False) -> None:
        specs = {name: spec for name, spec in (components or {}).items() if spec.way in ("engine", "protocol")}
        self._pure = {name: _PURE.get(spec.kind, _NONE) for name, spec in specs.items()}
        self._writes = {name: _WRITES.get(spec.kind, _NONE) for name, spec in specs.items()}
        self._llms = {name: spec.way for name, spec in specs.items() if llm and spec.kind == "llm"}

    def can_share(self, call: LeafCall) -> bool:
        if call.stream:
            return False
        if call.method in self._pure.get(call.component, _NONE):
            return True
        return call.component in self._llms and _is_greedy(call, self._llms[call.component])

    def changes(self, call: LeafCall) -> bool:
        """Whether the call changes what other calls of its component see."""
        return call.method in self._writes.get(call.component, _NONE)

    def key(self, call: LeafCall) -> Hashable:
        """Equal for calls with equal answers."""
        return call.component, call.method, call.payload


def _is_greedy(call: LeafCall, way: str) -> bool:
    """The request itself says temperature 0: a default elsewhere may be another."""
    body: Any
    if way == "protocol":
        body = decode_request(call.payload).json()
    else:
        arguments = codec.decode(call.payload)
        body = arguments.get("body") if isinstance(arguments, dict) else None
    temperature = body.get("temperature") if isinstance(body, dict) else None
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
