"""Whether a chain answers the same with its leaves in another process: the original twice, then the swapped chain, compared.

Compared are outcomes (values, chunks, exceptions, checkpoints), the multiset of leaf calls with their arguments, and what the leaves
answered; and, at the border of the processes, that each call arrives as it was made. Outputs alone hide losses: a chain that returns
text drops what a codec may have lost before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from patchwork_adapters.checking.answers import Answers
from patchwork_adapters.checking.cases import Case, case_of
from patchwork_adapters.checking.compare import MAX_LINES, call_differences, differences, is_same, unmatched
from patchwork_adapters.checking.process import LeafProcess
from patchwork_adapters.checking.sides import Ran, Side, original_side, swapped_side
from patchwork_adapters.checking.values import Plain, mask, varying
from patchwork_adapters.checking.watch import NEW, Seen
from patchwork_adapters.graph import Opaque

Verdict = Literal["equal", "different", "nondeterministic"]
TIMEOUT_S = 120.0  #: of one run


@dataclass(frozen=True, slots=True)
class RunCheck:
    mode: str
    case: int | None  #: number of the input, from 0; None: all of them in one call
    verdict: Verdict  #: nondeterministic: the original differs from itself, and nothing can be said
    leaf_calls: int  #: that the swapped chain made
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckResult:
    target: str
    framework: str
    leaves: tuple[tuple[str, str], ...]  #: (path, way) of those that ran elsewhere
    runs: tuple[RunCheck, ...]
    local: tuple[tuple[str, int], ...]  #: (what, calls) of leaves that are made during a run and so stayed
    opaque: tuple[Opaque, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Nothing was found to differ."""
        return all(run.verdict != "different" for run in self.runs)

    def modes(self) -> dict[str, Verdict]:
        """The worst verdict of each mode."""
        order: tuple[Verdict, ...] = ("equal", "nondeterministic", "different")
        found: dict[str, Verdict] = {}
        for run in self.runs:
            found[run.mode] = max(found.get(run.mode, "equal"), run.verdict, key=order.index)
        return found

    def to_json(self) -> dict[str, Any]:
        """The document that ``patchwork check --json`` prints."""
        return {
            "target": self.target,
            "framework": self.framework,
            "equal": self.is_equal,
            "modes": self.modes(),
            "leaves": [{"path": path, "way": way} for path, way in self.leaves],
            "runs": [asdict(run) for run in self.runs],
            "local": [{"what": what, "calls": calls} for what, calls in self.local],
            "opaque": [asdict(opaque) for opaque in self.opaque],
            "notes": list(self.notes),
        }


