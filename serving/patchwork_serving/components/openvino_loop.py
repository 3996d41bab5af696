"""The thread that steps an OpenVINO pipeline: it takes calls in, lets all of them go on by a token, and tells each what came.

Nobody else touches the pipeline. What comes of a step goes to the event loop in one handover, whatever the number of calls.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchwork_serving.components.openvino_text import Detokenizer, Stops
from patchwork_serving.errors import EngineDied, EngineRefused


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step brought to one call."""

    text: str
    tokens: tuple[tuple[int, float], ...]  #: id and log-probability of each
    finish: str | None = None  #: ``stop`` or ``length``, with the last piece


@dataclass(slots=True, eq=False)
class Inside:
    """One call inside. ``pieces`` and ``fault`` belong to the event loop, all else to the thread."""

    number: int
    ids: Any  #: prompt, ``openvino.Tensor``
    config: Any  #: ``openvino_genai.GenerationConfig``
    text: Detokenizer
    stops: Stops
    told: Callable[[int], None]  #: on the event loop: so many more tokens
    pieces: list[Piece] = field(default_factory=list)
    fault: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False  #: its caller has gone; set on the event loop, read by the thread
    handle: Any = None


class StepLoop:
    """Owns ``pipeline``. ``start`` on the event loop that calls come from."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.died: str | None = None
        self._pipeline = pipeline
        self._name = name
        self._changed = threading.Condition()
        self._coming: list[Inside] = []
        self._inside: list[Inside] = []
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"openvino-{name}", daemon=True)
        self._thread.start()

    def enter(self, sequence: Inside) -> None:
        with self._changed:
            if self._closing or self.died is not None:
                raise EngineDied(self._no_more())
            self._coming.append(sequence)
            self._changed.notify()

    def leave(self, sequence: Inside) -> None:
        """Its caller has gone; the engine drops it before its next step. Safe to repeat."""
        sequence.left = True
        with self._changed:
            self._changed.notify()

    def __len__(self) -> int:
        """Calls inside, or about to be."""
        return len(self._coming) + len(self._inside)

    def close(self) -> None:
        """Ends the thread after the step that it is at. Blocks; idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._pipeline = None

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait():
                self._step()
        except Exception as error:  # noqa: BLE001 - whatever it is, the pipeline's state is not known any more
            self.died = last_line(error)
        with self._changed:
            rest = [*self._coming, *self._inside]
            self._coming, self._inside = [], []
        for sequence in rest:
            self._hand([(sequence, EngineDied(self._no_more()))])

    def _wait(self) -> bool:
        with self._changed:
            # what was cancelled is freed by one more step
            while not (self._closing or self._coming or self._inside or self._pipeline.has_non_finished_requests()):
                self._changed.wait()
            return not self._closing

    def _step(self) -> None:
        with self._changed:
            coming, self._coming = self._coming, []
            self._inside.extend(coming)
        news: list[tuple[Inside, Piece | Exception]] = []
        for sequence in self._inside:
            if sequence.left:
                if sequence.handle is not None:
                    sequence.handle.cancel()
            elif sequence.handle is None:
                try:
                    sequence.handle = self._pipeline.add_request(sequence.number, sequence.ids, sequence.config)
                except RuntimeError as error:
                    news.append((sequence, EngineRefused(last_line(error))))
                    sequence.left = True
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        done = []
        for sequence in self._inside:
            if sequence.left:
                done.append(sequence)
                continue
            piece = self._read(sequence)
            if piece is not None:
                news.append((sequence, piece))
                if isinstance(piece, Exception) or piece.finish is not None:
                    done.append(sequence)
        if done:
            with self._changed:
                self._inside = [one for one in self._inside if one not in done]
        if news:
            self._hand(news)

    def _read(self, sequence: Inside) -> Piece | Exception | None:
        handle = sequence.handle
        ids: list[int] = []
        scores: list[float] = []
        finish: str | None = None
        while handle.can_read():
            for output in handle.read().values():
                ids.extend(output.generated_ids)
                scores.extend(output.generated_log_probs)
                if output.finish_reason.name != "NONE":
                    finish = "length" if output.finish_reason.name == "LENGTH" else "stop"
        status = handle.get_status().name
        if status == "IGNORED":
            return EngineRefused("its cache has no room for so long a prompt; send less, or raise slots or n_ctx")
        if finish is None and status == "FINISHED":
            finish = "stop"
        if not ids and finish is None:
            return None
        text, stopped = sequence.stops.feed(sequence.text.add(ids, last=finish is not None), last=finish is not None)
        if stopped and finish is None:
            handle.cancel()
        return Piece(text, tuple(zip(ids, scores, strict=False)), "stop" if stopped else finish)

    def _hand(self, news: Sequence[tuple[Inside, Piece | Exception]]) -> None:
        try:
            self._loop.call_soon_threadsafe(_deliver, news)
        except RuntimeError:  # the event loop has ended: nobody waits
            return

    def _no_more(self) -> str:
        if self.died is not None:
            return f"the OpenVINO engine of {self._name} died ({self.died}); its replica is replaced"
        return f"{self._name} is not running; its replica is starting or shutting down"


def _deliver(news: Sequence[tuple[Inside, Piece | Exception]]) -> None:
    for sequence, piece in news:
        if isinstance(piece, Exception):
            sequence.fault = piece
        else:
            sequence.pieces.append(piece)
            if piece.tokens:
                sequence.told(len(piece.tokens))
        sequence.news.set()


#: What may quote a request: it is not to be in a message that others see.
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_PLACE = re.compile(r"^\[[\d:]+\] \S+: ")


def last_line(error: Exception) -> str:
    """OpenVINO says where in its source first, and what last; without the values that it quotes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _QUOTED.sub("...", _PLACE.sub("", lines[-1]))[:300] if lines else type(error).__name__
