"""Which replica of an LLM has seen a prompt's beginning, and what that is worth. Pure; it keeps hashes, no text.

Prefill is most of a RAG answer's cost, and an engine that still holds a prefix leaves it out. Two things tell of a common prefix for
next to nothing: the call belongs to the same request (a loop that adds to its prompt), or its payload is the same. What a repeat saves
is measured: the seconds of calls that came to a replica which had seen them, against those that did not. Engines without a prefix
cache thus save nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from patchwork_scheduler.estimate import Learned

REMEMBERED = 4096
#: Calls of either sort before the difference is believed.
TELLING = 5
#: Until then, part of a call that a repeat is taken to save: enough to choose among equals, or no repeat would ever be seen.
CURIOSITY = 0.01

Keys = tuple[Hashable, ...]


def keys_of(run_id: str, payload: bytes) -> Keys:
    """What a later call may have in common with this one."""
    return (run_id, hash(payload)) if run_id else (hash(payload),)


@dataclass(slots=True)
class PrefixMemory:
    """Of one component."""

    repeats: Learned = field(default_factory=Learned)  #: seconds, over those predicted
    others: Learned = field(default_factory=Learned)
    _replica_of: OrderedDict[Hashable, str] = field(default_factory=OrderedDict)

    def saved_s(self, keys: Keys, alone_s: float) -> dict[str, float] | None:
        """Replica -> seconds that a call would save there; None when nothing is known to be saved."""
        if self.repeats.count < TELLING or self.others.count < TELLING:
            saved = alone_s * CURIOSITY
        elif self.repeats.mean < self.others.mean:
            saved = alone_s * (1.0 - self.repeats.mean / self.others.mean)
        else:
            return None
        known = (self._replica_of.get(key) for key in keys)
        return {replica: saved for replica in known if replica is not None} or None

    def observe(self, keys: Keys, replica: str, ratio: float | None) -> None:
        """A call was served by ``replica``. ``ratio``: its seconds over those predicted; None: it ran in company and tells nothing."""
        if ratio is not None:
            seen = any(self._replica_of.get(key) == replica for key in keys)
            (self.repeats if seen else self.others).observe(ratio)
        for key in keys:
            self._replica_of[key] = replica
            self._replica_of.move_to_end(key)
        while len(self._replica_of) > REMEMBERED:
            self._replica_of.popitem(last=False)
