"""How many requests come, how that changes, and how many came at most lately. Pure: ``now`` comes with each count."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHORT_S = 6.0  #: a change of level is believed after this long
LONG_S = 30.0  #: a level without a change is the mean of this long
PEAK_S = 6.0  #: length of the intervals of which the busiest counts
TREND_S = 60.0  #: over so long a trend is measured
SURE = 2.5  #: standard errors by which a change must stand out of the noise
SURE_AT_ONCE = 4.0  #: the same for a single interval
SURE_OF_SLOPE = 2.0


class _Interval(NamedTuple):
    end: float
    seconds: float
    events: float


@dataclass(frozen=True, slots=True)
class Trend:
    """Events per second now, and by how much per second that grows (negative: falls); 0 where it could be noise."""

    level: float
    slope: float

    def after(self, seconds: float) -> float:
        """The rate expected then. Growth is taken to go on for no more than once the level: a step looks like a steep slope."""
        return max(0.0, self.level + min(self.slope * seconds, self.level))


class _Line(NamedTuple):
    slope: float
    error: float  #: standard error of the slope


class Rates:
    """Counts of events by interval, kept for ``memory_s`` (a minute at least)."""

    def __init__(self, memory_s: float) -> None:
        self.memory_s = max(memory_s, TREND_S)
        self._intervals: deque[_Interval] = deque()

    def add(self, count: float, seconds: float, now: float) -> None:
        """``count`` events in the ``seconds`` before ``now``."""
        self._intervals.append(_Interval(now, seconds, count))
        while self._intervals[0].end <= now - self.memory_s:
            self._intervals.popleft()

    def covered_s(self) -> float:
        """How much time is remembered."""
        return sum(one.seconds for one in self._intervals)

    def total(self, seconds: float, now: float) -> float:
        """Events of about the last ``seconds``."""
        return sum(one.events for one in self._since(now - seconds))

    def mean(self, seconds: float, now: float) -> float:
        """Events per second over about the last ``seconds``; 0 when nothing is known."""
        return _rate(self._since(now - seconds))

    def peak(self, seconds: float, now: float) -> float:
        """The busiest stretch of ``PEAK_S`` within the last ``seconds``, in events per second."""
        best, window = 0.0, deque[_Interval]()
        for one in self._since(now - seconds):
            window.append(one)
            while len(window) > 1 and sum(w.seconds for w in window) - window[0].seconds >= PEAK_S:
                window.popleft()
            if sum(w.seconds for w in window) >= min(PEAK_S, self.covered_s()):
                best = max(best, _rate(window))
        return best

    def trend(self, now: float, sure_at_once: float = SURE_AT_ONCE) -> Trend:
        """The level is that of the last seconds when it differs from the mean before by more than noise, else a longer mean."""
        before = self._between(now - LONG_S, now - SHORT_S)
        if not before:
            return Trend(_rate(self._since(now - SHORT_S)), 0.0)
        slope = self._slope(now)
        for recent, sure in ((list(self._intervals)[-1:], sure_at_once), (self._since(now - SHORT_S), SURE)):
            noise = math.sqrt(max(_variance(before), _rate(before), _rate(recent)) / sum(one.seconds for one in recent))
            if abs(_rate(recent) - _rate(before)) > sure * noise:
                return Trend(_rate(recent), slope)
        longer = self._since(now - LONG_S)
        middle = now - sum(one.seconds for one in longer) / 2
        return Trend(max(0.0, _rate(longer) + slope * (now - middle)), slope)

    def _slope(self, now: float) -> float:
        """Of a minute, unless the last half of it says less: after a step the minute still rises, and the half does not."""
        minute, half = _line(self._since(now - TREND_S)), _line(self._since(now - LONG_S))
        if abs(minute.slope) <= SURE_OF_SLOPE * minute.error:
            return 0.0
        if minute.slope > 0:
            return max(0.0, min(minute.slope, half.slope + half.error))
        return min(0.0, max(minute.slope, half.slope - half.error))

    def _since(self, start: float) -> list[_Interval]:
        return self._between(start, math.inf)

    def _between(self, start: float, end: float) -> list[_Interval]:
        return [one for one in self._intervals if start < one.end <= end]


def _rate(intervals: Sequence[_Interval] | deque[_Interval]) -> float:
    seconds = sum(one.seconds for one in intervals)
    return sum(one.events for one in intervals) / seconds if seconds else 0.0


def _line(points: Sequence[_Interval]) -> _Line:
    """Least squares through the rates of intervals; the error is at least that of Poisson arrivals."""
    seconds = sum(one.seconds for one in points)
    if len(points) < 3 or seconds < LONG_S / 2:
        return _Line(0.0, 0.0)
    middle, mean = sum(one.end for one in points) / len(points), _rate(points)
    spread = sum((one.end - middle) ** 2 for one in points)
    slope = sum((one.end - middle) * (one.events / one.seconds - mean) for one in points) / spread
    residuals = sum((one.events / one.seconds - mean - slope * (one.end - middle)) ** 2 for one in points) / len(points)
    poisson = mean * len(points) / seconds
    return _Line(slope, math.sqrt(max(residuals, poisson) / spread))


def _variance(intervals: Sequence[_Interval]) -> float:
    """Of counts, per second: equals the rate for Poisson arrivals, more for bursts."""
    mean = _rate(intervals)
    return sum((one.events - mean * one.seconds) ** 2 for one in intervals) / sum(one.seconds for one in intervals)
