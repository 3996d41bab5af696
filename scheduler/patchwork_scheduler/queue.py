"""The queue of one replica: orders calls by a policy and cuts batches from its head. Pure: ``now`` is an argument."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from patchwork_scheduler.model import Call
from patchwork_scheduler.policies import Policy


class CallQueue:
    """Calls in the order of ``policy.rank`` (lowest first, arrival order among equals).

    Owned by one replica host; not thread-safe. ``max_batch`` counts work items, not calls: a call larger than it runs alone.
    ``max_wait_s`` is how long the oldest call may be held to let a batch form; 0 cuts a batch as soon as it is asked for.
    """

    def __init__(self, policy: Policy, *, max_batch: int, max_wait_s: float = 0.0) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        if max_wait_s < 0:
            raise ValueError(f"max_wait_s must not be negative, not {max_wait_s}")
        self._policy = policy
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._heap: list[tuple[float, int, str]] = []
        self._waiting: dict[str, Call] = {}
        self._size = 0
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._waiting.values())

    @property
    def size(self) -> int:
        """Work items waiting."""
        return self._size

    def push(self, call: Call) -> None:
        """Add a call; ValueError when its id is already waiting."""
        if call.id in self._waiting:
            raise ValueError(f"call {call.id!r} is already waiting")
        self._waiting[call.id] = call
        self._size += call.size
        heapq.heappush(self._heap, (self._policy.rank(call), next(self._order), call.id))

    def remove(self, call_id: str) -> bool:
        """Take a call out (its caller left); False when it was not waiting."""
        call = self._waiting.pop(call_id, None)
        if call is None:
            return False
        self._size -= call.size
        return True  # its heap entry is skipped when it comes up

    def ready_at(self, now: float) -> float | None:
        """When the next batch should be cut: now when it is full or the oldest call waited long enough; None when empty."""
        if not self._waiting:
            return None
        if self._size >= self._max_batch or self._max_wait_s == 0.0:
            return now
        oldest = min(call.arrived for call in self._waiting.values())
        tightest = min((c.deadline for c in self._waiting.values() if c.deadline is not None), default=None)
        due = oldest + self._max_wait_s
        return max(now, due if tightest is None else min(due, tightest - self._max_wait_s))

    def next_batch(self, now: float) -> tuple[Call, ...]:
        """Calls to run together, best rank first; empty when none waits. Calls past their deadline come out too: see ``expire``."""
        batch: list[Call] = []
        size = 0
        while self._heap:
            rank, order, call_id = heapq.heappop(self._heap)
            call = self._waiting.get(call_id)
            if call is None:
                continue
            if batch and size + call.size > self._max_batch:
                heapq.heappush(self._heap, (rank, order, call_id))
                break
            del self._waiting[call_id]
            self._size -= call.size
            batch.append(call)
            size += call.size
            if size >= self._max_batch:
                break
        return tuple(batch)

    def expire(self, now: float) -> tuple[Call, ...]:
        """Take out the calls whose deadline has passed."""
        late = tuple(c for c in self._waiting.values() if c.deadline is not None and c.deadline <= now)
        for call in late:
            self.remove(call.id)
        return late

    def check_invariants(self) -> None:
        """Assert what must hold between calls; for tests."""
        assert self._size == sum(call.size for call in self._waiting.values())
        assert set(self._waiting) <= {call_id for _, _, call_id in self._heap}
