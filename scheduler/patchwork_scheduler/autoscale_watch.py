"""From what replicas say of themselves, as counters since they started, to observations of an interval. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from patchwork_scheduler.autoscale_model import Observation, Seen, Served

INGRESS = "ingress"
FORGET_S = 600.0  #: a replica that was silent for less goes on where it was


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    queued: int = 0
    running: int = 0
    ready: int = 0


class Watch:
    """Takes differences: a report that is missed is caught up with by the next, and what a new replica counted is all new."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._at: float | None = None

    def observe(self, entries: Iterable[Mapping[str, Any]], now: float) -> Observation | None:
        """What happened since the last call; None at the first, and while the ingress has not reported again."""
        entries = list(entries)
        before = {name: entry for name, (_, entry) in self._known.items()}
        seconds = 0.0 if self._at is None else _published_s(entries, before, now - self._at)
        if self._at is not None and seconds <= 0:
            return None
        first, self._at = self._at is None, now
        self._known |= {str(entry["replica"]): (now, entry) for entry in entries}
        self._known = {name: one for name, one in self._known.items() if one[0] > now - FORGET_S}
        return None if first else _difference(entries, before, seconds)


def _published_s(
    entries: Iterable[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], otherwise: float
) -> float:
    """Seconds between what the ingress replicas published then and now: their counts are of that time, whenever they are read."""
    known = [e for e in entries if e["component"] == INGRESS and str(e["replica"]) in before and "at" in e]
    if not known:
        return otherwise
    return sum(float(e["at"]) - float(before[str(e["replica"])]["at"]) for e in known) / len(known)


def _difference(
    entries: Iterable[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], seconds: float
) -> Observation:
    requests = late = 0
    sums: defaultdict[str, _Sum] = defaultdict(_Sum)
    served: defaultdict[str, dict[int, Served]] = defaultdict(dict)
    for entry in entries:
        past = before.get(str(entry["replica"]), {})
        if entry["component"] == INGRESS:
            requests += _more(entry, past, "requests")
            late += _more(entry, past, "late")
            for name, count in entry.get("calls", {}).items():
                sums[name].calls += max(0, count - past.get("calls", {}).get(name, 0))
            continue
        one = sums[str(entry["component"])]
        one.ready += 1
        one.queued += int(entry.get("queued", 0))
        one.running += int(entry.get("running", 0))
        _add_served(served[str(entry["component"])], entry, past)
    return Observation(
        seconds,
        requests,
        late,
        {name: Seen(s.calls, served[name], s.queued, s.running, s.ready) for name, s in sums.items()},
    )


def _add_served(into: dict[int, Served], entry: Mapping[str, Any], past: Mapping[str, Any]) -> None:
    for size, (batches, seconds) in entry.get("served_by_batch", {}).items():
        old_batches, old_seconds = past.get("served_by_batch", {}).get(size, (0, 0.0))
        if batches > old_batches:
            known = into.get(int(size), Served(0, 0.0))
            into[int(size)] = Served(known.batches + batches - old_batches, known.seconds + seconds - old_seconds)


def _more(entry: Mapping[str, Any], past: Mapping[str, Any], key: str) -> int:
    return max(0, int(entry.get(key, 0)) - int(past.get(key, 0)))
