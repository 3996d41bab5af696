"""``patchwork deploy`` and ``patchwork down``: start, stay in the foreground, stop everything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_serving import servers, telemetry
from patchwork_serving.cli_faults import Interrupted
from patchwork_serving.cli_output import fact, fact_json, note
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.config import Paths, parse_seconds
from patchwork_serving.errors import DeployError, UsageError
from patchwork_serving.state import OwnProcess, StateStore

if TYPE_CHECKING:
    from patchwork_scheduler.plan_model import Plan

#: how often the foreground looks whether what it serves is still there
WATCH_EVERY_S = 1.0
#: until killed processes are gone
KILLED_S = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for, not yet resolved against environment and ``patchwork.yaml``."""

    target: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    slo: str | None = None
    config: Path | None = None
    replicas: int | None = None
    detach: bool = False
    plan: Path | None = None


def deploy(wish: Wish, *, as_json: bool) -> None:
    """Deploy and, unless detached, serve until a signal comes; nothing is left running after an error or a signal."""
    telemetry.check_environment()
    slo_s = seconds("--slo", wish.slo) if wish.slo is not None else None
    if wish.config is not None and not wish.config.is_file():
        raise UsageError(f"--config: there is no file {wish.config}")
    plan = _plan(wish.plan)
    with stop_signals() as stopping:
        _serve(wish, slo_s, plan, stopping, as_json=as_json)


def _plan(path: Path | None) -> Plan | None:
    """Read before anything starts: a plan that makes no sense touches nothing."""
    if path is None:
        return None
    from patchwork_scheduler.plan_model import Plan

    return Plan.load(path)


def _serve(wish: Wish, slo_s: float | None, plan: Plan | None, stopping: StopSignals, *, as_json: bool) -> None:
    from patchwork_serving import deploy as deployments

    options = deployments.DeployOptions(
        target=wish.target, name=wish.name, host=wish.host, port=wish.port, slo_s=slo_s, config_path=wish.config,
        replicas=wish.replicas, plan=plan, detach=wish.detach,
    )  # fmt: skip
    began = time.monotonic()
    deployment = None
    try:
        with progress_display(as_json=as_json) as progress:
            deployment = deployments.start(options, progress)
            stopping.mine = frozenset([deployment.name])
        took_s = time.monotonic() - began
        emulated = deployment.release.emulated
        _tell_ready(deployment.name, deployment.url, took_s, emulated, detached=wish.detach, as_json=as_json)
        if wish.detach:
            return
        _wait_until_gone(deployment.name)
    except BaseException as error:
        stopping.cleaning = True
        if deployment is None:
            raise  # what a start had begun, it has ended itself
        if isinstance(error, Interrupted):
            note("stopping; Ctrl-C again ends everything at once")
        with progress_display(as_json=as_json) as progress:
            deployment.stop(progress)
        if not isinstance(error, Interrupted):
            raise


def _wait_until_gone(name: str) -> None:
    """Return when another command takes the application down; DeployError when its processes end by themselves."""
    state = StateStore(Paths.from_env().state)
    while (app := state.find(name)) is not None:
        if app.is_stale():
            raise DeployError(f"the processes of {name} have ended; `patchwork logs {name}` may tell why")
        time.sleep(WATCH_EVERY_S)


def _tell_ready(name: str, url: str, took_s: float, emulated: Sequence[str], *, detached: bool, as_json: bool) -> None:
    if as_json:
        ready = {"event": "ready", "name": name, "url": url, "seconds": round(took_s, 3), "emulated": list(emulated)}
        fact_json(ready, indent=None)
        return
    fact(f"{name} is ready at {url}")
    if emulated:
        note(f"warning:  emulated, no real work in the time of a profile: {', '.join(emulated)}")
    note(f'ask it:   patchwork invoke {name} "..." --trace')
    note(f"stop it:  {f'patchwork down {name}' if detached else 'Ctrl-C'}")


def down(name: str | None, *, as_json: bool) -> None:
    """Stop one application, or all of them; UnknownApp when there is none of that name."""
    paths = Paths.from_env()
    state = StateStore(paths.state)
    doomed = [state.load(name)] if name is not None else [a for a in state.apps() if not a.is_for_living_programs()]
    left = servers.running(paths) if not doomed else []
    from patchwork_serving import deploy as deployments

    with stop_signals() as stopping, progress_display(as_json=False) as progress:
        stopping.mine = frozenset(app.name for app in doomed)
        stopped: Sequence[str] = deployments.down(name, progress)
    if as_json:
        fact_json({"stopped": list(stopped)})
    elif stopped:
        fact(f"stopped: {', '.join(stopped)}")
    else:
        if state.apps():
            fact("nothing was stopped: what runs here belongs to programs; `patchwork status` names them")
            return
        roles = " and ".join(process.role.capitalize() for process in left)
        fact(f"stopped the {roles} of this home" if left else "nothing was deployed on this machine")


def seconds(option: str, text: str) -> float:
    """A duration of the command line; UsageError names the option."""
    try:
        value = parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not isinstance(value, float) or value <= 0:
        raise UsageError(f"{option}: {text!r} must be more than 0 seconds")
    return value


class StopSignals:
    """What the first and the second signal do. The first unwinds this process, the second ends everything below it."""

    def __init__(self) -> None:
        self.cleaning = False
        self.came = False  #: a signal did, so this process is ending
        self.mine: frozenset[str] = frozenset()  #: applications that end with this command

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.cleaning:
            force(self.mine)
        self.cleaning = self.came = True
        raise Interrupted(signal.Signals(signum).name)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """While inside, SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread."""
    stopping = StopSignals()
    before = {signum: signal.signal(signum, stopping) for signum in STOP_SIGNALS}
    try:
        yield stopping
    finally:
        for signum, handler in before.items():
            # cleaned up and about to exit with its code: one more Ctrl-C must not end it with another
            signal.signal(signum, signal.SIG_IGN if stopping.came else handler)


def force(mine: frozenset[str]) -> None:
    """End every process that was started for ``mine``, and this one, without asking. Data survives: Postgres recovers."""
    doomed = psutil.Process().children(recursive=True)
    try:
        for server in _servers_of(mine):
            process = psutil.Process(server.pid)
            doomed += [*process.children(recursive=True), process]
    finally:
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(doomed, timeout=KILLED_S)
        servers.forget_dead(Paths.from_env())
        # not through Python's streams, which may be in use where the signal came
        os.write(2, b"error: stopped at once, without waiting\n")
        os._exit(1)


def _servers_of(mine: frozenset[str]) -> Sequence[OwnProcess]:
    """Ray and Postgres of this home, which outlive the command that started them; none when another application uses them."""
    paths = Paths.from_env()
    if any(app.name not in mine for app in StateStore(paths.state).apps()):
        return []
    return servers.running(paths)
