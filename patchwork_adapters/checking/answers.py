"""What models answered, kept by what they were asked, so that a check asks an expensive model once.

The k-th equal call of a run gets the k-th answer: a model that fails first and answers then does so in every run. Only models and
embeddings are answered from here; what changes its arguments, or a store, has to happen.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.checking.values import mask
from patchwork_adapters.errors import CodecError

KINDS = frozenset({"llm", "embedder"})
_SCALARS = (str, int, float, bool, type(None))


class Answers:
    """Grows while calls are made; safe in threads."""

    def __init__(self, kept: Mapping[str, list[list[bytes]]] | None = None) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, list[list[bytes]]] = dict(kept or {})
        self._turns: Counter[str] = Counter()
        self.num_asked = 0  #: calls that were carried out
        self.num_replayed = 0

    def begin(self) -> None:
        """A new run: equal calls are counted from the first again."""
        with self._lock:
            self._turns.clear()

    def answer_to(self, obj: Any, path: str | None, method: str, arguments: Any) -> Answer:
        """The place of one call's answer. ``path``: of the leaf that ``obj`` is; None for a copy with other fields."""
        fields = {n: v for n, v in sorted(getattr(obj, "__dict__", {}).items()) if isinstance(v, _SCALARS)}
        cls = f"{type(obj).__module__}.{type(obj).__qualname__}"
        asked = [cls, path, fields, method, mask(_given(arguments), frozenset())]
        key = json.dumps(asked, sort_keys=True, default=repr)
        with self._lock:
            turn = self._turns[key]
            self._turns[key] += 1
            known = self._kept.get(key, [])
            if turn < len(known):
                self.num_replayed += 1
                return Answer(self, key, known[turn])
            self.num_asked += 1
            return Answer(self, key, None)

    def to_plain(self) -> dict[str, list[list[bytes]]]:
        """To be sent to another process."""
        with self._lock:
            return dict(self._kept)

    def keep(self, key: str, frames: list[bytes]) -> None:
        with self._lock:
            self._kept.setdefault(key, []).append(frames)


def _given(arguments: Any) -> Any:
    """Without defaults given by position: the framework names them on one way to a method, and not on another."""
    positional = list(arguments["positional"])
    while positional and positional[-1] is None:
        positional.pop()
    return [positional, arguments.get("named", {})]


class Answer:
    """Of one call: known, or to be noted frame by frame and kept when it is whole."""

    def __init__(self, answers: Answers, key: str, known: list[bytes] | None) -> None:
        self._answers, self._key, self._known = answers, key, known
        self._frames: list[bytes] | None = []

    @property
    def is_known(self) -> bool:
        return self._known is not None

    def value(self) -> Any:
        """Returns or raises what was answered; a new object each time."""
        assert self._known is not None
        return codec.decode_outcome(self._known[0])

    def chunks(self) -> Iterator[Any]:
        assert self._known is not None
        for frame in self._known:
            yield codec.decode_outcome(frame)

    def note(self, outcome: Any) -> None:
        """A value, a chunk, or the exception that ended the call. What cannot be kept makes the call one that is made again."""
        try:
            if self._frames is not None and self._known is None:
                self._frames.append(codec.encode_outcome(outcome))
        except CodecError:
            self._frames = None

    def keep(self) -> None:
        """The answer is whole."""
        if self._frames is not None and self._known is None:
            self._answers.keep(self._key, self._frames)
            self._frames = None
