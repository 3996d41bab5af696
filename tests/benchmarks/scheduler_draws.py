"""One run is one draw: the same loads again and again with other arrivals and other requests, and what is left when chance is averaged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scipy.stats import t

from patchwork_scheduler.results import Results

if TYPE_CHECKING:
    from bench_scheduler import Case

#: Seeds of what requests do and of Poisson arrivals; of a trace, the n-th starts at the n-th thirteenth of it.
DRAWS = tuple(range(21, 33))
PROMISES = (0.98, 0.8)
OVERLOAD = 3.0


#: (case, arrivals, policy, load, draw) -> what became of it
Run = Callable[["Case", str, str, float, int], Results]
Job = tuple["Case", str, tuple[float, ...], Run, int]


def stretch(times: Sequence[float], draw: int) -> list[float]:
    """The trace from somewhere else on; at its end it goes on from its beginning."""
    start = len(times) * (DRAWS.index(draw) + 1) // (len(DRAWS) + 1)
    span = times[-1] - times[0] + (times[-1] - times[0]) / (len(times) - 1)
    return [*times[start:], *(time + span for time in times[:start])]


def draws(
    cases: Sequence[Case], kinds: Sequence[str], loads: Sequence[float], run: Run, pool: Executor
) -> list[dict[str, Any]]:
    """One row per graph, arrivals and promise. ``run`` is pickled."""
    jobs: list[Job] = [
        (replace(one, slo=replace(one.slo, target_share=promise)), kind, tuple(loads), run, draw)
        for one in cases for kind in kinds for promise in PROMISES for draw in DRAWS
    ]  # fmt: skip
    done = pool.map(_draw, jobs)
    return [_row(job, [next(done) for _ in DRAWS]) for job in jobs[:: len(DRAWS)]]


def _draw(job: Job) -> dict[float, dict[str, float]]:
    """Figures by load; of the ideal queue, too, where what is late matters most."""
    one, kind, loads, run, draw = job
    found: dict[float, dict[str, float]] = {}
    for load in loads:
        ours = run(one, kind, "least_slack", load, draw)
        found[load] = {
            "attained_share": ours.attained_share, "missed_share_of_accepted": ours.missed_share, "goodput_per_s": ours.goodput(),
        }  # fmt: skip
        if one.slo.target_share == PROMISES[0]:
            ideal = run(one, kind, "ideal", load, draw)
            found[load]["behind_ideal"] = ideal.attained_share - ours.attained_share
    return found


def _row(job: Job, found: Sequence[Mapping[float, Mapping[str, float]]]) -> dict[str, Any]:
    one, kind, loads, *_ = job
    promised = one.slo.target_share
    kept = (
        [draw[OVERLOAD]["goodput_per_s"] / max(at["goodput_per_s"] for at in draw.values()) for draw in found]
        if OVERLOAD in loads
        else []
    )
    return {
        "graph": one.graph, "arrivals": kind, "target_share": promised,
        "by_load": [{"load": load, **_figures([draw[load] for draw in found], promised)} for load in loads],
        **({"goodput_at_3_of_best": _spread(kept)} if kept else {}),
    }  # fmt: skip


def _figures(draws: Sequence[Mapping[str, float]], promised: float) -> dict[str, Any]:
    names = [name for name in draws[0] if name != "goodput_per_s"]
    over = sum(draw["missed_share_of_accepted"] > 1.0 - promised for draw in draws)
    return {**{name: _spread([draw[name] for draw in draws]) for name in names}, "draws_over": over}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, what it is good to (95 %, Student), and both ends."""
    error = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "within": float(error), "least": min(values), "most": max(values)}


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        late = [
            f"{at['load']:g}: {100 * at['missed_share_of_accepted']['mean']:.2f} +- {100 * at['missed_share_of_accepted']['within']:.2f}"
            f" (most {100 * at['missed_share_of_accepted']['most']:.1f}, {at['draws_over']} over)"
            for at in row["by_load"]
        ]
        kept = row.get("goodput_at_3_of_best", {})
        yield f"{row['graph']} {row['arrivals']} {row['target_share']}: late of accepted, % at {'; '.join(late)}; kept at 3 x {kept}"
