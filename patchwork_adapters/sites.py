"""Call-sites: from which place in the chain a leaf is called (docs/decisions/call-sites.md).

A call-site's id is ``leaf@where``: the leaf's canonical path, and the way to the call through the chain's own structure. ``where`` is made
of what the framework knows of the running code (the step of a sequence, the key of a parallel part, the node of a graph, the object of a
query engine) and of the lines of the user's functions that the call came through. Nothing in it depends on the process, the request or
how often the place was visited. A leaf called from nowhere that is known has its own path as id.

Trackers of the frameworks (``sites_langchain``, ``sites_llamaindex``) follow the running code from one run, or span, to the next; they see
names and tags only, never inputs. They are installed once per process, however many chains ask for it.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, Protocol

from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.walk import Walk

#: Frames above a leaf call that are looked at, at about 0.1 us each; sync graphs are about a hundred deep.
MAX_DEPTH = 120
#: User functions named in a call-site, the innermost: recursion must not make a new place of every level.
MAX_FUNCTIONS = 3
#: Runs in flight that a tracker remembers; one whose end is never told (an abandoned generator) is forgotten in time.
MAX_RUNS = 50_000
_INSIDE = re.compile(r"<(listcomp|setcomp|dictcomp|genexpr)>$")

#: The user's lines above, noted where a framework goes on in a new task, whose stack starts anew.
LINES: ContextVar[str] = ContextVar("patchwork_lines_above", default="")

#: What each tracker said where the chain begins that is running, when it is a part of a larger one that is not ours.
_ABOVE: ContextVar[tuple[str, ...]] = ContextVar("patchwork_places_above", default=())

MAX_FAULTS = 20
faults: list[BaseException] = []


class Tracker(Protocol):
    """Knows where the running code is, in one framework."""

    def where(self, manager: Any) -> str:
        """Parts joined by ``/``, empty outside of any run. ``manager``: the run manager given to the leaf, if there is one."""
        ...

    def moment(self, manager: Any) -> tuple[Hashable, Hashable] | None:
        """(what runs at the same time, the member of it that runs now); None where nothing is known to."""
        ...


Use = Callable[[Tracker], Undo]

_lock = threading.Lock()
_installed = 0
_started: dict[str, Undo] = {}  #: module of a framework whose runs are followed -> how to stop that
_trackers: list[Tracker] = []
_codes: dict[int, str] = {}  #: id(code) -> name of the user's function
_places: dict[int, str] = {}  #: id(object) -> canonical path of a part of a chain; "" for a leaf
_kept: list[Walk] = []  #: keeps the objects alive whose ids are above


def install(walk: Walk) -> Undo:
    """Call-sites of this chain get their full ids from now on. Returns how to undo it, safe to repeat."""
    global _installed
    with _lock:
        _kept.append(walk)
        _rebuild()
        _start()  # a chain of another framework may have come since
        _installed += 1
    done = threading.Event()

    def undo() -> None:
        global _installed
        with _lock:
            if done.is_set():
                return
            done.set()
            # by identity: chains imported twice are equal, and values in them may not say whether they are
            del _kept[next(n for n, kept in enumerate(_kept) if kept is walk)]
            _rebuild()
            _installed -= 1
            while _installed == 0 and _started:
                _started.popitem()[1]()

    return undo


def site_of(leaf: str, manager: Any = None) -> str:
    """Id of the place from which ``leaf`` is being called now; the leaf's path alone while nothing is installed."""
    if not _installed:
        return leaf
    above = _ABOVE.get()
    places = [tracker.where(manager) for tracker in _trackers]
    if above:
        places = [_below(place, top) for place, top in itertools.zip_longest(places, above, fillvalue="")]
    parts = [place for place in places if place]
    lines = lines_above(sys._getframe(1)) or LINES.get()
    if lines:
        parts.append(lines)
    return at(leaf, "/".join(parts))


@contextmanager
def beginning_here() -> Iterator[None]:
    """Places within the block are told from here on, whatever larger chain this one is a part of."""
    token = _ABOVE.set(tuple(tracker.where(None) for tracker in _trackers))
    try:
        yield
    finally:
        _ABOVE.reset(token)


def _below(place: str, top: str) -> str:
    return place.removeprefix(top).removeprefix("/") if place == top or place.startswith(f"{top}/") else place


def moment(manager: Any = None) -> tuple[Hashable, Hashable] | None:
    """What the running code runs at the same time with, as the innermost tracker that knows says; equal within one process only."""
    return next((found for tracker in _trackers if (found := tracker.moment(manager)) is not None), None)


def note_fault(error: BaseException) -> None:
    """Of a tracker: frameworks log or swallow what a handler raises. Whoever samples raises them at the end."""
    if len(faults) < MAX_FAULTS:
        faults.append(error)


def lines_above(frame: FrameType | None) -> str:
    """``function:line`` of the user's functions on the stack, outermost first."""
    if not _codes:
        return ""
    found: list[str] = []
    known = _codes.get
    for _ in range(MAX_DEPTH):
        if frame is None:
            break
        name = known(id(frame.f_code))
        if name is not None:
            found.append(f"{name}:{frame.f_lineno}")
            if len(found) == MAX_FUNCTIONS:
                break
        frame = frame.f_back
    return "/".join(reversed(found))


def place_of(part: Any) -> str | None:
    """Canonical path of a part of an installed chain, empty for a leaf; None for any other object."""
    return _places.get(id(part))


def at(leaf: str, where: str) -> str:
    """The id of a call-site."""
    return f"{leaf}@{where}" if where else leaf


def leaf_of(site: str) -> str:
    return site.partition("@")[0]


def where_of(site: str) -> str:
    return site.partition("@")[2]


def is_within(site: str, outer: str) -> bool:
    """Whether a call-site is ``outer`` or a more exact name for a place in it: a run shows more than a chain's structure."""
    if site == outer:
        return True
    where, above = where_of(site), where_of(outer)
    return leaf_of(site) == leaf_of(outer) and (not above or (where.startswith(above) and where[len(above)] in "/.[:"))


def part(text: str) -> str:
    """A name as one part of a ``where``."""
    return text.replace("/", "_").replace("@", "_")


def remember(runs: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what a run is, and at most ``MAX_RUNS`` of them."""
    if len(runs) >= MAX_RUNS:
        for old in list(runs)[: MAX_RUNS // 2]:
            runs.pop(old, None)
    runs[key] = value


def _rebuild() -> None:
    codes: dict[int, str] = {}
    places: dict[int, str] = {}
    for walk in _kept:
        for function in walk.functions:
            _name_codes(function.__code__, codes)
        places.update((id(thing), path) for path, thing in walk.parts)
        places.update((id(leaf.obj), "") for leaf in walk.leaves)
    _codes.clear()
    _codes.update(codes)
    _places.clear()
    _places.update(places)


def _name_codes(code: CodeType, names: dict[int, str]) -> None:
    """The function's code and that inside it; a comprehension is part of the line that it stands in."""
    if not _INSIDE.search(code.co_name):
        names[id(code)] = part(code.co_name.strip("<>"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _name_codes(constant, names)


def _start() -> None:
    """Follow the frameworks that are loaded and not followed yet."""
    from patchwork_adapters import sites_langchain, sites_llamaindex

    frameworks = {"langchain_core.runnables.base": sites_langchain, "llama_index_instrumentation": sites_llamaindex}
    for module, framework in frameworks.items():
        if module in sys.modules and module not in _started:
            _started[module] = framework.install(_use)


def _use(tracker: Tracker) -> Undo:
    _trackers.append(tracker)
    return lambda: _trackers.remove(tracker)
