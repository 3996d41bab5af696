"""What is starting, and how long it has taken: the port through which slow work tells a person, a log or a program.

A step has an id, which names it to programs, and a title for people. Steps may overlap and may be told from any thread. Sinks write to the
stream that they are given; the live display of a terminal is in ``cli_progress``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

Clock = Callable[[], float]


class ProgressSink(Protocol):
    """Told by slow work; never raises, never blocks for long."""

    def begin(self, step_id: str, title: str) -> None:
        """A step starts. Beginning a step again starts its clock anew."""
        ...

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None:
        """How far it is (``done`` of ``total`` in any unit, when known) and what it is doing now."""
        ...

    def end(self, step_id: str, note: str = "") -> None:
        """It is done; ``note`` is the fact worth keeping ("19 MiB", "3 replicas")."""
        ...

    def fail(self, step_id: str, note: str = "") -> None:
        """It failed; the error itself travels as an exception."""
        ...


@contextmanager
def step(sink: ProgressSink, step_id: str, title: str) -> Iterator[ProgressSink]:
    """Run a block as one step, ended when it ends and failed when it raises."""
    sink.begin(step_id, title)
    try:
        yield sink
    except BaseException:
        sink.fail(step_id)
        raise
    sink.end(step_id)


class SilentProgress:
    """Tells nobody."""

    def begin(self, step_id: str, title: str) -> None: ...

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None: ...

    def end(self, step_id: str, note: str = "") -> None: ...

    def fail(self, step_id: str, note: str = "") -> None: ...


class _Timed:
    """Knows how long each running step has taken; safe to call from several threads."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, tuple[str, float]] = {}

    def _begin(self, step_id: str, title: str) -> None:
        self._running[step_id] = (title, self._clock())

    def _finish(self, step_id: str) -> tuple[str, float]:
        now = self._clock()
        title, began = self._running.pop(step_id, (step_id, now))
        return title, now - began

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class PlainProgress(_Timed):
    """A line when a step begins and one when it ends: for files, pipes and CI logs.

    ``after_s``: the beginning is told only of steps that last that long, and the failure only of those whose beginning was told: what
    fails at once leaves its error alone on the screen.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, after_s: float = 0.0) -> None:
        super().__init__(stream, clock)
        self._after_s = after_s
        self._untold: dict[str, threading.Timer] = {}

    def begin(self, step_id: str, title: str) -> None:
        with self._lock:
            self._begin(step_id, title)
            if not self._after_s:
                self._write(f"...  {title}")
                return
            timer = threading.Timer(self._after_s, self._tell, (step_id, title))
            timer.daemon = True
            self._untold[step_id] = timer
            timer.start()

    def _tell(self, step_id: str, title: str) -> None:
        with self._lock:
            if self._untold.get(step_id) is threading.current_thread():
                del self._untold[step_id]
                self._write(f"...  {title}")

    def _was_told(self, step_id: str) -> bool:
        timer = self._untold.pop(step_id, None)
        if timer is not None:
            timer.cancel()
        return timer is None

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None:
        """Silent: a log wants the beginning and the end of a download, not each of its blocks."""

    def end(self, step_id: str, note: str = "") -> None:
        with self._lock:
            self._was_told(step_id)
            title, seconds = self._finish(step_id)
            self._write(f"ok   {title} ({seconds:.1f} s)" + (f": {note}" if note else ""))

    def fail(self, step_id: str, note: str = "") -> None:
        with self._lock:
            was_told = self._was_told(step_id)
            title, seconds = self._finish(step_id)
            if was_told:
                self._write(f"FAIL {title} ({seconds:.1f} s)" + (f": {note}" if note else ""))


class JsonProgress(_Timed):
    """One JSON object a line; :func:`relay` reads them back, so steps can be told across a pipe."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)

    def begin(self, step_id: str, title: str) -> None:
        with self._lock:
            self._begin(step_id, title)
            self._event("begin", step_id, title=title)

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None:
        with self._lock:
            self._event("update", step_id, done=done, total=total, note=note)

    def end(self, step_id: str, note: str = "") -> None:
        with self._lock:
            _, seconds = self._finish(step_id)
            self._event("end", step_id, note=note, seconds=round(seconds, 3))

    def fail(self, step_id: str, note: str = "") -> None:
        with self._lock:
            _, seconds = self._finish(step_id)
            self._event("fail", step_id, note=note, seconds=round(seconds, 3))

    def _event(self, event: str, step_id: str, **facts: Any) -> None:
        self._write(json.dumps({"event": event, "step": step_id, **facts}))


def relay(line: str, sink: ProgressSink) -> bool:
    """Tell ``sink`` what a line of :class:`JsonProgress` says; False when the line is something else (a user's print)."""
    if not line.startswith('{"event"'):
        return False
    try:
        document = json.loads(line)
        event, step_id = document["event"], document["step"]
    except (ValueError, KeyError, TypeError):
        return False
    match event:
        case "begin":
            sink.begin(step_id, document.get("title", step_id))
        case "update":
            sink.update(step_id, document.get("done"), document.get("total"), document.get("note", ""))
        case "end":
            sink.end(step_id, document.get("note", ""))
        case "fail":
            sink.fail(step_id, document.get("note", ""))
        case _:
            return False
    return True
