"""``patchwork profile``: measure a chain's components, and write what a plan needs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from patchwork_scheduler.profile_model import Measured, Profile
from patchwork_serving import build_process
from patchwork_serving.cli_bench import read_inputs
from patchwork_serving.cli_options import seconds
from patchwork_serving.cli_output import check_output, console, fact, hand_over, note, table
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.cli_signals import stop_signals
from patchwork_serving.errors import UsageError
from patchwork_serving.profiling import Search


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    target: str
    inputs: Path
    output: Path
    components: tuple[str, ...] = ()
    reuse: Path | None = None
    samples: int = 20
    max_batch: int = 64
    min_gain: float = 0.1
    budget: str | None = None  #: of each component; None: the default, and one for all together
    config: Path | None = None
    input_key: str | None = None


def profile(wish: Wish, *, as_json: bool) -> None:
    """Measure, write, print. Raises UsageError before anything is started, and what the deployment or the components raise."""
    from patchwork_serving import profile as profiles

    search = _search(wish)
    names = tuple(name for given in wish.components for name in given.split(",") if name)
    values = read_inputs(wish.inputs, wish.input_key)[: wish.samples]
    check_output(wish.output)
    reuse = Profile.load(wish.reuse) if wish.reuse is not None else None
    options = profiles.ProfileOptions(wish.target, values, wish.config, search, names, reuse)
    began = time.monotonic()
    with stop_signals(), progress_display(as_json=False) as progress:
        try:
            found = profiles.measure(options, progress)
        except BaseException:
            build_process.cancel_running()
            raise
    hand_over(found, wish.output, as_json=as_json, show=show)
    note(f"measured in {time.monotonic() - began:.0f} s, written to {wish.output}")


def _search(wish: Wish) -> Search:
    if not (math.isfinite(wish.min_gain) and 0 <= wish.min_gain <= 1):
        raise UsageError(f"--min-gain: {wish.min_gain:g} must be a share from 0 to 1")
    search = Search(max_batch=wish.max_batch, least_gain=wish.min_gain)
    if wish.budget is None:
        return search
    return replace(search, budget_s=seconds("--budget", wish.budget), total_s=math.inf)


def show(found: Profile) -> None:
    """A line for each component: how often it is called, what a replica takes and gives."""
    rows = table("component", "visits", "on", "one call", "best batch", "calls/s", "memory", "start", "fit error")
    for component in found.components:
        for measured in component.measured:
            rows.add_row(component.id, f"{component.visits:.3g}", *_cells(measured))
        if component.external:
            rows.add_row(component.id, f"{component.visits:.3g}", "hosted API", f"{component.external_s * 1000:.4g} ms")
    console().print(rows)
    fact(f"{found.origin.samples} samples; the chain's own code takes {found.glue_s * 1000:.3g} ms a request")


def _cells(measured: Measured) -> tuple[str, ...]:
    points = measured.batch_points(min((p.tokens for p in measured.points if p.tokens is not None), default=None))
    best = max(points, key=lambda p: p.calls_per_s)
    needs = [f"{measured.cpus:g} cpus" if measured.cpus else "", f"{measured.gpus:g} gpus" if measured.gpus else ""]
    return (
        " ".join(n for n in needs if n), f"{points[0].seconds * 1000:.4g} ms", str(best.batch), f"{best.calls_per_s:.4g}",
        f"{best.memory_bytes / 2**20:.0f} MiB", f"{measured.cold_start_s:.3g} s",
        "" if measured.fit_error is None else f"{measured.fit_error:.1%}",
    )  # fmt: skip
