"""What a load came to: counts, rates and percentiles of the steady state. The shape of ``report.json`` is a contract (design.md)."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchwork_serving.bench.observe import OUTCOMES, Observation, Outcome, outcome_of

PERCENTS = (50, 95, 99)
#: the generator was late when more than a hundredth of its requests left later than this share of the SLO, or than 10 ms
LATE_SHARE_OF_SLO = 0.05
LATE_S = 0.01
#: the second half of a steady state is no slower than this many times the first
STEADY_RATIO = 1.5
OVERHEAD = ("total", "queue")  #: entries of server-timing that are no component


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One load against one URL. Requests of the warm-up are in none of the counts."""

    slo_s: float
    window_s: float  #: the steady state: requests intended in it are counted
    counts: Mapping[Outcome, int]
    completed_per_s: float  #: whole answers that came in the window, whenever they were asked for
    latencies: Sequence[float]  #: of whole answers, from the intended time
    first_chunks: Sequence[float]
    stages: Mapping[str, Sequence[float]]  #: seconds of each request in each component, and in queues
    overheads: Sequence[float]  #: of whole answers: seconds in no component
    late: Sequence[float]
    statuses: Mapping[str, int]
    steady: bool
    partial: bool = False
    asked_rate: float | None = None
    unloaded_mean_s: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def offered(self) -> int:
        return sum(self.counts.values())

    @property
    def offered_per_s(self) -> float:
        return self.offered / self.window_s

    @property
    def goodput_per_s(self) -> float:
        return self.counts["attained"] / self.window_s

    @property
    def attained_share(self) -> float:
        """Of what was offered."""
        return self.counts["attained"] / self.offered if self.offered else 0.0

    @property
    def missed_share_of_accepted(self) -> float:
        accepted = self.offered - self.counts["refused"]
        return self.counts["missed"] / accepted if accepted else 0.0

    @property
    def generator_was_late(self) -> bool:
        return bool(self.late) and float(np.percentile(self.late, 99)) > max(LATE_S, LATE_SHARE_OF_SLO * self.slo_s)

    def warnings(self) -> list[str]:
        """What a reader must know before believing the figures."""
        found = []
        if self.partial:
            found.append("partial: it was stopped before its end")
        if self.generator_was_late:
            found.append(
                f"the load generator itself was late: p99 {1000 * float(np.percentile(self.late, 99)):.0f} ms after the intended time; "
                "latencies count from the intended time, so they are too long by that"
            )
        if not self.steady:
            found.append("not steady: the second half was slower than the first, so a longer run would look worse")
        if self.environment.get("emulated"):
            found.append("emulated engines: service times come from a profile, not from models")
        return found

    def to_json(self) -> dict[str, Any]:
        """``report.json``."""
        return {
            "offered_per_s": self.offered_per_s, "completed_per_s": self.completed_per_s, "goodput_per_s": self.goodput_per_s,
            "slo_s": self.slo_s, **{str(outcome): count for outcome, count in self.counts.items()},
            "offered": self.offered, "attained_share": self.attained_share,
            "missed_share_of_accepted": self.missed_share_of_accepted,
            "latency_s": percentiles(self.latencies), "ttft_s": percentiles(self.first_chunks),
            "overhead_s": percentiles(self.overheads),
            "stages_s": {name: percentiles(values) for name, values in self.stages.items()},
            "generator_late_s": percentiles(self.late), "generator_was_late": self.generator_was_late,
            "window_s": self.window_s, "steady": self.steady, "partial": self.partial, "asked_rate_per_s": self.asked_rate,
            "unloaded_mean_s": self.unloaded_mean_s, "statuses": dict(self.statuses), "warnings": self.warnings(),
            "settings": dict(self.settings), "environment": dict(self.environment),
        }  # fmt: skip


def summarise(seen: Sequence[Observation], slo_s: float, start_s: float, end_s: float) -> dict[str, Any]:
    """The measured fields of a LoadReport: of requests intended in ``[start_s, end_s)``.

    Every request is one of attained, missed, refused, failed and cancelled (asserted).
    """
    counted = [one for one in seen if start_s <= one.intended < end_s]
    outcomes = collections.Counter(outcome_of(one, slo_s) for one in counted)
    counts: dict[Outcome, int] = {outcome: outcomes[outcome] for outcome in OUTCOMES}
    assert sum(counts.values()) == len(counted), "every request has one outcome"
    whole = [one for one in counted if _is_whole(one)]
    window = end_s - start_s
    return {
        "slo_s": slo_s, "window_s": window, "counts": counts,
        "completed_per_s": sum(_is_whole(one) and start_s <= one.ended < end_s for one in seen) / window,
        "latencies": [one.latency_s for one in whole],
        "first_chunks": [one.first_chunk_s for one in whole if one.first_chunk_s is not None],
        "stages": _stages(whole), "overheads": _overheads(whole), "late": [one.late_s for one in counted if one.answer is not None],
        "statuses": dict(collections.Counter(_status(one) for one in counted).most_common()),
        "steady": is_steady(whole, start_s, end_s),
    }  # fmt: skip


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """``p50``, ``p95``, ``p99``, interpolated, and the mean; of nothing each is None."""
    if not values:
        return dict.fromkeys((*(f"p{q}" for q in PERCENTS), "mean"))
    found = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTS}
    return {**found, "mean": float(np.mean(values))}


def is_steady(whole: Iterable[Observation], start_s: float, end_s: float) -> bool:
    """The median latency does not grow from the first half of the window to the second; true when too few to tell."""
    middle = (start_s + end_s) / 2
    halves: tuple[list[float], list[float]] = ([], [])
    for one in whole:
        halves[one.intended >= middle].append(one.latency_s)
    if min(len(half) for half in halves) < 10:
        return True
    return float(np.median(halves[1])) <= STEADY_RATIO * float(np.median(halves[0]))


def _is_whole(one: Observation) -> bool:
    return one.answer is not None and one.answer.is_whole


def _status(one: Observation) -> str:
    answer = one.answer
    if answer is None:
        return "cancelled"
    status = "" if answer.status is None else str(answer.status)
    return " ".join(part for part in (status, answer.error) if part)


def _stages(whole: Sequence[Observation]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in whole:
        for name, seconds in (one.answer.stages if one.answer else {}).items():
            found.setdefault(name, []).append(seconds)
    return found


def _overheads(whole: Sequence[Observation]) -> list[float]:
    """Latency less the components' seconds. Calls that ran at once are counted twice by those, so that nothing is below zero."""
    found = []
    for one in whole:
        stages = one.answer.stages if one.answer else {}
        parts = [seconds for name, seconds in stages.items() if name not in OVERHEAD]
        if parts:
            found.append(max(0.0, one.ended - one.sent - sum(parts)))
    return found
