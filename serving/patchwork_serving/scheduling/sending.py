"""Which replica of a component each call was sent to, and what became of it: one router per component. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from patchwork_scheduler.router import Router
from patchwork_serving.scheduling.costs import Predicted
from patchwork_serving.wire import Report


@dataclass(slots=True)
class Sending:
    """One attempt of a call."""

    call_id: str
    component: str
    replica: str  #: name in the router, ``component#unique id``; empty while no replica is known
    predicted: Predicted
    saved_s: float = 0.0  #: of what is predicted, by what the replica had seen of the prompt
    over: bool = False

    @property
    def hint(self) -> str:
        """What Serve calls the replica."""
        return self.replica.rpartition("#")[2]


@dataclass(frozen=True, slots=True)
class Asking:
    """A question for a replica's pulse."""

    component: str
    replica: str  #: as in ``Sending``

    @property
    def hint(self) -> str:
        """What Serve calls the replica."""
        return self.replica.rpartition("#")[2]


class Replicas:
    """Of one component, as this process sees them."""

    def __init__(self, component: str) -> None:
        self.component = component
        self.router = Router()
        self._names: Collection[str] = ()
        self._queued: dict[str, float] = {}  #: replica -> when what waited in it, by its last word, will be done
        self._least_queued: float | None = None  #: of those; None: to be looked for
        self._ids = itertools.count()

    def __len__(self) -> int:
        return len(self._names)

    def update(self, unique_ids: Collection[str], now: float) -> bool:
        """The replicas that exist now; whether they are others than before."""
        if unique_ids is self._names:  # the common case: the same object until Serve tells of a change
            return False
        self._names = unique_ids
        names = [f"{self.component}#{one}" for one in unique_ids]
        self.router.set_replicas(names, now)
        self._queued = {name: until for name, until in self._queued.items() if name in names}
        self._least_queued = None
        return True

    def send(
        self, call_id: str, predicted: Predicted, now: float, saved_s: dict[str, float] | None, exclude: Collection[str]
    ) -> Sending:
        """Choose for a call; it counts as sent."""
        name = self.router.choose(predicted.occupied_s, now, saved_s=saved_s, exclude=exclude) or ""
        if name:
            self.router.sent(name, call_id, predicted.occupied_s, now, alone_s=predicted.alone_s)
        return Sending(call_id, self.component, name, predicted, saved_s.get(name, 0.0) if saved_s else 0.0)

    def replied(self, sending: Sending, report: Report | None, now: float) -> None:
        """A reply came, perhaps from another replica than the one chosen (that one was gone when the call got to it)."""
        name = report.replica if report is not None else sending.replica
        if name != sending.replica:
            self.router.left(sending.replica, sending.call_id)
        if report is None:
            self.router.replied(name, sending.call_id, now, backlog_s=None)
            return
        self._queued[name] = now + report.queued_s
        self._least_queued = None
        alone = sending.predicted.alone_s - (sending.saved_s if name == sending.replica else 0.0)
        # in company a call takes longer without the replica being slow, and what it had kept does not make it a faster one
        ratio = report.service_s / alone if report.batch <= 1 and alone > 0.0 else None
        self.router.replied(name, sending.call_id, now, backlog_s=report.queued_s + report.running_s, ratio=ratio)

    def queued_s(self, now: float) -> float:
        """Seconds of work that waits in the replica with the least of it, as last told and drained since."""
        if len(self._queued) < len(self._names):
            return 0.0  # one that has not said anything may be idle
        if self._least_queued is None:
            self._least_queued = min(self._queued.values(), default=0.0)
        return max(0.0, self._least_queued - now)

    def has_others(self, exclude: Collection[str]) -> bool:
        """Whether a replica exists where the call has not failed yet."""
        return any(f"{self.component}#{one}" not in exclude for one in self._names)
