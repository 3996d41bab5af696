"""One side of a check: the target imported afresh, run in every mode on every input, its leaf calls watched.

Each side does the same runs in the same order on objects of its own, so that memory, caches and checkpoints grow alike.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from patchwork_adapters import codec, sites
from patchwork_adapters.bridge import Bridge, install_portal
from patchwork_adapters.checking.answers import Answers
from patchwork_adapters.checking.cases import Case
from patchwork_adapters.checking.modes import Mode, modes_of
from patchwork_adapters.checking.process import LeafTransport
from patchwork_adapters.checking.values import Plain, plain
from patchwork_adapters.checking.watch import Seen, Watch
from patchwork_adapters.context import RequestContext, request_context
from patchwork_adapters.leaves.spec import spec_for
from patchwork_adapters.parts import is_user_module
from patchwork_adapters.placement import Placed, Placement, Stay, place
from patchwork_adapters.raw_openai import RAW
from patchwork_adapters.swap import methods_of, swap
from patchwork_adapters.target import LoadedTarget, load_target, parse_target
from patchwork_adapters.walk import Leaf, Walk, find_leaves


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run did."""

    mode: str
    case: int | None  #: number of the input, from 0; None: all of them in one call
    outcome: Plain
    calls: tuple[Seen, ...]  #: of leaves, as the chain made them
    arrived: tuple[Seen, ...] = ()  #: the same calls, as they arrived in the other process
    local: tuple[Seen, ...] = ()  #: those that a leaf's own class carried out in the chain's process


@dataclass(frozen=True, slots=True)
class Side:
    loaded: LoadedTarget
    walk: Walk
    placed: Placed
    ran: tuple[Ran, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())  #: (leaf, why) of those that were not swapped


def placement_of(leaf: Leaf) -> Placement | Stay:
    """Everything that can run elsewhere does: stores as their export, all else as the user's object."""
    if leaf.spec.export is not None and leaf.spec.engine_methods is not None:
        return Placement("engine", leaf.spec.engine or "")
    if leaf.spec.framework == RAW:
        return Stay(
            "a raw openai client: its requests go to its own server during a check, and to a component when deployed"
        )
    if not leaf.spec.cut(type(leaf.obj)):
        return Stay(f"{leaf.cls} defines none of the methods that are called from outside")
    return Placement("own", "own", leaf.spec.facts(leaf.obj).model)


def original_side(
    target: str,
    cases: Sequence[Case],
    timeout_s: float,
    modes: Sequence[str] | None = None,
    answers: Answers | None = None,
) -> Side:
    """The chain as it is; with ``answers``, its models are asked only for what is not known yet. Raises TargetError."""
    with _fresh(target) as loaded:
        walk, placed = _look(loaded)
        watch = Watch(answers)
        watch.on(walk.leaves, _watched(walk, placed))
        _watch_late(watch, walk)
        ran = []
        try:
            runs = _Runs(loaded, cases, timeout_s, modes, install=lambda loop: None, answers=answers)
            for mode, case, outcome in runs.all():
                ran.append(Ran(mode, case, outcome, tuple(watch.take())))
        finally:
            watch.off()
        return Side(loaded, walk, placed, tuple(ran))


def swapped_side(
    target: str,
    cases: Sequence[Case],
    timeout_s: float,
    transport: LeafTransport,
    modes: Sequence[str] | None = None,
    answers: Answers | None = None,
) -> Side:
    """The chain with every leaf that can run elsewhere in another process. Raises TargetError, here or there."""
    with Bridge(transport) as bridge, _fresh(target) as loaded, codec.strict():
        asyncio.run(transport.leaves())  # its import's errors now
        if answers is not None:
            asyncio.run(transport.answer_from(answers))
        asyncio.run(transport.take())
        walk, placed = _look(loaded)
        assigned = [leaf for leaf in walk.leaves if leaf.path in placed.assignments]
        own = [leaf for leaf in assigned if placed.assignments[leaf.path].way == "own"]
        methods = _watched(walk, placed)
        here = Watch()
        here.on(own, {})
        for leaf in own:
            here.on_class(type(leaf.obj), methods[leaf.path])
        _watch_late(here, walk)
        watch = Watch()
        swapped = swap(walk.leaves, placed.assignments, bridge, late_classes=walk.late_classes)
        follow = sites.install(walk)  # as in a deployed process
        watch.on(walk.leaves, methods)
        try:
            runs = _Runs(loaded, cases, timeout_s, modes, install=install_portal)
            ran = []
            for mode, case, outcome in runs.all():
                arrived = tuple(asyncio.run(transport.take()))
                ran.append(Ran(mode, case, outcome, tuple(watch.take()), arrived, tuple(here.take())))
            if answers is not None:
                answers.num_asked += asyncio.run(transport.num_asked())
        finally:
            watch.off()
            here.off()
            follow()
            swapped.undo()
        return Side(loaded, walk, placed, tuple(ran), tuple((o.where, o.why) for o in swapped.skipped))


