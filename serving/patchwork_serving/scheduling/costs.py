"""How long a call takes, learnt from what replicas report. Pure.

Two numbers are kept apart. *Alone*: seconds with the engine to itself, from calls that ran in no company (or were faster in company than
was known). *Occupied*: by how much a call delays others, its seconds shared among those that ran with it, at the company in which
an item was cheapest: what it costs when many wait. A replica whose engine has a cost model says both itself, for the tokens that the
call really had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.estimate import Learned
from patchwork_serving.wire import Report

#: A company seen less often than this says nothing about what an item costs in it.
TELLING = 3
#: After so many calls a site speaks for itself, and teaches what its component's other sites may be like no more.
SETTLED = 32


class Predicted(NamedTuple):
    """What is expected of one call; zeros when nothing is known."""

    alone_s: float = 0.0
    occupied_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Seen:
    """What was seen of one call-site, or of a component's all together. Keys are powers of two: items in a call, calls run together."""

    per_item: dict[int, Learned] = field(default_factory=dict)
    modelled: Learned = field(default_factory=Learned)  #: occupied, per item, by the engine's own cost model
    shared: dict[int, Learned] = field(default_factory=dict)
    tokens_per_byte: Learned = field(default_factory=Learned)
    output_tokens: Learned = field(default_factory=Learned)
    cheapest: float = 0.0  #: least mean of ``shared``, seconds per item
    calls: int = 0

    def observe(self, size: int, payload_bytes: int, report: Report) -> None:
        self.calls += 1
        per_item = report.service_s / size
        alone = self.per_item.setdefault(size.bit_length(), Learned())
        if report.alone_s > 0.0:
            alone.observe(report.alone_s / size)
            self.modelled.observe(report.occupied_s / size)
        elif report.batch <= 1 or not alone.count or per_item < alone.mean:
            alone.observe(per_item)
        if not self.modelled.count:
            self._observe_company(per_item, max(report.batch, 1))
        if report.prompt_tokens:
            self.tokens_per_byte.observe(report.prompt_tokens / max(payload_bytes, 1))
            self.output_tokens.observe(float(report.output_tokens))

    def _observe_company(self, per_item: float, company: int) -> None:
        self.shared.setdefault(company.bit_length(), Learned()).observe(per_item / company)
        means = [one.mean for one in self.shared.values() if one.count >= TELLING]
        self.cheapest = min(means, default=per_item / company)

    def occupied_s(self, size: int) -> float:
        return (self.modelled.mean if self.modelled.count else self.cheapest) * size

    def alone_s(self, size: int) -> float:
        if not self.per_item:
            return 0.0
        bucket = size.bit_length()
        known = self.per_item.get(bucket) or self.per_item[min(self.per_item, key=lambda one: abs(one - bucket))]
        return known.mean * size


class CallCosts:
    """Of one component. ``cost``: its fitted cost model, where there is a profile; it then answers instead of what was seen."""

    def __init__(self, cost: BatchCost | TokenCost | None = None, max_batch: int = 1) -> None:
        self._cost = cost
        self._max_batch = max_batch
        self._sites: dict[str, _Seen] = {}
        self._all = _Seen()

    def seed(self, site: str, alone_s: float) -> None:
        """From sample runs; counts as one observation."""
        for seen in (self._of(site), self._all):
            seen.per_item.setdefault(1, Learned()).observe(alone_s)
            seen.cheapest = seen.cheapest or alone_s

    def observe(self, site: str, size: int, payload_bytes: int, report: Report) -> None:
        """A call ended with this report."""
        size = max(size, 1)
        seen = self._of(site)
        seen.observe(size, payload_bytes, report)
        if seen.calls <= SETTLED:
            self._all.observe(size, payload_bytes, report)

    def predict(self, site: str, size: int, payload_bytes: int) -> Predicted:
        """What is expected of a call; a site never seen is answered from the component's other sites."""
        size = max(size, 1)
        seen = self._sites.get(site, self._all)
        prompt = round(seen.tokens_per_byte.mean * payload_bytes)
        output = round(seen.output_tokens.mean)
        cost = self._cost
        if isinstance(cost, BatchCost):
            return Predicted(cost(size), cost.per_item_s(self._max_batch) * size, prompt, output)
        if cost is not None and prompt:
            return Predicted(cost.alone_s(prompt, output), cost.occupied_s(prompt, output), prompt, output)
        alone = seen.alone_s(size)
        return Predicted(alone, min(alone, seen.occupied_s(size)), prompt, output)

    def _of(self, site: str) -> _Seen:
        seen = self._sites.get(site)
        if seen is None:
            seen = self._sites[site] = _Seen()
        return seen


Costs = Mapping[str, BatchCost | TokenCost]
