"""An engine behind the host of its kind, as a component's settings say."""

from __future__ import annotations

import time
from collections.abc import Callable

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.learned import LearnedBatchCost, cost_of
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.batch_host import BatchHost
from patchwork_serving.components.continuous_host import ContinuousHost
from patchwork_serving.components.engine import BatchEngine, ContinuousEngine
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.release import ComponentSpec


def host_of(
    spec: ComponentSpec,
    engine: BatchEngine | ContinuousEngine,
    *,
    replica: str,
    parallel_batches: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> ComponentHost:
    """Not started. Raises UnknownPolicy, and IncompleteProfile for a ``cost`` that is none or is one of the other kind of engine."""
    policy = policy_by_name(spec.policy)
    cost = None if spec.cost is None else cost_of(spec.cost)
    if isinstance(engine, ContinuousEngine):
        return ContinuousHost(
            engine, CallQueue(policy, max_batch=1), policy, replica=replica, slots=spec.slots,
            cost=cost if isinstance(cost, TokenCost) else None, bounded=policy.heeds_deadlines, clock=clock,
        )  # fmt: skip
    learned = LearnedBatchCost(cost if isinstance(cost, BatchCost) else None)
    queue = CallQueue(
        policy, max_batch=spec.max_batch, max_wait_s=spec.max_wait_s, cost=learned if policy.heeds_deadlines else None
    )
    return BatchHost(
        engine,
        queue,
        policy,
        learned,
        replica=replica,
        max_batch=spec.max_batch,
        parallel=parallel_batches,
        clock=clock,
    )