def check(
    target: str,
    inputs: Iterable[Any],
    *,
    process: LeafProcess | None = None,
    modes: Sequence[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    replay: bool = False,
) -> CheckResult:
    """Runs the target's chain in every mode that it has (or in ``modes``) on every input; must not be called from a running event loop.

    ``inputs``: values or :class:`Case`. ``replay``: models and embeddings are asked once for each thing; every other run, on either
    side, gets the same answer. Then a model whose answers vary can be compared, too. The module is imported three times here and once
    in the process that runs the leaves. Raises TargetError when it cannot be.
    """
    cases = [value if isinstance(value, Case) else case_of(value) for value in inputs]
    answers = Answers() if replay else None
    first = original_side(target, cases, timeout_s, modes, answers)
    second = original_side(target, cases, timeout_s, modes, answers)
    with contextlib.nullcontext(process) if process is not None else LeafProcess() as leaves:
        swapped = swapped_side(target, cases, timeout_s, leaves.transport(target), modes, answers)
    result = _result(target, first, second, swapped)
    return result if answers is None else replace(result, notes=(*result.notes, _asked(answers)))


def _asked(answers: Answers) -> str:
    return f"models were asked {answers.num_asked} times; the rest was answered with what they had said"


def _result(target: str, first: Side, second: Side, swapped: Side) -> CheckResult:
    runs = [_compare(a, b, c, swapped) for a, b, c in zip(first.ran, second.ran, swapped.ran, strict=True)]
    local: dict[str, int] = {}
    for ran in swapped.ran:
        for seen in ran.local:
            if seen.leaf.startswith(NEW):
                what = f"{seen.leaf}.{seen.method}"
                local[what] = local.get(what, 0) + 1
    notes = [f"{path}: not swapped: {why}" for path, why in swapped.skipped]
    raised = {str(ran.outcome["raised"]["@"]) for ran in first.ran if "raised" in ran.outcome}
    if raised and all("raised" in ran.outcome for ran in first.ran):
        notes.append(f"the original raised on every input ({', '.join(sorted(raised))}): only its errors were compared")
    return CheckResult(
        target=target,
        framework=swapped.loaded.framework,
        leaves=tuple((path, assignment.way) for path, assignment in swapped.placed.assignments.items()),
        runs=tuple(runs),
        local=tuple(sorted(local.items())),
        opaque=(*swapped.placed.opaque, *swapped.walk.opaque),
        notes=tuple(notes),
    )


def _compare(first: Ran, second: Ran, swapped: Ran, side: Side) -> RunCheck:
    stable = varying(_whole(first)) & varying(_whole(second))
    made = list(swapped.calls)
    # leaves that another leaf called where it ran, and those that were made during the run and called here
    inner = [seen for seen in swapped.arrived if seen.nested]
    inner += [seen for seen in swapped.local if seen.leaf.startswith(NEW)]
    itself = list(_lines(first.outcome, second.outcome, first.calls, second.calls, stable))
    lines = list(_lines(first.outcome, swapped.outcome, first.calls, [*made, *inner], stable))
    lines += _border_lines(swapped, side, stable)
    verdict: Verdict = "equal" if not lines else "nondeterministic" if itself else "different"
    if verdict == "nondeterministic":
        lines = [f"the original differs from itself: {line}" for line in itself]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"and {len(lines) - MAX_LINES} more"]
    return RunCheck(swapped.mode, swapped.case, verdict, len(made) + len(inner), tuple(lines))


def _lines(
    before: Plain, after: Plain, calls: Sequence[Seen], others: Sequence[Seen], stable: frozenset[str]
) -> Iterator[str]:
    before, after = mask(before, stable), mask(after, stable)
    chunks, others_chunks = before.pop("chunks", None), after.pop("chunks", None)
    yield from differences(before, after)
    # parallel branches race in the original as well: their chunks come in any order
    if not is_same(chunks, others_chunks) and any(unmatched(chunks or [], others_chunks or [])):
        yield from differences(chunks, others_chunks, "chunks")
    asked, now_asked = _all(calls, "asked", stable), _all(others, "asked", stable)
    lines = list(call_differences(asked, now_asked))
    if not lines:  # else the answers differ as well, and say no more
        lines = list(call_differences(_all(calls, "answered", stable), _all(others, "answered", stable)))
    yield from (f"leaf call {line}" for line in lines)


def _border_lines(ran: Ran, side: Side, stable: frozenset[str]) -> Iterator[str]:
    """What a call lost on its way, and calls that never left."""
    own = {leaf.path: leaf.cls for leaf in side.walk.leaves if _way(side, leaf.path) == "own"}
    # a copy with other fields arrives as a call of the leaf that it is a copy of: they have the class in common
    classes = {f"{NEW}{cls}": cls for cls in own.values()} | own
    sent = [replace(seen, leaf=classes[seen.leaf]) for seen in ran.calls if seen.leaf in classes]
    arrived = [replace(s, leaf=classes[s.leaf]) for s in ran.arrived if not s.nested and s.leaf in classes]
    lines = call_differences(_all(sent, "asked", stable), _all(arrived, "asked", stable))
    yield from (f"on its way {line}" for line in lines)
    yield from (
        f"stayed in this process: {seen.leaf}.{seen.method}" for seen in ran.local if not seen.leaf.startswith(NEW)
    )


def _way(side: Side, path: str) -> str | None:
    assignment = side.placed.assignments.get(path)
    return assignment.way if assignment is not None else None


def _all(calls: Iterable[Seen], part: Literal["asked", "answered"], stable: frozenset[str]) -> list[Plain]:
    return [mask(getattr(seen, part)(), stable) for seen in calls]


def _whole(ran: Ran) -> Plain:
    return [ran.outcome, *(seen.to_plain() for seen in ran.calls)]
