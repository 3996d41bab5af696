"""``patchwork deploy`` and ``patchwork down``: start, stay in the foreground, stop everything."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patchwork_serving import servers, telemetry
from patchwork_serving.cli_faults import Interrupted
from patchwork_serving.cli_options import seconds
from patchwork_serving.cli_output import fact, fact_json, note
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.cli_signals import StopSignals, stop_signals
from patchwork_serving.config import Paths
from patchwork_serving.errors import DeployError, UsageError
from patchwork_serving.state import StateStore

if TYPE_CHECKING:
    from patchwork_scheduler.plan_model import Plan

#: how often the foreground looks whether what it serves is still there
WATCH_EVERY_S = 1.0


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
    profile: Path | None = None  #: to make a plan from
    rate: float | None = None


def deploy(wish: Wish, *, as_json: bool) -> None:
    """Deploy and, unless detached, serve until a signal comes; nothing is left running after an error or a signal."""
    telemetry.check_environment()
    slo_s = seconds("--slo", wish.slo) if wish.slo is not None else None
    if wish.config is not None and not wish.config.is_file():
        raise UsageError(f"--config: there is no file {wish.config}")
    plan = _plan(wish, as_json=as_json)
    with stop_signals() as stopping:
        _serve(wish, slo_s, plan, stopping, as_json=as_json)


def _plan(wish: Wish, *, as_json: bool) -> Plan | None:
    """Read or made before anything starts: a plan that makes no sense, or that cannot be, touches nothing."""
    if wish.profile is not None:
        return _made(wish, wish.profile, as_json=as_json)
    if wish.rate is not None:
        raise UsageError("--rate: it is for a plan that deploy makes itself, from a --profile")
    if wish.plan is None:
        return None
    from patchwork_scheduler.plan_model import Plan

    return Plan.load(wish.plan)


def _made(wish: Wish, profile: Path, *, as_json: bool) -> Plan:
    """The plan that ``patchwork plan`` would make, told as it would."""
    if wish.plan is not None:
        raise UsageError("give one of --plan and --profile")
    if os.environ.get("RAY_ADDRESS"):
        raise UsageError(
            "--profile: deploy plans for this machine, and RAY_ADDRESS names a cluster; describe its nodes to"
            " `patchwork plan --resources`, and give the result as --plan"
        )
    from patchwork_serving import cli_plan  # not at the top: a deployment without needs no solver

    asked = cli_plan.Wish(wish.target, profile, wish.slo, wish.rate, config=wish.config)
    found = cli_plan.make(asked, progress_as_json=as_json)
    if as_json:
        fact_json({"event": "plan", "plan": found.to_json()}, indent=None)
    else:
        cli_plan.show(found)
    return found


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
