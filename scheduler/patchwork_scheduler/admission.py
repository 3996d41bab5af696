"""Who comes in: a request that is predicted to miss is refused at the door, before it costs anything. Pure: ``now`` is an argument.

Prediction: a new request takes its own work, and on top the larger of two delays.

- *Drain*: the work of all accepted requests that is still to be done, at the component that is busiest. All of it has earlier deadlines.
- *Sharing*: at each component, the whole work (done or not) that the requests now there bring to it. Where a request spends L seconds at a
  component which is busy for a share u of the time, others take u * L of them; and by Little's law the requests found there bring
  u * L seconds of work. The drain alone would miss this: those who come later slow the request down as well.

Delays of all requests that end are held against those predicted, and their ratio corrects later predictions: how much work of others
delays a request depends on the engines (where prefills ride along with decodes, it is less than the work). The nearer a request came to
what it can bear, the more it counts (late ones in full): those that found few there are delayed by whoever comes later. Requests that came
before anything was known, or found such requests there, are not held against it: nothing was predicted for what delayed them. Nor are
those that nobody delayed: with a rare branch, or a prompt that no cache has, a request may be late by its own work alone. For the same
reason a delay is what is beyond a request's own work, as it turned out.
What is held against it is in hindsight: the delay that would be predicted with what is known of a request's work by now.

How much delay is allowed: what slows the mean request by a share slows one that takes a rare branch, or writes a long answer, by the same
share. Nobody knows beforehand which one it will be. So a request may be stretched as far as the one with ``high_work_s`` can bear, or one
nearer to the mean where the class promises less. Of few requests ``high_work_s`` is the longest, perhaps one of a rush that found
everything cold: it counts only once somebody missed. What is still not known is learnt as a margin, for each class by its own promise: it
narrows when accepted requests miss more often than is steered to, widens slowly when requests that were let in late made it, and recovers
where little goes on. Steered to are so many misses that a thousand requests, by chance, seldom have more than are promised.

Who lets in only what it is sure of never finds out that it is wrong: with a ratio learnt in a bad hour, the second request is refused,
and of those that find nobody none tells anything about delays. So those in time from which nothing was learnt pay for a *probe*: a request
beyond the limit, of which no more are late than the promise leaves room for.

What is accepted is never dropped for what comes later: nothing here takes an acceptance back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

from patchwork_scheduler.estimate import ENOUGH, NOTHING, QUANTILE, Ahead
from patchwork_scheduler.model import SloClass

#: Once shut, the door opens when the prediction is this much better than what shut it: no flapping at the threshold.
REOPEN = 0.95
#: Of the time that a request has to spare, lost per step of priority below the highest class.
PRIORITY_STEP = 0.25
#: A request refused, or late, with less than this of its class's time was its own client's hurry, and says nothing about the others.
USUAL = 0.9
MARGIN_LOW = 0.2
#: Where the rare request misses even alone, no stretch keeps the promise: of what the mean request has to spare, this much is allowed.
UNKEEPABLE = 0.2
#: Weight of a new observation in the ratio of real to predicted delay, and its limits.
RATIO_DECAY = 0.01
RATIO_LOW, RATIO_HIGH = 0.2, 5.0
#: What the ratio starts from: so many requests delayed as predicted, by half of their work.
RATIO_PRIOR, PRIOR_DELAY = 8, 0.5
#: Where less than this of the allowance was predicted, how much work a request happened to bring says more than how it was delayed.
RATIO_TELLING = 0.25
#: From this part of the allowance on it counts in full, and with less by the square of how near it came to this.
NEAR = 0.8
#: Of the margin, a late request says nothing whose delay, by what is known now, is so many times what it can bear: such are refused now.
KNOWN_BETTER = 2.0
#: The widest margin.
MARGIN_HIGH = 1.5
#: Step of the margin when a request misses; for one in time it is as much smaller as misses are to be fewer.
MARGIN_STEP = 0.02
#: Fewer misses are steered to than the promise allows: by so many standard deviations of the share that miss of so many requests.
AIM_DEVIATIONS, AIM_REQUESTS = 1.8, 1000
#: And no fewer than this part of what is allowed: the deviations of a very strict promise are more than the promise itself.
AIM_LEAST = 0.5
#: A request that was predicted to be delayed by less than this of its allowance widens the margin no further than to 1.
TELLING = 0.6
#: Probes that count for nothing: so many in time, and so many late, before the first. Of more than so many, the older ones fade.
PROBES_PRIOR, PROBES_KEPT = (1.0, 1.0), 20.0
#: Of what requests in time have paid for probes, no more is kept: after a long quiet time a rush must not be let in on it.
MOST_PAID = 1.0
#: Weight of a new admission in the shares of classes.
SHARE_DECAY = 0.01
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Admit:
    predicted_s: float  #: from now to the end
    is_probe: bool = False  #: beyond the limit, to learn


@dataclass(frozen=True, slots=True)
class Refuse:
    predicted_s: float
    retry_after_s: float  #: from now until the same request is expected to be admitted, if nobody else comes


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait outside and ask again (the paper's rule); ``check_after_s`` is when it may have changed."""

    predicted_s: float
    check_after_s: float


