"""Steps told to people, logs and programs."""

from __future__ import annotations

import io
import itertools
import json
import threading

import pytest
from rich.console import Console

from patchwork_serving.cli_progress import LiveProgress
from patchwork_serving.progress import JsonProgress, PlainProgress, ProgressSink, SilentProgress, relay, step


def ticking():
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_a_log_gets_the_beginning_and_the_end_of_a_step() -> None:
    out = io.StringIO()
    sink = PlainProgress(out, ticking())
    with step(sink, "ray", "starting Ray"):
        sink.update("ray", 1, 2)
    assert out.getvalue().splitlines() == ["...  starting Ray", "ok   starting Ray (1.0 s)"]


def test_a_step_that_raises_has_failed() -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), step(PlainProgress(out, ticking()), "ray", "starting Ray"):
        raise KeyError
    assert out.getvalue().splitlines()[-1] == "FAIL starting Ray (1.0 s)"


def test_steps_cross_a_pipe_and_a_users_print_is_left_alone() -> None:
    pipe, out = io.StringIO(), io.StringIO()
    sender: ProgressSink = JsonProgress(pipe, ticking())
    sender.begin("m", "fetching")
    sender.update("m", 1, 4, "19 MiB")
    sender.end("m", "76 MiB")
    there = PlainProgress(out, ticking())
    taken = [relay(line, there) for line in [*pipe.getvalue().splitlines(), "hello", '{"event": 1}', "{}"]]
    assert taken == [True, True, True, False, False, False]
    assert out.getvalue().splitlines() == ["...  fetching", "ok   fetching (1.0 s): 76 MiB"]


def test_json_progress_is_one_object_a_line() -> None:
    out = io.StringIO()
    sink = JsonProgress(out, ticking())
    sink.begin("a", "A")
    sink.fail("a", "no")
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"event": "begin", "step": "a", "title": "A"},
        {"event": "fail", "step": "a", "note": "no", "seconds": 1.0},
    ]


def test_a_terminal_shows_running_ended_and_failed_steps() -> None:
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=True, width=100), ticking()) as sink:
        sink.begin("a", "starting Ray")
        sink.update("a", 1, 2)
        sink.begin("b", "starting Postgres")
        sink.end("a", "ready")
        sink.fail("b", "no room")
        sink.update("unknown", 1, 2)
    shown = out.getvalue()
    assert "✓" in shown
    assert "✗" in shown
    assert "no room" in shown


def test_silence_takes_everything_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with step(SilentProgress(), "a", "A") as sink:
        sink.update("a", 1, 2, "half")
    with pytest.raises(KeyError), step(sink, "b", "B"):
        raise KeyError
    assert capfd.readouterr() == ("", "")


def test_a_step_that_fails_at_once_is_not_told_of_where_only_long_ones_are() -> None:
    out = io.StringIO()
    sink = PlainProgress(out, ticking(), after_s=60.0)
    with pytest.raises(KeyError), step(sink, "import", "importing my_chain.py"):
        raise KeyError
    assert out.getvalue() == ""
    with step(sink, "import", "importing my_chain.py"):
        pass
    assert out.getvalue().startswith("ok   importing my_chain.py")


def test_a_step_that_lasts_is_told_of_and_so_is_its_failure() -> None:
    out, told = io.StringIO(), threading.Event()

    class Telling(PlainProgress):
        def _write(self, line: str) -> None:
            super()._write(line)
            told.set()

    with pytest.raises(KeyError), step(Telling(out, ticking(), after_s=0.001), "import", "importing my_chain.py"):
        assert told.wait(10)
        raise KeyError
    first, last = out.getvalue().splitlines()
    assert first == "...  importing my_chain.py"
    assert last.startswith("FAIL importing my_chain.py")
