"""What a class promises is kept under overload, and goodput with it: on a graph and costs in which faults of the door show.

CRAG's shape, with costs fitted to an H100's rows (3B and 8B engines; rounded). In smaller graphs, with less that nobody can foresee, doors
that broke the promise here kept it.
"""

from __future__ import annotations

import pytest

from kit.scheduled_graphs import crag, plan
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.results import Results
from patchwork_scheduler.simulate import closed_loop, simulate, unloaded_s
from patchwork_scheduler.workload import poisson

CRAG, PLAN = crag(), plan()
COSTS: dict[str, BatchCost | TokenCost] = {
    "embedder": BatchCost((1, 256), (0.0023, 0.0026)),
    "retriever": BatchCost((1, 2), (0.0012, 0.0024)),
    "web": BatchCost.constant(0.3),
    "small": TokenCost(0.0035, 1.09e-5, 4.2e-6, 3.6e-8, call_s=0.0076),
    "large": TokenCost(0.0069, 2.41e-5, 4.5e-6, 4.1e-8, call_s=0.0046),
}


@pytest.fixture(scope="module")
def capacity() -> float:
    closed = closed_loop(CRAG, PLAN, COSTS, in_flight=250, span_s=20.0)
    return closed.offered / closed.end


def run(rate: float, target_share: float, seed: int, requests: int) -> Results:
    slo = SloClass("s", 2.0 * unloaded_s(CRAG, PLAN, COSTS), target_share=target_share)
    return simulate(CRAG, PLAN, COSTS, poisson(rate, seed), slo, requests=requests, seed=seed)


@pytest.mark.parametrize("target_share", [0.98, 0.8])
def test_at_three_times_capacity_no_more_are_late_than_promised_and_goodput_is_kept(
    capacity: float, target_share: float
) -> None:
    late = accepted = in_time = in_time_at_capacity = 0
    for seed in (1, 2, 3):
        over = run(3.0 * capacity, target_share, seed, 3000)
        at = run(capacity, target_share, seed, 1000)
        late, accepted = late + over.missed, accepted + over.accepted
        in_time, in_time_at_capacity = in_time + over.attained, in_time_at_capacity + at.attained
    # of some 1,400 (1,800) that were let in; a promise of 2 % is one of 28, which scatter by five
    assert late <= (1.5 if target_share > 0.9 else 1.0) * (1.0 - target_share) * accepted
    assert in_time >= 0.85 * in_time_at_capacity
    assert in_time >= (0.35 if target_share > 0.9 else 0.45) * 3000
