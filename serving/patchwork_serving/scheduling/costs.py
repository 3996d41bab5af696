"""How long a call takes, learnt from what replicas report. Pure.

Two numbers are kept apart. *Alone*: seconds with the engine to itself, from calls that ran in no company (or were faster in company than
was known). *Occupied*: by how much a call delays others, its seconds shared among those that ran with it, at the company in which
an item was cheapest: what it costs when many wait. A replica whose engine has a cost model says both itself, for the tokens that the
call really had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.estimate import Learned
from patchwork_serving.wire import Report

#: A company seen less often than this says nothing about what an item costs in it.
TELLING = 3
#: A replica in whose queue fewer than this share of the calls had to wait, had room for more than were there.
ROOM = 0.1
#: In the largest company seen so far, with room left: part of the cost of an item there that it is taken to cost in a larger one.
#: Engines that run calls side by side become cheaper with company, and a door that did not count on it would never let in enough of
#: them to find out.
UNTRIED = 0.5
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

    per_item: dict[int, Learned] = field(default_factory=dict)  #: alone
    crowded: dict[int, Learned] = field(default_factory=dict)  #: in company; stands in until a call ran alone
    modelled: Learned = field(default_factory=Learned)  #: occupied, per item, by the engine's own cost model
    shared: dict[int, Learned] = field(default_factory=dict)
    waited: dict[int, Learned] = field(default_factory=dict)  #: share of the calls that had to wait, by company
    tokens_per_byte: Learned = field(default_factory=Learned)
    output_tokens: Learned = field(default_factory=Learned)
    cheapest: float = 0.0  #: least mean of ``shared``, seconds per item, or what a larger company is hoped to cost
    calls: int = 0
    ratio: float = 1.0  #: occupied over alone

    def observe(self, size: int, payload_bytes: int, report: Report, most: int | None) -> None:
        self.calls += 1
        per_item = report.service_s / size
        bucket = size.bit_length()
        if report.alone_s > 0.0:
            _learned(self.per_item, bucket).observe(report.alone_s / size)
            self.modelled.observe(report.occupied_s / size)
        elif report.batch <= 1:
            _learned(self.per_item, bucket).observe(per_item)
        else:
            self._observe_crowded(bucket, per_item)
        if not self.modelled.count:
            self._observe_company(per_item, report, most)
        if report.prompt_tokens:
            self.tokens_per_byte.observe(report.prompt_tokens / max(payload_bytes, 1))
            self.output_tokens.observe(float(report.output_tokens))

    def _observe_crowded(self, bucket: int, per_item: float) -> None:
        """In company a call takes longer than alone: the fastest say most, and one faster than those alone counts as one of them."""
        alone = self.per_item.get(bucket)
        if alone is not None and per_item < alone.mean:
            alone.observe(per_item)
        crowded = _learned(self.crowded, bucket)
        if not crowded.count or per_item < crowded.mean:
            crowded.observe(per_item)

    def _observe_company(self, per_item: float, report: Report, most: int | None) -> None:
        company = max(report.batch, 1)
        bucket = company.bit_length()
        _learned(self.shared, bucket).observe(per_item / company)
        _learned(self.waited, bucket).observe(1.0 if report.queue_s > ROOM * report.service_s else 0.0)
        top = best = 0
        least = math.inf
        for one, seen in self.shared.items():
            if seen.count >= TELLING:
                top = max(top, one)
                if seen.mean < least:
                    best, least = one, seen.mean
        if not best:
            self.cheapest = per_item / company
            return
        is_open = best == top and self.waited[top].mean < ROOM and (most is None or top < most.bit_length())
        self.cheapest = least * (UNTRIED if is_open else 1.0)

    def occupied_s(self, size: int) -> float:
        return (self.modelled.mean if self.modelled.count else self.cheapest) * size

    def alone_s(self, size: int) -> float:
        seen = self.per_item or self.crowded
        if not seen:
            return 0.0
        bucket = size.bit_length()
        known = seen.get(bucket) or seen[min(seen, key=lambda one: abs(one - bucket))]
        return known.mean * size


def _learned(of: dict[int, Learned], bucket: int) -> Learned:
    found = of.get(bucket)
    if found is None:
        found = of[bucket] = Learned()
    return found


class CallCosts:
    """Of one component. ``cost``: its fitted cost model, where there is a profile; it then answers instead of what was seen.

    ``max_batch``: items that it runs in one batch at most. ``most``: calls that a replica runs at once at most, where that is set.
    """

    def __init__(self, cost: BatchCost | TokenCost | None = None, max_batch: int = 1, most: int | None = None) -> None:
        self.ratio = 1.0  #: occupied over alone seconds, over all sites as they are now
        self._most = most
        self._cost = cost
        self._per_item_s = cost.per_item_s(max_batch) if isinstance(cost, BatchCost) else 0.0
        self._sites: dict[str, _Seen] = {}
        self._all = _Seen()
        self._calls, self._weighted = (
            0,
            0.0,
        )  # over all sites: calls, and the sum of each site's ratio as often as it was called

    def seed(self, site: str, alone_s: float) -> None:
        """From sample runs; what is then observed soon outweighs it."""
        for seen in (self._of(site), self._all):
            seen.per_item.setdefault(1, Learned()).seed(alone_s)
            seen.cheapest = seen.cheapest or alone_s

    def observe(self, site: str, size: int, payload_bytes: int, report: Report) -> Predicted:
        """A call ended with this report; what would be expected of it now."""
        size = max(size, 1)
        seen = self._of(site)
        before = seen.ratio * seen.calls
        seen.observe(size, payload_bytes, report, self._most)
        if seen.calls <= SETTLED:
            self._all.observe(size, payload_bytes, report, self._most)
        predicted = self.predict(site, size, payload_bytes)
        if predicted.alone_s > 0.0:
            seen.ratio = predicted.occupied_s / predicted.alone_s
        self._calls += 1
        self._weighted += seen.ratio * seen.calls - before
        self.ratio = self._weighted / self._calls
        return predicted

    def predict(self, site: str, size: int, payload_bytes: int) -> Predicted:
        """What is expected of a call; a site never seen is answered from the component's other sites."""
        size = max(size, 1)
        seen = self._sites.get(site, self._all)
        prompt, output = round(seen.tokens_per_byte.mean * payload_bytes), round(seen.output_tokens.mean)
        cost = self._cost
        if cost is None or (not prompt and isinstance(cost, TokenCost)):
            alone, occupied = seen.alone_s(size), seen.occupied_s(size)
        elif isinstance(cost, BatchCost):
            alone, occupied = cost(size), self._per_item_s * size
        else:
            return Predicted(cost.alone_s(prompt, output), cost.occupied_s(prompt, output), prompt, output)
        return Predicted(alone, occupied if occupied < alone else alone, prompt, output)

    def _of(self, site: str) -> _Seen:
        seen = self._sites.get(site)
        if seen is None:
            seen = self._sites[site] = _Seen()
        return seen


Costs = Mapping[str, BatchCost | TokenCost]
