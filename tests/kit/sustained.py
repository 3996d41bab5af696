"""What a deployment sustains, against what its plan predicts: open-loop loads of ``patchwork bench``, and how busy the machine was.

Two loads, after one another on one deployment. One below the prediction, which must hold: requests are in time. One above it, which
must not: what is then completed per second is the rate at which the deployment's steady throughput ends, whatever waits before it. Both
are counted after a warm-up that fills queues and batches.

How far above depends on the chain. One whose requests come back to the same component again and again must be loaded little above: of what
is too much, every round takes its share, and requests that have got nowhere yet take it from those that are nearly done. With capacity
for five calls a request and 1.35 times the load, first come first served completes only four fifths of what it could.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil

from patchwork_serving.bench import LoadOptions, LoadReport, run_load
from patchwork_serving.progress import SilentProgress

#: Of the predicted rate.
BELOW, ABOVE = 0.85, 1.35
#: Of what is offered: a rate holds where so much is in time, and is not the largest where so much is completed.
IN_TIME, KEEPS_UP = 0.9, 0.95
#: A measured rate confirms the predicted one within this.
TOLERANCE = 0.15
#: Beyond this share of the machine's cores, the machine is taken for the limit, not the engines that are emulated.
BUSY = 0.7
SAMPLE_S = 0.5


@dataclass(frozen=True)
class Loads:
    """How long each load is. Seconds."""

    warm_s: float
    window_s: float
    arrivals: str = "poisson"
    above: float = ABOVE  #: the second load, in predicted rates


@dataclass(frozen=True)
class Rung:
    """One load and the machine meanwhile."""

    report: LoadReport
    cores_busy: float
    cores_ours: float

    @property
    def keeps_up(self) -> bool:
        return self.report.completed_per_s >= KEEPS_UP * self.report.offered_per_s

    @property
    def holds(self) -> bool:
        return self.report.attained_share >= IN_TIME

    def to_json(self) -> dict[str, Any]:
        kept = (
            "offered_per_s",
            "completed_per_s",
            "attained_share",
            "failed",
            "latency_s",
            "steady",
            "generator_was_late",
        )
        document = self.report.to_json()
        return {name: document[name] for name in kept} | {
            "requests": document["offered"],
            "cores_busy": self.cores_busy,
            "cores_ours": self.cores_ours,
            "keeps_up": self.keeps_up,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Sustains:
    """The verdict on one deployment."""

    predicted_per_s: float
    slo_s: float
    below: Rung
    above: Rung

    @property
    def measured_per_s(self) -> float:
        """What is completed under more load than can be served; a lower bound when all of it was served after all."""
        return self.above.report.completed_per_s

    @property
    def is_bound(self) -> bool:
        return self.above.keeps_up

    @property
    def cores_busy(self) -> float:
        return max(self.below.cores_busy, self.above.cores_busy)

    @property
    def is_within(self) -> bool:
        off = self.measured_per_s / self.predicted_per_s - 1
        return not self.is_bound and abs(off) <= TOLERANCE and self.below.holds

    @property
    def others_busy(self) -> float:
        """Cores that programs kept busy which are no part of this."""
        return max(rung.cores_busy - rung.cores_ours for rung in (self.below, self.above))

    def machine_was_the_limit(self, cores: int) -> bool:
        return self.cores_busy > BUSY * cores

    def to_json(self) -> dict[str, Any]:
        return {
            "predicted_per_s": self.predicted_per_s, "measured_per_s": self.measured_per_s,
            "measured_over_predicted": self.measured_per_s / self.predicted_per_s, "measured_is_at_least": self.is_bound,
            "cores_busy": self.cores_busy, "slo_s": self.slo_s, "below": self.below.to_json(), "above": self.above.to_json(),
        }  # fmt: skip


def sustains(
    url: str,
    predicted_per_s: float,
    slo_s: float,
    loads: Loads,
    questions: Callable[[int, int], Sequence[Any]],
    serving: Callable[[], Sequence[psutil.Process]],
) -> Sustains:
    """``questions(load, count)``: so many inputs, none of them equal to one of another load: equal calls in flight are made once.

    ``serving``: the processes of the deployment.
    """
    rungs = []
    for number, share in enumerate((BELOW, loads.above)):
        rate = share * predicted_per_s
        count = round(2 * rate * (loads.warm_s + loads.window_s)) + 20
        options = LoadOptions(
            rate=rate, duration_s=loads.window_s, warmup_s=loads.warm_s, slo_s=slo_s, timeout_s=20 * slo_s, seed=number
        )
        with CoresBusy(loads.warm_s, loads.window_s, [psutil.Process(), *serving()]) as busy:
            report = run_load(url, loads.arrivals, questions(number, count), options, busy)
        rungs.append(Rung(report, *busy.cores()))
    return Sustains(predicted_per_s, slo_s, *rungs)


class CoresBusy(SilentProgress):
    """Cores of this machine that were busy in the counted part of a load: by anybody, and by ``ours`` alone."""

    def __init__(self, warm_s: float, window_s: float, ours: Sequence[psutil.Process]) -> None:
        self._warm_s, self._window_s, self._ours = warm_s, window_s, ours
        self._began: float | None = None
        self._samples: list[_Worked] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CoresBusy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, step_id: str, title: str) -> None:
        if step_id == "load":
            self._began = time.monotonic()

    def cores(self) -> tuple[float, float]:
        assert self._began is not None, "asked after the load"
        start = self._began + self._warm_s
        first, last = self._nearest(start), self._nearest(start + self._window_s)
        seconds = last.at - first.at
        return (last.by_all_s - first.by_all_s) / seconds, (last.by_ours_s - first.by_ours_s) / seconds

    def _nearest(self, when: float) -> _Worked:
        return min(self._samples, key=lambda sample: abs(sample.at - when))

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            times = psutil.cpu_times()
            idle = times.idle + times.iowait + times.guest + times.guest_nice  # guests are counted twice
            self._samples.append(_Worked(time.monotonic(), sum(times) - idle, sum(map(_cpu_s, self._ours))))


class _Worked(NamedTuple):
    at: float
    by_all_s: float
    by_ours_s: float


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended
        return 0.0
    return float(times.user + times.system)
