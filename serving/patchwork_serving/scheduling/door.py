"""Admission, and what a person is told of it. Pure: ``now`` is an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from patchwork_scheduler.admission import Admission, Admit, Decision, Hold, Mode, Refuse
from patchwork_scheduler.estimate import Ahead, Calibration
from patchwork_scheduler.model import SloClass

#: With nothing in its way, one request in so many seconds is let in although it is predicted to miss: who refuses all learns nothing,
#: and a prediction that was made in a bad hour would hold for ever.
PROBE_EVERY_S = 2.0
#: Until so many predictions were held against what came of them, whoever finds nobody inside is let in.
PROBE_FREELY = 10
KEPT_DECISIONS = 50

Setting = Literal["refuse", "hold", "off"]
_MODES: Mapping[Setting, Mode] = {"refuse": "refuse", "hold": "hold", "off": "open"}


@dataclass(frozen=True, slots=True)
class Told:
    """A decision worth telling."""

    at: float  #: on the clock of ``now``
    what: str
    why: str


class Door:
    """Owned by one ``Scheduling``."""

    def __init__(self, classes: Mapping[str, SloClass], replicas: Mapping[str, float], setting: Setting) -> None:
        self.setting = setting
        self.admission = Admission(list(classes.values()), replicas, mode=_MODES[setting])
        self.counts: Counter[tuple[str, str]] = Counter()  #: (class, admitted | refused | held) -> requests
        self.told: deque[Told] = deque(maxlen=KEPT_DECISIONS)
        self.calibration = Calibration()
        self._shut: dict[str, int] = {}  #: class -> refused since the door was shut for it
        self._probed = -PROBE_EVERY_S

    def decide(
        self, run_id: str, slo: SloClass, ahead: Ahead, now: float, deadline: float, *, behind_s: float, at_risk: bool
    ) -> Decision:
        """Admit (and note that it is in), refuse or hold."""
        decision = self.admission.decide(slo, ahead, now, deadline, behind_s=behind_s, at_risk=at_risk)
        if isinstance(decision, Refuse) and decision.predicted_s <= ahead.work_s and self._may_probe(now):
            self._probed = now
            self._tell_of_probe(slo, decision, deadline - now, now)
            decision = Admit(decision.predicted_s)
        if isinstance(decision, Admit):
            if decision.is_probe:
                self._tell_of_probe(slo, decision, deadline - now, now)
            self.admission.accepted(run_id, slo, ahead, deadline, now, decision.predicted_s, is_probe=decision.is_probe)
        self._count(slo.name, decision, deadline - now, now)
        return decision

    def judge(self, predicted_s: float, actual_s: float) -> None:
        """A request that was let in got its answer; not to be told of one of which nothing was known, or of a batch."""
        judged = self.calibration
        judged.count += 1
        judged.predicted += predicted_s
        judged.actual += actual_s
        judged.error += abs(predicted_s - actual_s)

    def _tell_of_probe(self, slo: SloClass, decision: Admit | Refuse, allowed_s: float, now: float) -> None:
        self.told.append(Told(now, "probe", f"{slo.name}: let in to learn, {_told(decision, allowed_s)}"))

    def _may_probe(self, now: float) -> bool:
        spacing = PROBE_EVERY_S if self.calibration.count >= PROBE_FREELY else 0.0
        return not len(self.admission) and now - self._probed >= spacing

    def _count(self, name: str, decision: Decision, allowed_s: float, now: float) -> None:
        match decision:
            case Admit():
                self.counts[name, "admitted"] += 1
                refused = self._shut.pop(name, 0)
                if refused:
                    self.told.append(Told(now, "door open", f"{name}: {refused} refused meanwhile"))
            case Refuse():
                self.counts[name, "refused"] += 1
                if name not in self._shut:
                    self.told.append(Told(now, "door shut", f"{name}: {_told(decision, allowed_s)}"))
                self._shut[name] = self._shut.get(name, 0) + 1
            case Hold():
                self.counts[name, "held"] += 1

    def facts(self) -> dict[str, Any]:
        """For ``/info``: JSON."""
        counts: dict[str, dict[str, int]] = {}
        for (name, decision), count in self.counts.items():
            counts.setdefault(name, {})[decision] = count
        return {
            "admission": self.setting,
            "margin": self.admission.margin,
            "in_flight": len(self.admission),
            "delay_s": self.admission.delay_s(),
            "decided": counts,
            **self.calibration.to_json(),
        }


def _told(decision: Admit | Refuse, allowed_s: float) -> str:
    return f"predicted {decision.predicted_s:.2f} s, promised within {allowed_s:.2f} s"
