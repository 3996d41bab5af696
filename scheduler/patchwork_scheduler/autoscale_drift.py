"""Whether components still take as long as their profile says: observed over profiled seconds, with decay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from patchwork_scheduler.autoscale_model import Observation, Scaling, Served
from patchwork_scheduler.profile_model import ComponentProfile, Profile

HALF_LIFE_S = 60.0  #: what was seen a minute ago counts half
#: A profile once disbelieved is believed again this much nearer to it, so that the verdict does not change to and fro.
BACK = 0.5


@dataclass(slots=True)
class _Ratio:
    observed_s: float = 0.0
    profiled_s: float = 0.0
    batches: float = 0.0
    believed: bool = True

    @property
    def value(self) -> float:
        return self.observed_s / self.profiled_s if self.profiled_s else 1.0


class Drift:
    """The ratios, one per component. ``assumed``: components whose profile was never measured; what is observed of them always counts."""

    def __init__(self, profile: Profile, scaling: Scaling, assumed: Collection[str] = ()) -> None:
        self._profile = profile
        self._scaling = scaling
        self._assumed = frozenset(assumed)
        self._ratios = {c.id: _Ratio() for c in profile.components if not c.external}

    def observe(self, seen: Observation) -> tuple[str, ...]:
        """Take in what was served; warnings for components that left their profile, or came back to it."""
        keep = 0.5 ** (seen.seconds / HALF_LIFE_S)
        warnings = []
        for component_id, ratio in self._ratios.items():
            component = self._profile.component(component_id)
            served = _comparable(component, seen.of(component_id).served)
            if served:  # an idle component does not forget
                ratio.observed_s = ratio.observed_s * keep + sum(one.seconds for one in served.values())
                ratio.profiled_s = ratio.profiled_s * keep + _profiled_s(component, served)
                ratio.batches = ratio.batches * keep + sum(one.batches for one in served.values())
            if warning := self._judged(component_id, ratio):
                warnings.append(warning)
        return tuple(warnings)

    def known(self, component_id: str) -> bool:
        """Enough is known of its service times to count on them."""
        return component_id not in self._assumed or self._enough(self._ratios[component_id])

    def ratios(self) -> dict[str, float]:
        """Observed over profiled seconds of the components that were measured and seen enough."""
        return {
            component_id: ratio.value
            for component_id, ratio in self._ratios.items()
            if component_id not in self._assumed and self._enough(ratio)
        }

    def slower(self) -> dict[str, float]:
        """For ``Profile.observed``: the components to be planned with observed seconds."""
        return {
            component_id: ratio.value
            for component_id, ratio in self._ratios.items()
            if self._enough(ratio) and (component_id in self._assumed or not ratio.believed)
        }

    def _enough(self, ratio: _Ratio) -> bool:
        return ratio.batches >= self._scaling.drift_batches and ratio.value > 0

    def _judged(self, component_id: str, ratio: _Ratio) -> str | None:
        if component_id in self._assumed or not self._enough(ratio):
            return None
        off, most = abs(math.log(ratio.value)), math.log(self._scaling.drift)
        if ratio.believed and off > most:
            ratio.believed = False
            return (
                f"{component_id} takes {ratio.value:.2g} times as long as profiled: planned with what is observed;"
                f" profile it again where it runs"
            )
        if not ratio.believed and off < most * BACK:
            ratio.believed = True
            return f"{component_id} takes as long as profiled again"
        return None


def _comparable(component: ComponentProfile, served: Mapping[int, Served]) -> Mapping[int, Served]:
    """Not batches smaller than any that was measured: how much faster they ought to be is not known."""
    least = min(point.batch for point in component.measured[0].points)
    return {batch: one for batch, one in served.items() if batch >= least}


def _profiled_s(component: ComponentProfile, served: Mapping[int, Served]) -> float:
    measured = component.measured[0]
    points = [(p.batch, p.seconds) for p in measured.batch_points(component.tokens)]
    return sum(one.batches * _at(points, batch) for batch, one in served.items())


def _at(points: list[tuple[int, float]], batch: int) -> float:
    """Straight lines between the measured batches; beyond the largest in proportion to it."""
    if batch == points[0][0]:
        return points[0][1]
    for (low, low_s), (high, high_s) in itertools.pairwise(points):
        if batch <= high:
            return low_s + (high_s - low_s) * (batch - low) / (high - low)
    return points[-1][1] * batch / points[-1][0]
