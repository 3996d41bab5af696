"""The queue of one replica: orders calls by a policy and cuts batches from its head. Pure: ``now`` is an argument.

Why no call starves, whatever the policy: a rank is at least ``arrived`` (fifo), ``arrived - A`` (edf, least slack: deadlines lie
after arrival, ``A`` bounds the work ahead) or, once flagged, in arrival order (paper). Ranks thus grow with time: a call of rank r
is overtaken only by calls that arrive before r + A, of which there are finitely many. A call's rank turns at most once, by a finite
amount. So each call comes to the head after finitely many others.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator

from patchwork_scheduler.model import Call
from patchwork_scheduler.policies import Policy

Entry = tuple[float, int, str]


class CallQueue:
    """Calls in the order of ``policy.rank`` (lowest first, arrival order among equals).

    Owned by one replica host; not thread-safe. ``max_batch`` counts work items, not calls: a call larger than it runs alone.
    ``max_wait_s`` is how long the oldest call may be held to let a batch form; 0 cuts a batch as soon as it is asked for.
    ``cost`` gives the seconds of a batch by its items: with it, a batch is not held so long that the tightest deadline in it, which
    could still be met, is lost; nor grown so long, unless those who would join lose more deadlines by waiting behind it.
    """

    def __init__(
        self, policy: Policy, *, max_batch: int, max_wait_s: float = 0.0, cost: Callable[[float], float] | None = None
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        if max_wait_s < 0:
            raise ValueError(f"max_wait_s must not be negative, not {max_wait_s}")
        self._policy = policy
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._cost = cost
        # Each heap may hold entries of calls that left, or (ranks) whose rank turned: recognised by their order number.
        self._ranks: list[Entry] = []
        self._turns: list[tuple[float, int, str, float]] = []
        self._arrivals: list[Entry] = []
        self._starts: list[Entry] = []
        self._waiting: dict[str, Call] = {}
        self._live: dict[str, int] = {}  # call id -> order number of its valid rank entry
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
        if not self._waiting:  # what the heaps hold is of calls that left
            self._ranks.clear()
            self._turns.clear()
        order = next(self._order)
        self._waiting[call.id] = call
        self._live[call.id] = order
        self._size += call.size
        heapq.heappush(self._ranks, (self._policy.rank(call), order, call.id))
        if len(self._ranks) > 64 + 4 * len(self._waiting):  # mostly of calls that left
            self._ranks = [e for e in self._ranks if self._live.get(e[2]) == e[1]]
            heapq.heapify(self._ranks)
        turn = self._policy.turn(call)
        if turn is not None:
            heapq.heappush(self._turns, (turn.when, order, call.id, turn.rank))
        if self._max_wait_s > 0.0:
            heapq.heappush(self._arrivals, (call.arrived, order, call.id))
            if call.deadline is not None:
                heapq.heappush(self._starts, (self._held_until(call), order, call.id))

    def remove(self, call_id: str) -> bool:
        """Take a call out (its caller left); False when it was not waiting."""
        call = self._waiting.pop(call_id, None)
        if call is None:
            return False
        self._size -= call.size
        del self._live[call_id]  # its heap entries are skipped when they come up
        return True

    def ready_at(self, now: float, *, idle: bool = False) -> float | None:
        """When the next batch should be cut; None when empty.

        Now when it is full, when nothing is held, or when the engine is ``idle`` (holding would waste it); else when the oldest call
        has waited long enough, or when the tightest deadline forbids to hold on.
        """
        if not self._waiting:
            return None
        if idle or self._max_wait_s == 0.0 or self._size >= self._max_batch:
            return now
        due = self._first(self._arrivals) + self._max_wait_s
        return max(now, min(due, self._first(self._starts)))

    def peek(self, now: float) -> Call | None:
        """The call that the next batch starts with."""
        self._take_turns(now)
        entry = self._head()
        return None if entry is None else self._waiting[entry[2]]

    def next_batch(self, now: float, *, limit: int | None = None) -> tuple[Call, ...]:
        """Calls to run together, best rank first; empty when none waits. Calls past their deadline come out too: see ``expire``.

        ``limit``: at most so many calls.
        """
        self._take_turns(now)
        batch: list[Call] = []
        size, finish = 0, math.inf
        while (entry := self._head()) is not None and (limit is None or len(batch) < limit):
            call = self._waiting[entry[2]]
            if batch and size + call.size > self._max_batch:
                break
            if batch and not self._in_time(size + call.size, finish, now):
                batch += self._worth_joining(batch, size, now, limit)
                break
            heapq.heappop(self._ranks)
            del self._waiting[call.id], self._live[call.id]
            self._size -= call.size
            batch.append(call)
            size += call.size
            if size >= self._max_batch or not self._waiting:
                break
            if self._cost is not None:
                finish = min(finish, self._latest_finish(call, now, size))
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
        assert self._live.keys() == self._waiting.keys()
        valid = {(order, call_id) for _, order, call_id in self._ranks}
        assert all((order, call_id) in valid for call_id, order in self._live.items())

    # -- inside ----------------------------------------------------------------------------------------------------

    def _head(self) -> Entry | None:
        ranks, live = self._ranks, self._live
        while ranks:
            entry = ranks[0]
            if live.get(entry[2]) == entry[1]:
                return entry
            heapq.heappop(ranks)
        return None

    def _take_turns(self, now: float) -> None:
        """Give the calls whose turn has come their other rank."""
        turns = self._turns
        if not turns or turns[0][0] >= now:
            return
        while turns and turns[0][0] < now:
            _, order, call_id, rank = heapq.heappop(turns)
            if self._live.get(call_id) == order:
                self._live[call_id] = again = next(self._order)
                heapq.heappush(self._ranks, (rank, again, call_id))

    def _first(self, heap: list[Entry]) -> float:
        """The least value of a waiting call in ``heap``; infinite when there is none."""
        while heap and (heap[0][2] not in self._waiting):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def _held_until(self, call: Call) -> float:
        """A full batch takes longer than the call alone, and the timer may be late by one hold: keep room for the larger."""
        growth = 0.0 if self._cost is None else self._cost(self._max_batch) - self._cost(call.size)
        return call.latest_start - max(self._max_wait_s, growth)

    def _latest_finish(self, call: Call, now: float, size: int) -> float:
        """By when the batch, now of ``size``, must end for ``call`` to be in time; infinite when it cannot be even so."""
        if self._cost is None or call.deadline is None:
            return math.inf
        finish = call.deadline - call.after_s
        return finish if now + self._cost(size) <= finish else math.inf

    def _in_time(self, size: int, finish: float, now: float) -> bool:
        return self._cost is None or finish == math.inf or now + self._cost(size) <= finish

    def _worth_joining(self, batch: list[Call], size: int, now: float, limit: int | None) -> list[Call]:
        """Who joins although the tightest of ``batch`` is lost by that: nobody, unless more would be lost by waiting behind a small batch.

        Without this, an engine whose batches cost little more than single calls would, when busy, serve single calls: each lets the
        next ones get tight.
        """
        assert self._cost is not None
        entries, joining = self._following(self._max_batch - size, None if limit is None else limit - len(batch))
        more = sum(call.size for call in joining)
        small, full = now + self._cost(size), now + self._cost(size + more)
        behind = small + self._cost(more)
        lost_by_growing = sum(small <= _finish(call) < full for call in batch)
        lost_by_waiting = sum(full <= _finish(call) < behind for call in joining)
        if lost_by_waiting > lost_by_growing:
            for call in joining:
                self.remove(call.id)
            return joining
        for entry in entries:
            heapq.heappush(self._ranks, entry)
        return []

    def _following(self, size: int, limit: int | None) -> tuple[list[Entry], list[Call]]:
        """The next calls up to ``size`` items, taken from the order but not from the queue."""
        entries: list[Entry] = []
        calls: list[Call] = []
        while (entry := self._head()) is not None and (limit is None or len(calls) < limit):
            call = self._waiting[entry[2]]
            size -= call.size
            if size < 0:
                break
            entries.append(heapq.heappop(self._ranks))
            calls.append(call)
        return entries, calls


def _finish(call: Call) -> float:
    """By when the call must be done for its request to be in time."""
    return math.inf if call.deadline is None else call.deadline - call.after_s