Decision = Admit | Refuse | Hold
Mode = Literal["refuse", "hold", "open"]


@dataclass(slots=True)
class _Accepted:
    slo: SloClass
    deadline: float
    since: float
    work_s: float  #: expected at the door
    delay_s: float  #: predicted, before the ratio was applied
    foreseen: bool  #: whether the work of this request and of all who were there was known
    is_probe: bool
    number: int  #: how many had been accepted before
    found_nobody: bool
    whole: Mapping[str, float]  #: work that the request was expected to bring
    demand: Mapping[str, float] = field(default_factory=dict)  #: of it, still to be done
    at: str = ""  #: the component where it is
    present: float = 0.0  #: what it counts for there


class Admission:
    """Owned by one orchestrator. ``replicas``: component -> how many carry its work (others' shares taken off by the caller)."""

    def __init__(
        self,
        classes: Collection[SloClass],
        replicas: Mapping[str, float],
        *,
        mode: Mode = "refuse",
    ) -> None:
        self._mode = mode
        self._top = max((one.priority for one in classes), default=0)
        self._parts: dict[str, float] = {}  # of a component's work, what one replica carries
        self.set_replicas(replicas)
        self._backlog: dict[str, float] = dict.fromkeys(replicas, 0.0)  # still to be done
        self._present: dict[str, float] = dict.fromkeys(replicas, 0.0)  # brought by those who are there now
        self._accepted: dict[str, _Accepted] = {}
        self._unknown: set[str] = set()  # of those accepted: nobody knew what they bring
        self._shut: set[str] = set()
        self._shares: dict[str, float] = {one.name: 0.0 for one in classes}
        self._margins: dict[str, float] = {one.name: 1.0 for one in classes}
        self._missed = False  # whether any request that was let in ever did
        self._latest: Ahead | None = None  # what is known of a new request by now
        # class -> late probes that have been paid for, by those in time that told nothing
        self._paid: dict[str, float] = {}
        self._entered = 0  # requests accepted, ever
        self._probing = False  # whether one is in
        self._probes_in_time, self._probes_late = PROBES_PRIOR
        # decayed means over requests that ended and tell something
        self._compared = 0
        self._delay_predicted = self._delay_real = 0.0

    def __len__(self) -> int:
        """Requests accepted and not finished."""
        return len(self._accepted)

    def set_replicas(self, replicas: Mapping[str, float]) -> None:
        self._parts.update((component, 1.0 / max(count, 1e-9)) for component, count in replicas.items())

    def delay_s(self) -> float:
        """By how much a request coming now is delayed by those accepted."""
        drain = sharing = 0.0
        present, parts = self._present, self._parts
        for component, work in self._backlog.items():
            part = parts.get(component, 1.0)
            if work * part > drain:
                drain = work * part
            sharing += present.get(component, 0.0) * part
        return drain if drain > sharing else sharing

    def decide(
        self, slo: SloClass, ahead: Ahead, now: float, deadline: float, *, behind_s: float = 0.0, at_risk: bool = False
    ) -> Decision:
        """Admit, refuse or hold a request of class ``slo`` due at ``deadline``. It is not in until :meth:`accepted`.

        ``behind_s``: seconds of work of which this orchestrator does not know otherwise (reported by the replicas, from other doors).
        ``at_risk``: whether a request that waits is expected to miss (only the paper's rule asks).
        """
        if ahead.known:
            self._latest = ahead
        delay = max(self.delay_s(), behind_s) * self.ratio
        predicted = delay + ahead.work_s
        if self._mode == "open":
            return Admit(predicted)
        if self._mode == "hold":
            return Hold(predicted, 0.05) if at_risk else Admit(predicted)
        allowed = self._allowed_s(slo, ahead, deadline - now)
        if delay <= (allowed * REOPEN if slo.name in self._shut else allowed):
            self._shut.discard(slo.name)
            return Admit(predicted)
        if deadline - now >= USUAL * slo.deadline_s:
            if self._may_probe(slo, delay / self.ratio, allowed):
                return Admit(predicted, is_probe=True)
            self._shut.add(slo.name)
        # work drains at one second per second; a request that is too long even for an idle system gains nothing by waiting
        return Refuse(predicted, delay - max(allowed, 0.0) * REOPEN)

    def accepted(
        self,
        request_id: str,
        slo: SloClass,
        ahead: Ahead,
        deadline: float,
        now: float,
        predicted_s: float,
        *,
        at: str = "",
        is_probe: bool = False,
    ) -> None:
        """The request was let in, and goes to component ``at`` first. ValueError when it is in already."""
        if request_id in self._accepted:
            raise ValueError(f"request {request_id!r} is accepted already")
        delay = max(predicted_s - ahead.work_s, 0.0)
        if not ahead.known:
            self._unknown.add(request_id)
        else:
            self._latest = ahead
        self._accepted[request_id] = _Accepted(
            slo, deadline, now, ahead.work_s, delay / self.ratio, not self._unknown, is_probe,
            self._entered, not self._accepted and delay <= 0.0, ahead.demand,
        )  # fmt: skip
        self._entered += 1
        if is_probe:
            self._probing = True
            self._paid[slo.name] = 0.0
        self.proceeded(request_id, ahead.demand, at)
        for name in self._shares:
            self._shares[name] += SHARE_DECAY * ((name == slo.name) - self._shares[name])

    def proceeded(self, request_id: str, demand: Mapping[str, float], at: str = "") -> None:
        """The request has only ``demand`` before it now, and is at component ``at``."""
        accepted = self._accepted.get(request_id)
        if accepted is None:
            return
        backlog, present = self._backlog, self._present
        for component, seconds in accepted.demand.items():
            backlog[component] -= seconds
        for component, seconds in demand.items():
            backlog[component] = backlog.get(component, 0.0) + seconds
        accepted.demand = demand
        if accepted.at:
            present[accepted.at] -= accepted.present
        accepted.at = at
        if at:
            accepted.present = max(accepted.whole.get(at, 0.0), demand.get(at, 0.0))
            present[at] = present.get(at, 0.0) + accepted.present

    def finished(self, request_id: str, now: float, *, cancelled: bool = False, work_s: float | None = None) -> None:
        """The request ended; unless ``cancelled``, the margin learns whether it was in time. Safe to repeat.

        ``work_s``: what its own work turned out to be, seconds with the engines to itself; None: what was expected at the door.
        """
        self.proceeded(request_id, {})
        accepted = self._accepted.pop(request_id, None)
        self._unknown.discard(request_id)
        if not self._accepted:
            self._backlog = dict.fromkeys(self._backlog, 0.0)  # rounding must not add up
            self._present = dict.fromkeys(self._present, 0.0)
        if accepted is None:
            return
        if accepted.is_probe:
            self._probing = False
        if cancelled or self._mode != "refuse":
            return
        late = now > accepted.deadline
        if late and accepted.deadline - accepted.since < USUAL * accepted.slo.deadline_s:
            return  # its own client's hurry
        alone = accepted.found_nobody and self._entered == accepted.number + 1
        delay = accepted.delay_s * self._hindsight(accepted)
        allowed = self._allowed_s(accepted.slo, self._latest or NOTHING, accepted.deadline - accepted.since)
        share = delay * self.ratio / max(allowed, 1e-9)
        if accepted.foreseen and not alone:
            self._compare(accepted, delay, share, now, work_s)
        slo, margin = accepted.slo, self._margins.get(accepted.slo.name, 1.0)
        if not (late and alone):  # that was its own work, which no door makes less
            self._pay(accepted, share, late)
        if late and accepted.is_probe:
            return  # as predicted: no reason to be stricter
        if late:
            self._missed = True
            # with little, it had plenty of room, and no door could have helped it; with too much, today's door would not have let it in
            if share > RATIO_TELLING and share * margin <= KNOWN_BETTER:
                self._margins[slo.name] = max(MARGIN_LOW, margin * (1.0 - MARGIN_STEP))
        else:
            missed = _steered(slo.target_share)
            step = MARGIN_STEP * missed / (1.0 - missed)
            most = MARGIN_HIGH if share > TELLING else max(margin, 1.0)
            self._margins[slo.name] = min(most, margin * (1.0 + step))

    @property
    def margin(self) -> float:
        """Of what a request can bear by its prediction, what the door lets it come to: in the class with which it is strictest."""
        return min(self._margins.values(), default=1.0)

    @property
    def ratio(self) -> float:
        """Real over predicted delay, of late."""
        if not self._compared:
            return 1.0
        return min(max(self._delay_real / self._delay_predicted, RATIO_LOW), RATIO_HIGH)

    def check_invariants(self) -> None:
        """Assert what must hold between calls; for tests."""
        for component, seconds in self._backlog.items():
            expected = sum(one.demand.get(component, 0.0) for one in self._accepted.values())
            assert abs(seconds - expected) < 1e-6 * max(1.0, expected), (component, seconds, expected)
        for component, seconds in self._present.items():
            expected = sum(one.present for one in self._accepted.values() if one.at == component)
            assert abs(seconds - expected) < 1e-6 * max(1.0, expected), (component, seconds, expected)

    def _hindsight(self, accepted: _Accepted) -> float:
        """How many times the work that it was thought to bring, when it was let in, requests are known to bring now."""
        then, now = sum(accepted.whole.values()), 0.0 if self._latest is None else sum(self._latest.demand.values())
        return now / then if then > 0.0 and now > 0.0 else 1.0

    def _may_probe(self, slo: SloClass, delay: float, allowed: float) -> bool:
        """``delay``: before the ratio. Where even the cheapest company would make it late, nothing is to be learnt."""
        if self._probing or delay * RATIO_LOW > allowed:
            return False
        return self._paid.get(slo.name, 0.0) >= self._probes_late / (self._probes_in_time + self._probes_late)

    def _pay(self, accepted: _Accepted, share: float, late: bool) -> None:
        """What a request that ended means for probes. ``share``: of its allowance, as predicted."""
        name, told = accepted.slo.name, _telling(share, late)
        if accepted.is_probe:
            told = 0.0
            if self._probes_in_time + self._probes_late >= PROBES_KEPT:
                self._probes_in_time, self._probes_late = self._probes_in_time / 2, self._probes_late / 2
            self._probes_in_time += not late
            self._probes_late += late
        paid = 0.0 if late else self._paid.get(name, 0.0) + _steered(accepted.slo.target_share)
        self._paid[name] = min(paid * (1.0 - told), MOST_PAID)

    def _compare(self, accepted: _Accepted, delay: float, share: float, now: float, work_s: float | None) -> None:
        late = now > accepted.deadline
        if share < RATIO_TELLING and not late:
            return
        # By how much it is late says little: what is late gives way to all others.
        real = min(now, accepted.deadline) - accepted.since - (accepted.work_s if work_s is None else work_s)
        if late and real <= 0.0:
            return  # by its own work
        if not self._compared:
            self._delay_predicted = self._delay_real = max(PRIOR_DELAY * accepted.work_s, 1e-6)
        self._compared += 1
        # who found few there is delayed by whoever comes later: the ratio is to be right near the limit
        weight = _telling(share, late) * max(RATIO_DECAY, 1.0 / (self._compared + RATIO_PRIOR))
        self._delay_predicted += weight * (delay - self._delay_predicted)
        self._delay_real += weight * (real - self._delay_real)

    def _allowed_s(self, slo: SloClass, ahead: Ahead, left_s: float) -> float:
        """By how much a request with ``left_s`` to its deadline may be delayed."""
        is_known = self._missed or ahead.samples >= ENOUGH
        above = max(ahead.high_work_s - ahead.work_s, 0.0) if is_known else 0.0
        high = ahead.work_s + above * _rareness(slo.target_share)
        stretch = (left_s / high - 1.0) * ahead.work_s if high > 0.0 else left_s
        least = UNKEEPABLE * (left_s - ahead.work_s)
        return max(stretch * self._margins.get(slo.name, 1.0), least) * self._class_part(slo)

    def _class_part(self, slo: SloClass) -> float:
        """Of what is allowed. A class below its share counts as the highest."""
        if self._shares.get(slo.name, 0.0) < slo.share:
            return 1.0
        return max(1.0 - PRIORITY_STEP * (self._top - slo.priority), 0.1)


def _telling(share: float, late: bool) -> float:
    """How much a request tells of delays, of which ``share`` of its allowance was predicted: 0 to 1."""
    return 1.0 if late else min(share / NEAR, 1.0) ** 2


@lru_cache(maxsize=64)
def _steered(target_share: float) -> float:
    """The share of accepted requests that is meant to miss, so that of AIM_REQUESTS seldom more do than the promise allows."""
    allowed = max(1.0 - target_share, 0.0)
    return max(allowed - AIM_DEVIATIONS * math.sqrt(allowed * target_share / AIM_REQUESTS), AIM_LEAST * allowed)


@lru_cache(maxsize=64)
def _rareness(target_share: float) -> float:
    """How far on the way from the mean request to the one with ``high_work_s`` the one is that must still be in time: 1 at 98 %, 0 at 50.

    As in a normal distribution.
    """
    share = min(max(target_share, 0.5), QUANTILE)
    return _NORMAL.inv_cdf(share) / _NORMAL.inv_cdf(QUANTILE)
