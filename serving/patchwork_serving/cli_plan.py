"""``patchwork plan``: replicas, batches and resources per component, from a profile."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from patchwork_adapters.target import parse_target
from patchwork_scheduler.errors import InvalidInput
from patchwork_scheduler.plan import make_plan
from patchwork_scheduler.plan_model import Fixed, Goal, Plan
from patchwork_scheduler.plan_sharing import needed_cores, sharing_cores
from patchwork_scheduler.profile_model import ComponentProfile, Profile
from patchwork_scheduler.resources import Resources
from patchwork_serving import build_process
from patchwork_serving.cli_options import seconds
from patchwork_serving.cli_output import check_output, console, fact, hand_over, note, table
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.cli_signals import stop_signals
from patchwork_serving.components.llamacpp_engine import available_cores
from patchwork_serving.config import ComponentConfig, Config, Paths, load_config
from patchwork_serving.errors import UsageError
from patchwork_serving.gpus import gpu_names


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for; None: not said."""

    target: str
    profile: Path
    slo: str | None = None
    rate: float | None = None
    cpus: float | None = None
    gpus: int | None = None
    resources: Path | None = None
    max_utilisation: float | None = None
    config: Path | None = None
    output: Path | None = None


def plan(wish: Wish, *, as_json: bool) -> None:
    """Print the plan and write it where asked. Raises what :func:`make` raises, and UsageError where it cannot be written."""
    if wish.output is not None:
        check_output(wish.output)
    hand_over(make(wish), wish.output, as_json=as_json, show=show)
    if wish.output is not None and not as_json:
        note(f"written to {wish.output}; serve it: patchwork deploy {wish.target} --plan {wish.output}")


def make(wish: Wish, *, progress_as_json: bool = False) -> Plan:
    """The plan, with what it was made from; only a process that imports the module is started.

    Raises UsageError, InvalidInput, ProfileMismatch, NoFeasiblePlan.
    """
    goal, resources = _goal(wish), _resources(wish)
    profile = Profile.load(wish.profile)
    config = load_config(wish.config, beside=parse_target(wish.target).folder)
    profile.check_components(_components(wish.target, config, progress_as_json=progress_as_json))
    profile = with_shares(profile, config)
    # as a deployment does: what the command line promises goes before patchwork.yaml
    goal = dataclasses.replace(goal, slo_s=goal.slo_s or config.slo_s, fixed=fixed_choices(profile, config))
    by_hand = {name for name, choice in config.components.items() if choice.num_cpus is not None}
    shared = sharing_cores(profile, resources, goal.fixed, by_hand)
    found = dataclasses.replace(make_plan(shared, resources, goal), profile=shared, resources=resources)
    if shared is not profile:
        needed = needed_cores(profile, resources, goal.fixed)
        note(
            f"one replica of everything keeps {needed:.3g} cores busy and there are {resources.nodes[0].cpus:g}: replicas share"
            f" them; components.ID.num_cpus in patchwork.yaml fixes a share"
        )
    return found


def with_shares(profile: Profile, config: Config) -> Profile:
    """Replicas take the cores and GPUs that ``patchwork.yaml`` gives them, instead of those they were seen to keep busy."""
    return dataclasses.replace(
        profile, components=tuple(_shared(c, config.components.get(c.id)) for c in profile.components)
    )


def _shared(component: ComponentProfile, wish: ComponentConfig | None) -> ComponentProfile:
    if wish is None or (wish.num_cpus is None and wish.num_gpus is None):
        return component
    measured = tuple(m.given(cpus=wish.num_cpus, gpus=wish.num_gpus) for m in component.measured)
    return dataclasses.replace(component, measured=measured)


def fixed_choices(profile: Profile, config: Config) -> Mapping[str, Fixed]:
    """What ``patchwork.yaml`` says of components; a batch that was not measured is told by the planner."""
    profiled = {c.id: c for c in profile.components}
    fixed = {}
    for name, wish in config.components.items():
        if name not in profiled or profiled[name].external:
            continue  # kept in the orchestrator, or a hosted API: nothing to place
        if wish.replicas is not None or wish.max_batch is not None:
            count = wish.replicas
            fixed[name] = Fixed(batch=wish.max_batch, min_replicas=count, max_replicas=count)
    return fixed


