"""``patchwork status``: what runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from patchwork_serving import servers
from patchwork_serving.cli_apps import app_status, store
from patchwork_serving.cli_output import console, fact_json
from patchwork_serving.cli_predictions import predictions_table
from patchwork_serving.config import Paths

WATCH_EVERY_S = 2.0
_STATE_STYLE = {"ready": "green", "in use": "green", "lost": "red", "unreachable": "red"}


def status(*, as_json: bool, watch: bool) -> None:
    """Print the state of every application; with ``watch`` again and again, until Ctrl-C."""
    if not watch:
        _print(snapshot(), as_json=as_json)
        return
    try:
        if as_json:
            while True:
                fact_json(snapshot(), indent=None)
                time.sleep(WATCH_EVERY_S)
        with Live(_drawn(snapshot()), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_EVERY_S)
                live.update(_drawn(snapshot()), refresh=True)
    except KeyboardInterrupt:
        return  # this is how watching ends


def snapshot() -> dict[str, Any]:
    """The contract's document, and ``left``: servers that run although nothing is deployed."""
    apps = [app_status(app) for app in store().apps()]
    left = [] if apps else servers.running(Paths.from_env())
    return {"apps": apps, "left": [{"role": process.role, "pid": process.pid} for process in left]}


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        fact_json(document)
    else:
        console().print(_drawn(document))


def _drawn(document: dict[str, Any]) -> RenderableType:
    apps = document["apps"]
    if not apps and document["left"]:
        told = " and ".join(f"{item['role']} (process {item['pid']})" for item in document["left"])
        return Text(
            f"nothing is deployed on this machine, but {told} of this home still run: a deployment is starting, "
            "or a command was killed; `patchwork down` stops them"
        )
    if not apps:
        return Text("nothing is deployed on this machine; `patchwork deploy my_chain.py` serves a chain")
    return Group(*(part for app in apps for part in _app(app)))


def _app(app: dict[str, Any]) -> Iterator[RenderableType]:
    head = Text.assemble(
        (app["name"], "bold"), "  ", (app["state"], _STATE_STYLE.get(app["state"], "yellow")), f"  {app['url']}"
    )
    if app["slo"] is not None:
        head.append(f"  slo {app['slo']:g} s")
    yield head
    if app["emulated"]:
        yield Text(f"  emulated, in the time of a profile: {', '.join(app['emulated'])}", style="yellow")
    if app["state"] == "lost":
        yield Text(f"  its processes are gone; `patchwork down {app['name']}` clears it away", style="dim")
    elif app["orphaned"]:
        yield Text(f"  the command that deployed it was killed; `patchwork down {app['name']}` stops it", style="dim")
    if app["clients"]:
        yield Text(f"  used by {', '.join(f'process {pid}' for pid in app['clients'])}", style="dim")
    if app["replicas"]:
        yield _replicas(app["replicas"])
    if app["window"]:
        yield _window("last minute", app["window"])
        classes = app["window"].get("classes") or {}
        if len(classes) > 1:
            yield from (_window(f"  {name}", mine) for name, mine in classes.items())
    if judged := [one for one in app["scheduler"].get("predictions", ()) if one.get("judged")]:
        yield Text("  remaining time: predicted against what it was, mean of each", style="dim")
        yield Padding(predictions_table(judged), (0, 0, 0, 2))
    for decision in app["decisions"][-5:]:
        yield Text(f"  {decision.get('time', '')}  {decision.get('what', '')}: {decision.get('why', '')}", style="dim")


def _replicas(replicas: Sequence[dict[str, Any]]) -> Table:
    table = Table("component", "ready", "queued", "running", "start", box=None, padding=(0, 2), header_style="dim")
    for item in replicas:
        table.add_row(
            str(item.get("component")), f"{item.get('ready', '?')}/{item.get('target', '?')}",
            str(item.get("queued", "")), str(item.get("running", "")), _seconds(item.get("start_s")),
        )  # fmt: skip
    return table


def _seconds(value: float | None) -> str:
    """What its slowest replica took to start, which is what another one will take."""
    return "" if value is None else f"{value:.1f} s"


def _window(title: str, window: dict[str, Any]) -> Text:
    counts = ", ".join(
        f"{window[k]} {k}" for k in ("requests", "attained", "missed", "refused", "failed") if window.get(k) is not None
    )
    times = ", ".join(
        f"{p} {window[f'{p}_s']:.2f} s" for p in ("p50", "p95", "p99") if window.get(f"{p}_s") is not None
    )
    return Text(f"  {title}: {counts}" + (f"; {times}" if times else ""))
