"""What a request still has before it, learnt from those that finished.

Keyed by the request's state (call-site, loop count). Two things are kept apart: *work*, the seconds that the remaining calls would take
with the engines to themselves (what slack is computed from: it must not grow because the system is busy, or a request that could still
be in time would be given up), and *time*, what it really took, waiting included (what predictions are judged by).
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchwork_scheduler.model import State

#: Weight of a new observation once the mean has settled: about the last fifty count.
DECAY = 0.02
#: What a seed counts for: a part of one observation, as it was made elsewhere, with nobody else there.
SEED_WEIGHT = 0.2
#: What ``high_work_s`` is a quantile of: as much as an SLO class can well promise, so that the tail is known as far as it is promised.
QUANTILE = 0.98
#: With fewer requests than this, none lies above it: the quantile is the longest of them.
ENOUGH = round(1 / (1 - QUANTILE))
#: How many requests the quantile is taken of: five of them lie above it.
WINDOW = 256
#: They are kept or left out by so many at a time.
GROUP = 16
#: A bad hour: groups whose median is so many times the latest's, and those before and after each.
BAD_HOUR = 1.5
#: A cold start: groups that came when the mean was so many times today's.
FALLEN = 1.3


@dataclass(slots=True)
class Learned:
    """A decayed mean of a stream of numbers; the first observations are averaged plainly, with what was seeded before them."""

    mean: float = 0.0
    count: int = 0
    prior: float = 0.0  #: observations that the seeds count for

    @property
    def known(self) -> bool:
        return self.count > 0 or self.prior > 0.0

    def seed(self, value: float) -> float:
        """What is assumed until it is observed; several seeds are averaged. Returns the weight that it was given."""
        self.prior += SEED_WEIGHT
        weight = SEED_WEIGHT / (self.count + self.prior)
        self.mean += weight * (value - self.mean)
        return weight

    def observe(self, value: float, *, decay: float = DECAY) -> float:
        """Returns the weight that it was given."""
        self.count += 1
        weight = decay if self.count * decay >= 1.0 else 1.0 / (self.count + self.prior)
        self.mean += weight * (value - self.mean)
        return weight


class Recent:
    """The quantiles of the last observations, without those of a bad hour that is over.

    A slow machine, or a cold start, is over at once, and would for the next WINDOW be what the longest ones are like. Groups are judged by
    their medians, which know nothing of the few that are long for a reason of their own: those stay.
    """

    __slots__ = ("_group", "_groups", "_sorted")

    def __init__(self) -> None:
        self._group: list[float] = []  # the latest, not full yet
        self._groups: deque[_Group] = deque(maxlen=WINDOW // GROUP)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def observe(self, value: float, mean: float) -> None:
        """``mean``: of the stream, with ``value``."""
        self._group.append(value)
        bisect.insort(self._sorted, value)
        if len(self._group) == GROUP:
            self._groups.append(_Group(self._group, statistics.median(self._group), mean))
            self._group = []
            self._sorted = sorted(itertools.chain.from_iterable(group.values for group in self._good()))

    def quantile(self, share: float = QUANTILE) -> float:
        """The least value seen that a ``share`` of all do not exceed; 0 when none was seen."""
        if not self._sorted:
            return 0.0
        return self._sorted[max(math.ceil(share * len(self._sorted)) - 1, 0)]

    def _good(self) -> list[_Group]:
        """The groups that are like the latest."""
        groups, latest = list(self._groups), self._groups[-1]
        bad = [group.median > BAD_HOUR * latest.median for group in groups]
        beside = [before or after for before, after in zip([False, *bad[:-1]], [*bad[1:], False], strict=True)]
        return [
            group
            for group, is_bad, is_beside in zip(groups, bad, beside, strict=True)
            if group is latest or not (is_bad or is_beside or group.mean > FALLEN * latest.mean)
        ]


@dataclass(frozen=True, slots=True)
class _Group:
    values: list[float]
    median: float
    mean: float  #: of the stream, at its end


@dataclass(frozen=True, slots=True)
class Visit:
    """One call-site visited by a request: all calls that it made there at once."""

    state: State
    component: str
    started: float
    work_s: float  #: with the engine to itself (of parallel calls: the longest)
    occupied_s: float = 0.0  #: what it takes from the component's replicas, all parallel calls together
    ahead_s: float | None = (
        None  #: work from here to the end, where visits overlap; None: this and all that follow, summed
    )


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a request is expected to have before it, from a state to its end."""

    work_s: float
    high_work_s: float  #: not exceeded by QUANTILE of the requests: branches and long outputs that nobody can foresee
    time_s: float
    demand: Mapping[str, float]  #: component -> seconds of a replica
    samples: int = ENOUGH  #: requests seen, of which high_work_s is taken

    @property
    def known(self) -> bool:
        return bool(self.demand) or self.work_s > 0.0


NOTHING = Ahead(0.0, 0.0, 0.0, {})


