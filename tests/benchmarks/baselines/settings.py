"""The ways to run each system that are tried, and ours with one thing switched off at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from baselines.applications import EMBED, Application
from baselines.systems import Engines, Served, composed, ours, whole

Start = Callable[[Application, Engines, float], AbstractContextManager[Served]]


@dataclass(frozen=True)
class Setting:
    """One way to run a system. ``start`` takes the application, its engines and the SLO in seconds."""

    system: str
    name: str
    start: Start


def settings() -> list[Setting]:
    found = [_whole(f"{n} processes", workers=n) for n in (1, 2, 4)]
    found.append(_whole("2 processes, at most 32 each", workers=2, limit=32))
    found += [_composed(replicas, ongoing) for replicas, ongoing in ((1, 100), (2, 100), (2, 16), (0, 100))]
    for system, given in (("ours-fifo", {"scheduler": {"policy": "fifo", "admission": "off"}}), ("ours", {})):
        found += [_ours(system, f"{n} ingress", {"ingress_replicas": n, **given}) for n in (1, 2)]
    for promised in (0.9, 0.98):  # what is refused and what is late (the deadline is --slo's)
        classes = {"normal": {"deadline": "60s", "target_share": promised, "default": True}}
        found.append(_ours("ours", f"1 ingress, {promised} promised", {"ingress_replicas": 1, "slo": classes}))
    return found


def _whole(name: str, **options: Any) -> Setting:
    return Setting("whole", name, lambda app, engines, slo: whole(app, engines, **options))


def _composed(replicas: int, ongoing: int) -> Setting:
    name = f"{replicas or 'autoscaled'} replicas, {ongoing} ongoing"
    return Setting(
        "composed", name, lambda app, engines, slo: composed(app, engines, replicas=replicas, ongoing=ongoing)
    )


def _ours(system: str, name: str, given: dict[str, Any]) -> Setting:
    return Setting(system, name, lambda app, engines, slo: ours(app, engines, slo_s=slo, settings=given))


# -- the ablation

#: Engines of each model when all share evenly; and the same number of engines shared out by what a request asks of each.
EVENLY = 2
PLANNED = {"crag": {"grader": 3, "generator": 2, "rewriter": 1}}


def ablations(app: Application) -> list[Setting]:
    """Ours with several engines of each model, and with one thing off at a time."""
    planned, even = _engines(app, PLANNED.get(app.name, {})), _engines(app, {})
    alone = {name: {**settings, "slots": 1} for name, settings in planned.items()}
    unbatched = {**alone, f"embedder-{EMBED}": {"max_batch": 1}, "retriever-store": {"max_batch": 1}}
    given: dict[str, dict[str, Any]] = {
        "all on": {"components": planned},
        "batching off": {"components": unbatched},
        "parallel leaves off": {"components": planned, "scheduler": {"calls_per_request": 1}},
        "allocation off": {"components": even},
        "slack order off": {"components": planned, "scheduler": {"policy": "fifo"}},
        "admission off": {"components": planned, "scheduler": {"admission": "off"}},
        "prefix routing off": {"components": planned, "scheduler": {"prefix_routing": False}},
    }
    if even == planned:
        del given["allocation off"]
    return [_ours("ablation", name, settings) for name, settings in given.items()]


def _engines(app: Application, chosen: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    names = [name for name in app.emulated if name != EMBED]
    # emulated engines sleep: six of them fit onto two cores
    return {f"llm-{name}": {"replicas": chosen.get(name, EVENLY), "num_cpus": 0.05} for name in names}
