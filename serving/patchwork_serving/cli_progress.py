"""Steps in a terminal: what is starting, how far it is, how long it has taken."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from patchwork_serving.progress import Clock, JsonProgress, PlainProgress, ProgressSink


class _Step:
    def __init__(self, title: str, began: float) -> None:
        self.title = title
        self.began = began
        self.seconds: float | None = None  # None while it runs
        self.failed = False
        self.note = ""
        self.done: float | None = None
        self.total: float | None = None
        self.spinner = Spinner("dots", style="cyan")


class LiveProgress:
    """A live table of steps on a terminal; ended steps stay, with their seconds. Use as a context manager."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[str, _Step] = {}
        self._live = Live(self, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def begin(self, step_id: str, title: str) -> None:
        with self._lock:
            self._steps[step_id] = _Step(title, self._clock())

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None:
        with self._lock:
            step = self._steps.get(step_id)
            if step is not None:
                step.done, step.total, step.note = done, total, note

    def end(self, step_id: str, note: str = "") -> None:
        self._finish(step_id, note, failed=False)

    def fail(self, step_id: str, note: str = "") -> None:
        self._finish(step_id, note, failed=True)

    def _finish(self, step_id: str, note: str, *, failed: bool) -> None:
        with self._lock:
            step = self._steps.get(step_id)
            if step is not None:
                step.seconds, step.failed, step.note = self._clock() - step.began, failed, note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column()
        table.add_column(justify="right")
        table.add_column()
        with self._lock:
            for step in self._steps.values():
                table.add_row(*self._row(step))
        yield table

    def _row(self, step: _Step) -> tuple[Spinner | Text, Text, Text, ProgressBar | Text]:
        seconds = self._clock() - step.began if step.seconds is None else step.seconds
        if step.seconds is None:
            mark: Spinner | Text = step.spinner
        else:
            mark = Text("✗", style="red") if step.failed else Text("✓", style="green")
        note: ProgressBar | Text = Text(step.note, style="dim")
        if step.seconds is None and step.total and step.done is not None:
            note = ProgressBar(total=step.total, completed=step.done, width=24)
        return mark, Text(step.title), Text(f"{seconds:.1f} s", style="dim"), note


class _Quiet:
    """A sink that needs no terminal, as a context manager."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink

    def __enter__(self) -> ProgressSink:
        return self._sink

    def __exit__(self, *_: object) -> None: ...


def progress_display(*, as_json: bool, after_s: float = 0.0) -> LiveProgress | _Quiet:
    """JSON lines on stdout when asked for; else on stderr, live in a terminal and as plain lines elsewhere.

    ``after_s``: steps are told of in plain lines when they last that long.
    """
    if as_json:
        return _Quiet(JsonProgress(sys.stdout))
    console = Console(stderr=True)
    return LiveProgress(console) if console.is_terminal else _Quiet(PlainProgress(sys.stderr, after_s=after_s))
