"""Times every call that reaches a leaf, by wrapping methods of the leaves' classes for a while; objects keep their classes.

A leaf may call another one while it works: a store embeds the question. The inner call counts as one that came before, and the outer one's
time is what is left of it. A call of a leaf by itself is part of its call.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from patchwork_adapters import sites
from patchwork_adapters.causes import Moment
from patchwork_adapters.constructions import Arguments
from patchwork_adapters.late import watch_constructions
from patchwork_adapters.raw_openai import RAW
from patchwork_adapters.sampling import SampledCall
from patchwork_adapters.tokens import Usage, usage_of
from patchwork_adapters.walk import Leaf

_END = object()
#: The innermost call under way.
_AROUND: ContextVar[_Open | None] = ContextVar("patchwork_probed_call", default=None)


@dataclass(frozen=True, slots=True)
class Probed:
    call: SampledCall
    moment: Moment


class Probes:
    """On from ``on`` to ``off``; ``begin`` starts a request, ``take`` gives its calls. One request at a time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._leaves: dict[int, tuple[Leaf, str]] = {}
        self._by_class: dict[type, tuple[Leaf, str]] = {}
        self._clients: dict[tuple[int, str | None], tuple[Leaf, str]] = {}  #: by (raw openai client, model)
        self._undo: list[Callable[[], None]] = []
        self._wrapped: set[tuple[type, str]] = set()
        self._began = clock()
        self._calls: list[Probed] = []
        self.faults: list[BaseException] = []  #: of the probes themselves

    def on(self, leaves: Iterable[Leaf], methods: Mapping[str, Iterable[str]], components: Mapping[str, str]) -> None:
        """``methods`` and ``components`` by leaf path; a leaf that the latter lacks is not probed."""
        for leaf in leaves:
            component = components.get(leaf.path)
            if component is None:
                continue
            self._know(leaf, component, leaf.obj)
            if leaf.late is not None:
                self._undo.append(watch_constructions(leaf.late.cls, functools.partial(self._note, leaf, component)))
            if leaf.spec.framework == RAW:
                self._wrap(type(leaf.obj), "request", self._open_request)
                continue
            self._by_class.setdefault(type(leaf.obj), (leaf, component))
            for name in methods.get(leaf.path, ()):
                self._wrap(type(leaf.obj), name, functools.partial(self._open, name))

    def _note(self, leaf: Leaf, component: str, obj: Any, arguments: Arguments) -> None:
        """An object that the chain constructs is the leaf that was made like it."""
        if leaf.late is not None and leaf.late.arguments == arguments:
            self._know(leaf, component, obj)

    def _know(self, leaf: Leaf, component: str, obj: Any) -> None:
        if leaf.spec.framework == RAW:
            self._clients[id(obj), leaf.spec.facts(leaf.obj).model] = (leaf, component)
        else:
            self._leaves[id(obj)] = (leaf, component)

    def off(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._wrapped.clear()

    def begin(self) -> None:
        with self._lock:
            self._calls = []
            self._began = self._clock()

    def take(self) -> tuple[Probed, ...]:
        """The request's calls by their start; ``loop`` is not known here."""
        with self._lock:
            return tuple(sorted(self._calls, key=lambda probed: probed.call.started))

    def _wrap(self, cls: type, name: str, opener: _Opener) -> None:
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        original = vars(owner).get(name) if owner is not None else None
        if owner is None or not inspect.isfunction(original) or (owner, name) in self._wrapped:
            return
        self._wrapped.add((owner, name))
        setattr(owner, name, _wrapper(original, opener))
        self._undo.append(functools.partial(setattr, owner, name, original))

    def _open(self, method: str, obj: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Open | None:
        """None for a call that is not counted: of a leaf by itself, or of an object that is none of the chain's."""
        around = _AROUND.get()
        if around is not None and around.is_of(obj):
            return None
        # a copy with other fields (configurable_fields, model_copy) is the leaf that it is a copy of
        known = self._leaves.get(id(obj)) or self._by_class.get(type(obj))
        if known is None:
            return None
        return self._opened(known, method, obj, _size(args, kwargs), kwargs.get("run_manager"))

    def _open_request(self, obj: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Open | None:
        """A request of a raw openai client: ``request(cast_to, options, ...)``."""
        options = args[1] if len(args) > 1 else kwargs.get("options")
        body = getattr(options, "json_data", None)
        body = body if isinstance(body, dict) else {}
        known = self._clients.get((id(obj), body.get("model")))
        if known is None:
            return None
        items = body.get("input")
        size = len(items) if isinstance(items, list) and known[0].kind == "embedder" else 1
        return self._opened(known, f"POST {getattr(options, 'url', '')}", obj, size, None)

    def _opened(self, known: tuple[Leaf, str], method: str, obj: Any, size: int, manager: Any) -> _Open:
        leaf, component = known
        asked = self._clock()
        site, moment = sites.site_of(leaf.path, manager), sites.moment(manager)
        now = self._clock()  # what the probe itself takes is nobody's time
        call = SampledCall(site, leaf.path, component, method, now - self._began, 0.0, size=size)
        return _Open(self, Probed(call, moment), leaf.kind, now, now - asked, obj, _AROUND.get())

    def close(self, opened: _Open, usage: Usage, error: BaseException | None) -> None:
        now = self._clock()
        whole = now - opened.since
        began = self._own_begin(opened, now, max(0.0, whole - opened.inside_s))
        call = replace(
            opened.probed.call, started=began - self._began, seconds=now - began, prompt_tokens=usage.prompt, output_tokens=usage.output,
            first_s=None if opened.first is None else opened.first - opened.since,
            error=None if error is None else type(error).__name__,
        )  # fmt: skip
        with self._lock:
            self._calls.append(replace(opened.probed, call=call))
            if opened.around is not None:
                opened.around.inside_s += whole + opened.probing_s
                opened.around.inside_until = now
                opened.around.kinds_inside.add(opened.kind)

    @staticmethod
    def _own_begin(opened: _Open, now: float, own_s: float) -> float:
        """From when on a call counts: after the calls that it made first, where they came first.

        A search has its question embedded first, however long it was kept waiting before.
        """
        began = now - own_s
        is_search = opened.kind == "retriever" and opened.kinds_inside == {"embedder"}
        is_prelude = began <= opened.inside_until and (is_search or opened.inside_until < began + own_s / 2)
        return opened.inside_until if is_prelude else began

    def now(self) -> float:
        return self._clock()

    def fault(self, error: BaseException) -> None:
        with self._lock:
            self.faults.append(error)


class _Open:
    """One call under way; closed once."""

    def __init__(
        self,
        owner: Probes,
        probed: Probed,
        kind: str,
        since: float,
        probing_s: float,
        obj: Any,
        around: _Open | None,
    ) -> None:
        self._owner = owner
        self._obj = obj
        self.around = around
        self.probed = probed
        self.kind = kind
        self.since = since
        self.probing_s = probing_s  #: spent before it, on finding its place
        self.inside_s = 0.0  #: spent in calls of other leaves
        self.inside_until = 0.0  #: when the last of them ended
        self.kinds_inside: set[str] = set()
        self.first: float | None = None
        self._usage = Usage()
        self._closed = False

    def is_of(self, obj: Any) -> bool:
        """Whether this call, or one that it is inside of, is one of ``obj``."""
        return self._obj is obj or (self.around is not None and self.around.is_of(obj))

    def see(self, value: Any, *, is_chunk: bool = False) -> None:
        if is_chunk and self.first is None:
            self.first = self._owner.now()
        try:
            self._usage = self._usage.plus(usage_of(value), is_chunk=is_chunk)
        except Exception as error:  # noqa: BLE001  a probe must not fail the call: it is told at the end
            self._owner.fault(error)

    def close(self, error: BaseException | None = None) -> None:
        if not self._closed:
            self._closed = True
            self._owner.close(self, self._usage, error)


_Opener = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], _Open | None]


@contextmanager
def _inside(opened: _Open | None) -> Iterator[None]:
    token = _AROUND.set(opened) if opened is not None else None
    try:
        yield
    finally:
        if token is not None:
            _AROUND.reset(token)


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Work items: the length of the list of texts, documents, pairs or prompts that the call is about."""
    first = (
        args[0] if args else next((v for name, v in kwargs.items() if name in ("texts", "documents", "prompts")), None)
    )
    is_texts = (
        isinstance(first, list) and bool(first) and not hasattr(first[0], "additional_kwargs")
    )  # no chat messages
    return len(first) if is_texts and isinstance(first, list) and not isinstance(first[0], float | int) else 1


def _wrapper(original: Any, open_: _Opener) -> Any:
    """In the original's colour; bound by ``__get__``, as an attribute would be."""
    if inspect.isasyncgenfunction(original):

        @functools.wraps(original)
        async def agen(self: Any, *args: Any, **kwargs: Any) -> Any:
            opened = open_(self, args, kwargs)
            # closed with this one: a stream that is left early ends in its own sample
            async with aclosing(_chunks_async(original.__get__(self)(*args, **kwargs), opened)) as chunks:
                async for chunk in chunks:
                    yield chunk

        return agen
    if inspect.isgeneratorfunction(original):

        @functools.wraps(original)
        def gen(self: Any, *args: Any, **kwargs: Any) -> Any:
            opened = open_(self, args, kwargs)
            yield from _chunks(original.__get__(self)(*args, **kwargs), opened)

        return gen
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
            opened = open_(self, args, kwargs)
            with _failing(opened), _inside(opened):
                value = await original.__get__(self)(*args, **kwargs)
            return _later(value, opened)

        return coroutine

    @functools.wraps(original)
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        opened = open_(self, args, kwargs)
        with _failing(opened), _inside(opened):
            value = original.__get__(self)(*args, **kwargs)
        return _later(value, opened)

    return function


def _later(value: Any, opened: _Open | None) -> Any:
    """A stream ends when it was read; anything else has ended. A client's own stream has methods that users call: it is left whole."""
    if opened is None:
        return value
    is_whole = type(value).__module__.startswith("openai.")
    if hasattr(value, "__anext__") and not is_whole:
        return _chunks_async(value, opened)
    if hasattr(value, "__next__") and not is_whole:
        return _chunks(value, opened)
    opened.see(value)
    opened.close()
    return value


def _chunks(chunks: Any, opened: _Open | None) -> Any:
    with _read(opened), closing(chunks) if hasattr(chunks, "close") else nullcontext():
        while True:
            with _inside(opened):
                chunk = next(chunks, _END)
            if chunk is _END:
                return
            _see(opened, chunk)
            yield chunk


async def _chunks_async(chunks: Any, opened: _Open | None) -> Any:
    with _read(opened):
        async with aclosing(chunks) if hasattr(chunks, "aclose") else nullcontext():
            while True:
                with _inside(opened):
                    chunk = await anext(chunks, _END)
                if chunk is _END:
                    return
                _see(opened, chunk)
                yield chunk


def _see(opened: _Open | None, chunk: Any) -> None:
    if opened is not None:
        opened.see(chunk, is_chunk=True)


@contextmanager
def _failing(opened: _Open | None) -> Iterator[None]:
    """Closes the call when the block raises; a stream that its reader left early has not failed."""
    try:
        yield
    except BaseException as error:
        if opened is not None:
            opened.close(None if isinstance(error, GeneratorExit) else error)
        raise


@contextmanager
def _read(opened: _Open | None) -> Iterator[None]:
    """Closes the call when its stream ends."""
    try:
        with _failing(opened):
            yield
    finally:
        if opened is not None:
            opened.close()