def _look(loaded: LoadedTarget) -> tuple[Walk, Placed]:
    walk = find_leaves(loaded.chain, loaded.module, loaded.root)
    placed = place(walk.leaves, placement_of)
    # a store's export is asked for by the leaf's own name
    assignments = {path: replace(a, collection=path) for path, a in placed.assignments.items()}
    return walk, replace(placed, assignments=assignments)


def _watch_late(watch: Watch, walk: Walk) -> None:
    """Leaves that stay because they are constructed with what is known only then."""
    for cls in walk.late_classes:
        spec = spec_for(cls)
        if spec is not None:
            watch.on_class(cls, spec.cut(cls))


def _watched(walk: Walk, placed: Placed) -> dict[str, tuple[str, ...]]:
    return {
        leaf.path: methods_of(leaf, placed.assignments[leaf.path])
        for leaf in walk.leaves
        if leaf.path in placed.assignments
    }


@contextmanager
def _fresh(target: str) -> Iterator[LoadedTarget]:
    """The target's module imported anew, with the user's other modules; what was there before comes back."""
    parsed = parse_target(target)
    importlib.invalidate_caches()
    before = dict(sys.modules)
    kept_path = list(sys.path)
    sys.modules.pop(parsed.module, None)
    try:
        yield load_target(parsed)
    finally:
        sys.path[:] = kept_path
        for name in [name for name in sys.modules if name not in before]:
            if name == parsed.module or (is_user_module(name) and not name.startswith(__name__.split(".")[0])):
                del sys.modules[name]
        if parsed.module in before:
            sys.modules[parsed.module] = before[parsed.module]


class _Runs:
    """All runs of one side: synchronous modes in a thread without a loop, asynchronous ones on one loop."""

    def __init__(
        self,
        loaded: LoadedTarget,
        cases: Sequence[Case],
        timeout_s: float,
        modes: Sequence[str] | None,
        install: Callable[[asyncio.AbstractEventLoop], None],
        answers: Answers | None = None,
    ) -> None:
        self._answers = answers
        self._chain = loaded.chain
        self._cases = cases
        self._timeout_s = timeout_s
        self._modes = [m for m in modes_of(loaded.chain, loaded.framework) if modes is None or m.name in modes]
        self._install = install

    def all(self) -> Iterator[tuple[str, int | None, Plain]]:
        with asyncio.Runner() as runner:
            self._install(runner.get_loop())
            for mode in self._modes:
                if mode.together:
                    yield mode.name, None, self._run(mode, self._cases, runner)
                    continue
                for number, case in enumerate(self._cases):
                    yield mode.name, number, self._run(mode, [case], runner)

    def _run(self, mode: Mode, cases: Sequence[Case], runner: asyncio.Runner) -> Plain:
        name = str(uuid.uuid4())
        if self._answers is not None:
            self._answers.begin()
        try:
            with request_context(RequestContext(name, name, time.monotonic() + self._timeout_s)):
                if mode.is_async:
                    return runner.run(asyncio.wait_for(mode.run(self._chain, cases), self._timeout_s))
                return _in_thread(lambda: mode.run(self._chain, cases), self._timeout_s)
        except Exception as error:  # noqa: BLE001  the user's chain: its exceptions are compared like its values
            return {"raised": plain(error)}


def _in_thread(work: Callable[[], Any], timeout_s: float) -> Any:
    """``work()`` where no loop runs; after ``timeout_s`` the thread is left to itself. Raises TimeoutError."""
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  raised again by the waiter
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"the run did not end within {timeout_s:g} s")
    return done[0]
