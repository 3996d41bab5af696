"""``patchwork bench``: an open-loop load, its report, plots and page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from rich.table import Table

from patchwork_adapters.checking.cases import BadInputs, read_cases
from patchwork_serving.bench.apis import ApiName
from patchwork_serving.bench.page import COLUMNS, page, row
from patchwork_serving.bench.plots import can_plot, draw
from patchwork_serving.bench.report import LoadReport
from patchwork_serving.bench.run import LoadOptions, load
from patchwork_serving.bench.sustain import SHARE
from patchwork_serving.cli_apps import auth_headers_for, parsed_headers, url_of
from patchwork_serving.cli_options import seconds
from patchwork_serving.cli_output import console, fact, fact_json, note
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.errors import UsageError
from patchwork_serving.progress import ProgressSink
from patchwork_serving.urls import is_loopback, shown

NO_TIME = ("0", "0s", "0ms")
STOPPED = 1  #: exit code of a load that was ended early


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    name: str
    arrivals: str
    inputs: Path
    input_key: str | None
    rates: str | None
    output: Path
    headers: Sequence[str]
    options: LoadOptions


def bench(wish: Wish, *, as_json: bool) -> int:
    """Load, write ``report.json``, the plots and ``report.html``; 1 when it was stopped. Raises UsageError, UnknownApp, NotAnswered."""
    url = url_of(wish.name)
    rates = parsed_rates(wish.rates)
    values = read_inputs(wish.inputs, wish.input_key)
    options = replace(wish.options, headers={**auth_headers_for(wish.name), **parsed_headers(wish.headers)})
    _prepare(wish.output, url)
    reports = asyncio.run(_sweep(url, wish.arrivals, values, rates, options))
    document = write(wish.output, f"patchwork bench: {shown(wish.name)}", reports)
    if as_json:
        fact_json(document)
    else:
        _show(reports, wish.output)
    return STOPPED if any(report.partial for report in reports) else 0


def load_options(
    *, api: str, slo: str | None, duration: str, warmup: str, timeout: str | None, **others: Any
) -> LoadOptions:
    """Of the command line; UsageError names the option."""
    if api not in get_args(ApiName):
        raise UsageError(f"--api: one of {', '.join(get_args(ApiName))}; not {api!r}")
    return LoadOptions(
        api=cast(ApiName, api),
        slo_s=None if slo is None else seconds("--slo", slo),
        duration_s=seconds("--duration", duration),
        # the one duration that may be nothing
        warmup_s=0.0 if warmup in NO_TIME else seconds("--warmup", warmup),
        timeout_s=None if timeout is None else seconds("--timeout", timeout),
        **others,
    )


def parsed_rates(text: str | None) -> list[float | None]:
    """Of ``--rate``: one, or several with commas between, ascending; None is a trace's own."""
    if text is None:
        return [None]
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--rate: requests per second, or several with commas between; not {text!r}") from None
    if not all(0 < rate < float("inf") for rate in rates):
        raise UsageError(f"--rate: {text!r} must be more than 0 requests per second")
    return list(rates)


def read_inputs(path: Path, key: str | None) -> list[Any]:
    """The inputs of a file: one JSON value a line, or the field ``key`` of each."""
    try:
        values = [case.input for case in read_cases(path)]
    except BadInputs as error:
        raise UsageError(str(error)) from error
    if key is None:
        return values
    if missing := [n for n, value in enumerate(values, 1) if not isinstance(value, dict) or key not in value]:
        raise UsageError(f"--input-key: input {missing[0]} of {path} has no field {key!r}")
    return [value[key] for value in values]


def write(folder: Path, title: str, reports: Sequence[LoadReport]) -> dict[str, Any]:
    """Files of a load or a sweep; what ``report.json`` holds. Of a sweep, the top level is the rate with the largest goodput."""
    document = max(reports, key=lambda report: report.goodput_per_s).to_json()
    if len(reports) > 1:
        document["sweep"] = [report.to_json() for report in reports]
        document["sustained_per_s"] = sustained(reports)
    (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    plots = draw(folder, reports) if can_plot() else {}
    (folder / "report.html").write_text(page(title, reports, plots), encoding="utf-8")
    return document


def sustained(reports: Sequence[LoadReport]) -> float:
    """The largest rate offered at which 90 % were attained, and at every lower one; 0 when at none."""
    best = 0.0
    for report in reports:
        if report.attained_share < SHARE:
            break
        best = report.offered_per_s
    return best


async def _sweep(
    url: str, arrivals: str, values: Sequence[Any], rates: Sequence[float | None], options: LoadOptions
) -> list[LoadReport]:
    """One report a rate; after a stop, those until then."""
    reports: list[LoadReport] = []
    stopping = _Stopping()
    with progress_display(as_json=False) as progress, stopping.signals():
        for rate in rates:
            told = _Named(progress, rate) if len(rates) > 1 else progress
            report = await load(url, arrivals, values, replace(options, rate=rate), told, stopping.watch)
            reports.append(report)
            # every rate of a sweep is held against the same promise
            options = replace(options, slo_s=report.slo_s)
            if report.partial:
                break
    first = reports[0]
    return [first, *(replace(report, unloaded_mean_s=first.unloaded_mean_s) for report in reports[1:])]


class _Stopping:
    """The first SIGINT or SIGTERM ends the load that runs; before one runs, and the second time, it ends the command."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None

    def watch(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def came() -> None:
            stop, self._stop = self._stop, None
            if stop is None:
                task.cancel()
            else:
                stop()

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, came)
        try:
            yield
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(signum)


class _Named:
    """The steps of one rate of a sweep, told apart from those of others."""

    def __init__(self, sink: ProgressSink, rate: float | None) -> None:
        self._sink, self._prefix = sink, f"{rate:g}/s "

    def begin(self, step_id: str, title: str) -> None:
        self._sink.begin(self._prefix + step_id, title)

    def update(self, step_id: str, done: float | None = None, total: float | None = None, note: str = "") -> None:
        self._sink.update(self._prefix + step_id, done, total, note)

    def end(self, step_id: str, note: str = "") -> None:
        self._sink.end(self._prefix + step_id, note)

    def fail(self, step_id: str, note: str = "") -> None:
        self._sink.fail(self._prefix + step_id, note)


def _prepare(folder: Path, url: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o: {folder} cannot be made ({error.strerror})") from error
    if not is_loopback(url):
        note(f"warning: {shown(url)} is not on this machine; load only what is yours, and what may be loaded")
    if not can_plot():
        note("there will be no plots: pip install 'patchwork-rag[bench]'")


def _show(reports: Sequence[LoadReport], folder: Path) -> None:
    table = Table(*COLUMNS, box=None, padding=(0, 1, 0, 0), header_style="dim")
    for report in reports:
        table.add_row(*row(report))
    console().print(table)
    fact(f"SLO {reports[0].slo_s:.3g} s; {folder / 'report.html'} shows more")
    if len(reports) > 1:
        fact(f"sustained (90 % attained): {sustained(reports):.3g} requests/s")
    for warning in sorted({warning for report in reports for warning in report.warnings()}):
        note(f"warning: {warning}")
