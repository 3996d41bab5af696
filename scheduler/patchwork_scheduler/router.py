"""Which replica gets a call: the one that is predicted to finish it first. Pure: ``now`` is an argument.

What is known of a replica is its last report (seconds of work waiting and running, told with each reply) and what was sent to it since.
Between reports the work is taken to drain at one second per second, so a stale report fades instead of misleading.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from patchwork_scheduler.heartbeat import Heart

#: While nobody takes pulses (``heartbeat``): a replica whose oldest call is so much overdue (or by as long as it should have taken, as
#: answers differ in length), and that said nothing for so long, is asked only when the others are worse.
SUSPECT_AFTER_S = 0.5
#: How long a lost replica is left alone before one call tries it again; doubles with each further loss.
RETRY_AFTER_S = 1.0
RETRY_AT_MOST_S = 30.0
#: How long a slow replica's word for that counts: whoever gets no calls says nothing, and must be tried again.
SLOW_FOR_S = 10.0


@dataclass(slots=True)
class _Replica:
    name: str
    backlog_s: float = 0.0  #: work waiting and running in it, at ``reported``, other senders' included
    reported: float = 0.0
    sent_s: float = 0.0  #: work sent since the report, not yet in it
    outstanding_s: float = 0.0  #: work that this sender has there and no reply to
    speed: float = 1.0  #: measured over predicted seconds of its calls: 2.0 is half as fast
    #: call -> (seconds, when the replica is suspect if it is still there)
    outstanding: dict[str, tuple[float, float]] = field(default_factory=dict)
    heard: float = -math.inf  #: when it last said anything: a reply, or a piece of one
    lost_until: float = 0.0
    losses: int = 0
    heart: Heart = field(default_factory=Heart)
    slowness: float = 1.0  #: by its last pulse, until ``slow_until``
    slow_until: float = 0.0

    def waiting_s(self, now: float) -> float:
        left = self.backlog_s + self.sent_s
        if now > self.reported:
            left -= now - self.reported
        # What has not been replied to is not done, however old the report: a batch, or an engine that serves all at once.
        if left < self.outstanding_s:
            left = self.outstanding_s
        return left if left > 0.0 else 0.0

    def take(self, call_id: str) -> tuple[float, float] | None:
        """The call is no longer there."""
        gone = self.outstanding.pop(call_id, None)
        if gone is not None:
            left = self.outstanding_s - gone[0]
            self.outstanding_s = left if self.outstanding and left > 0.0 else 0.0
        return gone

    def trouble(self, now: float) -> int:
        """2: lost; 1: suspect, by its heart or, while nobody listens to that, as its oldest call is overdue and it is silent; 0: none."""
        if now < self.lost_until:
            return 2
        heart = self.heart
        if heart.suspect:
            return 1
        if now < heart.watched_until:
            return 0
        if now - self.heard <= SUSPECT_AFTER_S:
            return 0
        for _, overdue in self.outstanding.values():  # dicts keep order: the first is the oldest
            return 1 if now > overdue else 0
        return 0


class Router:
    """Owned by one orchestrator, one per component. Replica names are unique; unknown names raise KeyError."""

    def __init__(self, *, parallel: float = 1.0) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._order: list[_Replica] = []
        self._parallel = parallel
        self._turn = 0

    def __len__(self) -> int:
        return len(self._replicas)

    def set_replicas(self, names: Collection[str], now: float) -> None:
        """The replicas that exist now; what is known of those that stay is kept."""
        self._replicas = {name: self._replicas.get(name) or _Replica(name, reported=now) for name in names}
        self._order = list(self._replicas.values())

    def choose(
        self, work_s: float, now: float, *, saved_s: dict[str, float] | None = None, exclude: Collection[Hashable] = ()
    ) -> str | None:
        """The replica that finishes a call of ``work_s`` first; None when there is none (all excluded or none exist).

        ``saved_s``: replica -> seconds that its cache saves this call. ``exclude``: where the call has failed already.
        Replicas that are lost or suspect come after all others. Among equals they take turns.
        """
        replicas = self._order
        if len(replicas) == 1:
            return None if replicas[0].name in exclude else replicas[0].name
        # One pass with plain comparisons: this is asked for every call, and most of what a decision costs.
        best, best_trouble, best_finish = None, 3, 0.0
        count = len(replicas)
        self._turn = turn = (self._turn + 1) % count if count else 0
        for i in range(turn - count, turn):
            replica = replicas[i]
            if exclude and replica.name in exclude:
                continue
            trouble = replica.trouble(now) if replica.outstanding or replica.losses or replica.heart.suspect else 0
            if trouble > best_trouble:
                continue
            work = work_s
            if saved_s:
                work = max(work_s - saved_s.get(replica.name, 0.0), 0.0)
            finish = replica.waiting_s(now) + work * replica.speed
            if now < replica.slow_until:
                finish *= replica.slowness
            if trouble < best_trouble or finish < best_finish:
                best, best_trouble, best_finish = replica, trouble, finish
        return None if best is None else best.name

    def predicted_s(self, name: str, work_s: float, now: float) -> float:
        """Seconds from now until ``name`` would have finished a call of ``work_s``."""
        replica = self._replicas[name]
        finish = replica.waiting_s(now) + work_s * replica.speed
        return finish * replica.slowness if now < replica.slow_until else finish

    def sent(self, name: str, call_id: str, occupied_s: float, now: float, *, alone_s: float | None = None) -> None:
        """A call went out. ``occupied_s``: by how much it delays others there; ``alone_s``: how long it takes itself."""
        replica = self._replicas[name]
        takes = replica.waiting_s(now) + (occupied_s if alone_s is None else alone_s) * replica.speed
        replica.sent_s += occupied_s
        replica.outstanding[call_id] = (
            occupied_s,
            now + takes + (takes if takes > SUSPECT_AFTER_S else SUSPECT_AFTER_S),
        )
        replica.outstanding_s += occupied_s

    def replied(
        self, name: str, call_id: str, now: float, *, backlog_s: float | None, ratio: float | None = None
    ) -> None:
        """A reply came, with the replica's own account of its work (None: it gave none). ``ratio``: measured over predicted service."""
        replica = self._replicas.get(name)
        if replica is None:
            return  # scaled away meanwhile
        gone = replica.take(call_id)
        replica.heart.heard()
        replica.heard, replica.lost_until, replica.losses = now, 0.0, 0
        if backlog_s is not None:
            replica.backlog_s, replica.reported, replica.sent_s = backlog_s, now, 0.0
        elif gone is not None:
            replica.sent_s = max(0.0, replica.sent_s - gone[0])
        if ratio is not None:
            replica.speed += 0.05 * (min(max(ratio, 0.2), 5.0) - replica.speed)

    def heard(self, name: str, now: float) -> None:
        """A piece of an answer came: the replica is at work, however long that answer becomes."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.heard = now
            replica.heart.heard()

    def tick(self, now: float) -> tuple[list[str], bool]:
        """Look at all hearts: whose pulse is to be taken now, and whether to look again. Nobody's, where there is no choice."""
        if len(self._order) < 2:
            return [], False
        asked = [one.name for one in self._order if one.heart.tick(now, bool(one.outstanding))]
        return asked, any(one.outstanding or one.heart.suspect for one in self._order)

    def pulsed(self, name: str, now: float, *, well: bool, backlog_s: float, slowness: float) -> None:
        """A replica gave its pulse."""
        replica = self._replicas.get(name)
        if replica is None:
            return
        replica.heart.answered(now, well=well)
        replica.heard = now
        replica.slowness, replica.slow_until = slowness, now + SLOW_FOR_S if slowness > 1.0 else 0.0
        replica.backlog_s, replica.reported, replica.sent_s = backlog_s, now, 0.0

    def unanswered(self, name: str) -> None:
        """The question for its pulse did not reach it."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.heart.unanswered()

    def left(self, name: str, call_id: str) -> None:
        """The call was cancelled: it is no sign of life, and no work any more."""
        replica = self._replicas.get(name)
        gone = replica.take(call_id) if replica else None
        if replica is not None and gone is not None:
            replica.sent_s = max(0.0, replica.sent_s - gone[0])

    def lost(self, name: str, call_id: str, now: float) -> None:
        """The replica did not take the call, or died with it: leave it alone for a while."""
        replica = self._replicas.get(name)
        if replica is None:
            return
        self.left(name, call_id)
        replica.lost_until = now + min(RETRY_AFTER_S * 2.0**replica.losses, RETRY_AT_MOST_S)
        replica.losses += 1

    def check_invariants(self) -> None:
        """Assert what must hold between calls; for tests."""
        for replica in self._replicas.values():
            assert replica.sent_s >= 0.0
            assert replica.backlog_s >= 0.0
            assert abs(replica.outstanding_s - sum(one for one, _ in replica.outstanding.values())) < 1e-6
