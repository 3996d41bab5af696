"""Which calls of a request came before which: visits, and the steps from one to the next.

Nothing tells directly what a call waited for. It cannot have waited for a call that had not ended, nor for one in a part of the chain that
runs beside its own; of the others, those that no later one stands behind are taken for its causes. Parts that run beside each other are
told by their call-sites (two keys of a parallel part) and, in a graph, by the step in which their nodes ran.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from patchwork_adapters.sampling import SampledCall
from patchwork_adapters.sites import where_of

#: (what runs at the same time, the member of it that made the call); None: not known to be part of such a thing
Moment = tuple[Hashable, Hashable] | None


@dataclass(frozen=True, slots=True)
class Visit:
    """Calls from one place with nothing else of the chain in between: one, several at once, or several in turn."""

    site: str
    calls: tuple[int, ...]  #: numbers of the calls


@dataclass(frozen=True, slots=True)
class Causes:
    loops: tuple[int, ...]  #: for each call, how many of its own call-site had ended before it
    serial: Mapping[str, int]  #: the longest row of calls in turn at each call-site
    visits: tuple[Visit, ...]
    steps: tuple[tuple[int | None, int | None], ...]  #: from visit to visit; None: the request's begin, its end


def causes_of(calls: Sequence[SampledCall], moments: Sequence[Moment]) -> Causes:
    """``calls`` by their start."""
    order = _Order(calls, moments)
    before = [[u for u in range(v) if order.is_before(u, v)] for v in range(len(calls))]
    own = [[u for u in before[v] if calls[u].site == calls[v].site] for v in range(len(calls))]
    depth: list[int] = []
    serial: dict[str, int] = {}
    for v, call in enumerate(calls):
        depth.append(1 + max((depth[u] for u in own[v]), default=0))
        serial[call.site] = max(serial.get(call.site, 0), depth[v])
    visits, visit_of = _visits(calls, before)
    return Causes(tuple(len(u) for u in own), serial, visits, _steps(order, before, visits, visit_of))


class _Order:
    def __init__(self, calls: Sequence[SampledCall], moments: Sequence[Moment]) -> None:
        self._calls = calls
        self._moments = moments

    def is_before(self, u: int, v: int) -> bool:
        return self._calls[u].ended <= self._calls[v].started and not self._is_beside(u, v)

    def _is_beside(self, u: int, v: int) -> bool:
        a, b = self._moments[u], self._moments[v]
        if a is not None and b is not None and a[0] == b[0] and a[1] != b[1]:
            return True
        return are_apart(self._calls[u].site, self._calls[v].site)


def are_apart(a: str, b: str) -> bool:
    """Whether two places are in different keys of one parallel part."""
    for left, right in zip(where_of(a).split("/"), where_of(b).split("/"), strict=False):
        if left != right:
            return left.startswith("{") and right.startswith("{")
    return False


def _visits(calls: Sequence[SampledCall], before: Sequence[Sequence[int]]) -> tuple[tuple[Visit, ...], dict[int, int]]:
    groups: list[list[int]] = []
    last: dict[str, int] = {}
    visit_of: dict[int, int] = {}
    for v, call in enumerate(calls):
        known = last.get(call.site)
        if known is None or _comes_between(calls, before, groups[known], v):
            known = last[call.site] = len(groups)
            groups.append([])
        groups[known].append(v)
        visit_of[v] = known
    return tuple(Visit(calls[group[0]].site, tuple(group)) for group in groups), visit_of


def _comes_between(calls: Sequence[SampledCall], before: Sequence[Sequence[int]], group: Sequence[int], v: int) -> bool:
    others = (w for w in before[v] if calls[w].site != calls[v].site)
    return any(u in before[w] for w in others for u in group)


def _steps(
    order: _Order, before: Sequence[Sequence[int]], visits: Sequence[Visit], visit_of: Mapping[int, int]
) -> tuple[tuple[int | None, int | None], ...]:
    found: dict[tuple[int | None, int | None], None] = {}
    for v, earlier in enumerate(before):
        causes = [u for u in earlier if not any(u in before[w] for w in reversed(earlier) if w > u)]
        if not causes:
            found[None, visit_of[v]] = None
        for u in causes:
            if visit_of[u] != visit_of[v]:
                found[visit_of[u], visit_of[v]] = None
    led_on = {source for source, _ in found}
    found.update({(number, None): None for number in range(len(visits)) if number not in led_on})
    return tuple(found)