def _goal(wish: Wish) -> Goal:
    if wish.rate is not None and not (math.isfinite(wish.rate) and wish.rate > 0):
        raise UsageError(
            f"--rate: {wish.rate:g} must be more than 0 requests/s; leave it out for as many as the resources bear"
        )
    use = wish.max_utilisation
    if use is not None and not 0 < use <= 1:
        raise UsageError(f"--max-utilisation: {use:g} must be above 0 and at most 1")
    slo_s = seconds("--slo", wish.slo) if wish.slo is not None else None
    return Goal(rate_per_s=wish.rate, slo_s=slo_s, max_utilisation=1.0 if use is None else use)


def _resources(wish: Wish) -> Resources:
    """Those of ``--resources``, or one machine: this one, but for what ``--cpus`` and ``--gpus`` say."""
    if wish.resources is not None:
        if wish.cpus is not None or wish.gpus is not None:
            raise UsageError("give --resources, or --cpus and --gpus")
        return _read_resources(wish.resources)
    for option, count in (("--cpus", wish.cpus), ("--gpus", wish.gpus)):
        if count is not None and not (math.isfinite(count) and count >= 0):
            raise UsageError(f"{option}: {count:g} must be 0 or more")
    cpus = float(available_cores()) if wish.cpus is None else wish.cpus
    gpus = len(gpu_names()) if wish.gpus is None else wish.gpus
    if not cpus and not gpus:
        raise UsageError("--cpus: 0 with no GPU leaves nothing to run on; give one of --cpus and --gpus")
    # a machine that is only imagined has as much memory as it needs
    memory = int(psutil.virtual_memory().total) if wish.cpus is None and wish.gpus is None else None
    return Resources.machine(cpus=cpus, gpus=gpus, memory_bytes=memory)


def _read_resources(path: Path) -> Resources:
    try:
        return Resources.from_json(json.loads(path.read_text(encoding="utf-8")), what=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--resources: cannot read {path} ({type(error).__name__})") from error
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise UsageError(f"--resources: {path} is not JSON ({error})") from error


def _components(target: str, config: Config, *, progress_as_json: bool) -> list[str]:
    """Ids of the chain's components, found in a process of its own."""
    request = build_process.BuildRequest(target, "plan", config.model_dump(mode="json"), inspect_only=True)
    with stop_signals(), progress_display(as_json=progress_as_json) as progress:
        try:
            graph = build_process.inspect(request, progress, Paths.from_env())
        except BaseException:
            build_process.cancel_running()
            raise
    return [component.id for component in graph.components]


def show(found: Plan) -> None:
    """The plan as a table and a few sentences."""
    rows = table("component", "on", "replicas", "batch", "cpus", "gpus", "calls/s", "used", "alone")
    for component in found.components:
        for place in component.placements:
            on = place.hardware if place.node_type == "machine" else f"{place.hardware} of {place.node_type}"
            rows.add_row(
                component.id, on, str(place.replicas), str(place.batch), f"{place.cpus * place.replicas:g}",
                f"{place.gpus * place.replicas:g}", f"{place.calls_per_s:.4g}", f"{component.utilisation:.0%}",
                f"{component.path_s * 1000:.4g} ms",
            )  # fmt: skip
    console().print(rows)
    asked = f" ({found.target_rate_per_s:g} asked for)" if found.target_rate_per_s else ""
    fact(f"sustains {found.rate_per_s:.4g} requests/s{asked}, limited by {found.bottleneck}; {_cost(found)}")
    if found.core_s is not None:
        fact(f"replicas share cores, and that limits it: a request keeps one busy for {found.core_s:.3g} s")
    promise = f"; the SLO is {found.slo_s:g} s" if found.slo_s else ""
    fact(
        f"one request alone takes {found.path_s:.3g} s, {found.full_batch_path_s:.3g} s when every batch is full{promise}"
    )
    to = " at most" if found.target_rate_per_s else ""
    for more in found.marginals:
        where = "" if more.node_type == "machine" else f" in {more.node_type}"
        fact(
            f"one more {more.resource.upper()}{where}: {f'+{more.gain_per_s:.3g} requests/s{to}' if more.gain_per_s else 'no gain'}"
        )


def _cost(found: Plan) -> str:
    """With the prices, where all nodes have the same."""
    nodes = found.resources.nodes if found.resources else ()
    prices = {(node.cpu_price, node.gpu_price) for node in nodes}
    if len(prices) != 1:
        return f"cost {found.cost:g} in the nodes' prices"
    ((cpu, gpu),) = prices
    return f"cost {found.cost:g} (a core {cpu:g}, a GPU {gpu:g})"