@dataclass(slots=True)
class Calibration:
    """Predicted against real remaining time in one state."""

    count: int = 0
    predicted: float = 0.0  #: sums of seconds
    actual: float = 0.0
    error: float = 0.0  #: sum of absolute differences

    @property
    def bias(self) -> float:
        """Predicted over actual, 1.0 when right on average."""
        return self.predicted / self.actual if self.actual else 1.0

    @property
    def mean_error_s(self) -> float:
        return self.error / self.count if self.count else 0.0

    def to_json(self) -> dict[str, float | None]:
        """Means, in seconds; None where nothing was judged."""
        if not self.count:
            return {
                "judged": 0, "predicted_s": None, "actual_s": None, "mean_error_s": None, "predicted_over_actual": None,
            }  # fmt: skip
        return {
            "judged": self.count, "predicted_s": self.predicted / self.count, "actual_s": self.actual / self.count,
            "mean_error_s": self.mean_error_s, "predicted_over_actual": self.bias,
        }  # fmt: skip


@dataclass(slots=True)
class _StateKnowledge:
    work: Learned = field(default_factory=Learned)
    recent: Recent = field(default_factory=Recent)
    time: Learned = field(default_factory=Learned)
    demand: Mapping[str, float] = field(
        default_factory=dict
    )  #: means over all requests; a new one after each observation
    calibration: Calibration = field(default_factory=Calibration)
    ahead: Ahead | None = None  # made anew after each observation

    def learn(self, demand: Mapping[str, float], weight: float) -> None:
        """What is not needed this time counts as zero, as does what was not needed before: the means are over all requests."""
        before = self.demand
        if before.keys() == demand.keys():
            self.demand = {name: mean + weight * (demand[name] - mean) for name, mean in before.items()}
        else:
            names = {**before, **demand}
            self.demand = {
                name: (mean := before.get(name, 0.0)) + weight * (demand.get(name, 0.0) - mean) for name in names
            }
        self.ahead = None


class Estimates:
    """Owned by one orchestrator (or simulator). A state never seen is answered from the nearest loop count of its call-site."""

    def __init__(self) -> None:
        self._known: dict[State, _StateKnowledge] = {}
        self._nearest: dict[State, State | None] = {}

    def seed(self, state: State, work_s: float, demand: Mapping[str, float]) -> None:
        """From the profile, before traffic; what is then observed soon outweighs it."""
        knowledge = self._knowledge(state)
        weight = knowledge.work.seed(work_s)
        knowledge.time.seed(work_s)
        knowledge.learn(demand, weight)

    def ahead(self, state: State) -> Ahead:
        """What is expected from ``state`` on, its own call included; NOTHING when nothing is known."""
        knowledge = self._known.get(state)
        if knowledge is None:
            nearest = self._nearest_known(state)
            if nearest is None:
                return NOTHING
            knowledge = self._known[nearest]
        if knowledge.ahead is None:
            knowledge.ahead = Ahead(
                knowledge.work.mean,
                max(knowledge.recent.quantile(), knowledge.work.mean),
                knowledge.time.mean,
                knowledge.demand,
                knowledge.work.count,
            )
        return knowledge.ahead

    def observe(self, visits: Sequence[Visit], finished: float) -> None:
        """A request ended in full at ``finished``, having made ``visits`` in this order."""
        work = 0.0
        demand: dict[str, float] = {}
        for visit in reversed(visits):
            work = work + visit.work_s if visit.ahead_s is None else visit.ahead_s
            demand[visit.component] = demand.get(visit.component, 0.0) + visit.occupied_s
            knowledge = self._knowledge(visit.state)
            actual = finished - visit.started
            _judge(knowledge, actual)
            weight = knowledge.work.observe(work)
            if knowledge.work.count > 1:  # the first found everything cold, and would be the longest for a long time
                knowledge.recent.observe(work, knowledge.work.mean)
            knowledge.time.observe(actual)
            knowledge.learn(demand, weight)

    def calibration(self) -> dict[State, Calibration]:
        """Predicted against actual remaining time, per state."""
        return {state: knowledge.calibration for state, knowledge in self._known.items()}

    def _knowledge(self, state: State) -> _StateKnowledge:
        knowledge = self._known.get(state)
        if knowledge is None:
            knowledge = self._known[state] = _StateKnowledge()
            self._nearest.clear()
        return knowledge

    def _nearest_known(self, state: State) -> State | None:
        if state not in self._nearest:
            same = [known for known in self._known if known.site == state.site]
            self._nearest[state] = min(same, key=lambda known: abs(known.loop - state.loop), default=None)
        return self._nearest[state]


def _judge(knowledge: _StateKnowledge, actual: float) -> None:
    if not knowledge.time.known:
        return  # nothing was predicted
    calibration, predicted = knowledge.calibration, knowledge.time.mean
    calibration.count += 1
    calibration.predicted += predicted
    calibration.actual += actual
    calibration.error += abs(predicted - actual)
