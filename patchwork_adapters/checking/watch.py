"""Sees the calls that reach leaves, by wrapping methods of their classes for a while. Objects keep their classes.

A call made inside another call of the same object (``embed_query`` that calls ``embed_documents``) is part of that call and not seen.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from patchwork_adapters.checking.answers import KINDS, Answer, Answers
from patchwork_adapters.checking.values import Plain, is_callback, plain
from patchwork_adapters.walk import Leaf

#: In the process that runs leaves: the leaf whose call is carried out. A copy with other fields is known by it.
SERVED: ContextVar[str | None] = ContextVar("patchwork_served_leaf", default=None)


_END = object()
#: Stands first in the answer of a method that returned a stream.
_STREAM = ("a stream of patchwork's check",)
NEW = "a new "  #: starts the name of an object that is no leaf of the chain
_Note = Callable[[str, str, Plain, Plain, bool], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A call of a leaf's cut method."""

    leaf: str
    method: str
    arguments: Plain
    outcome: Plain  #: what it returned, yielded or raised
    nested: bool  #: made while another leaf was working

    def asked(self) -> Plain:
        return {"leaf": self.leaf, "method": self.method, "arguments": self.arguments}

    def answered(self) -> Plain:
        return {"leaf": self.leaf, "method": self.method, "outcome": self.outcome}

    def to_plain(self) -> list[Plain]:
        return [self.leaf, self.method, self.arguments, self.outcome, self.nested]


class Watch:
    """Collects calls while it is on; safe in threads. With ``answers``, models are asked only for what is not known yet."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.answers = answers
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._paths: dict[int, str] = {}
        self._undo: list[Callable[[], None]] = []
        self._wrapped: dict[str, set[type]] = {}
        # of its own: a watch on the user's class must see a call inside one that a watch on the generated class sees
        self._inside: ContextVar[tuple[int, ...]] = ContextVar("patchwork_watched_calls", default=())

    def on(self, leaves: Iterable[Leaf], methods: Mapping[str, Iterable[str]]) -> None:
        """``methods``: by leaf path, those to watch."""
        for leaf in leaves:
            self._paths[id(leaf.obj)] = leaf.path
            for name in methods.get(leaf.path, ()):
                self._wrap(type(leaf.obj), name, leaf.kind in KINDS)
            for held in leaf.held:
                if held.name in methods.get(leaf.path, ()) and (undo := held.rebind()) is not None:
                    self._undo.append(undo)

    def on_class(self, cls: type, names: Iterable[str]) -> None:
        """Watch the methods of a class itself, whatever object they are called on."""
        for name in names:
            self._wrap(cls, name, False)

    def off(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._wrapped.clear()

    def take(self) -> list[Seen]:
        """What was seen since the last time."""
        with self._lock:
            seen, self._seen = self._seen, []
        return seen

    def _path_of(self, obj: Any) -> str:
        made = f"{NEW}{type(obj).__module__}.{type(obj).__qualname__}"
        return self._paths.get(id(obj)) or SERVED.get() or made

    def _wrap(self, cls: type, name: str, is_model: bool) -> None:
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        original = vars(owner).get(name) if owner is not None else None
        if owner is None or not inspect.isfunction(original) or owner in self._wrapped.get(name, ()):
            return
        wrapper = _wrapper(original, functools.partial(self._call, name, is_model))
        self._wrapped.setdefault(name, set()).add(owner)
        setattr(owner, name, wrapper)
        self._undo.append(functools.partial(setattr, owner, name, original))

    def _call(self, name: str, is_model: bool, obj: Any, args: Any, kwargs: Any) -> _Call:
        call = _Call(obj, self._path_of(obj), name, self._inside, self._note, (args, kwargs))
        if is_model and call.counts and self.answers is not None:
            call.answer = self.answers.answer_to(obj, self._paths.get(id(obj)), name, call.arguments)
        return call

    def _note(self, leaf: str, method: str, arguments: Plain, outcome: Plain, nested: bool) -> None:
        with self._lock:
            self._seen.append(Seen(leaf, method, arguments, outcome, nested))


class _Call:
    """One call: says whether it counts, and notes it once at its end."""

    def __init__(
        self, obj: Any, path: str, name: str, inside: ContextVar[tuple[int, ...]], note: _Note, call: Any
    ) -> None:
        self._inside = inside
        above = inside.get()
        self.counts = id(obj) not in above
        self._stack = (*above, id(obj))
        self._nested = bool(above)
        self._note, self._path, self._name = note, path, name
        self._call = call
        self.arguments = _arguments(*call) if self.counts else None
        self.answer: Answer | None = None
        self._done = False

    @contextmanager
    def running(self) -> Iterator[None]:
        token = self._inside.set(self._stack)
        try:
            yield
        finally:
            self._inside.reset(token)

    @property
    def known(self) -> Answer | None:
        """The answer, when there is no need to ask."""
        return self.answer if self.answer is not None and self.answer.is_known else None

    def note(self, outcome: Any) -> None:
        if self.answer is not None:
            self.answer.note(outcome)

    def end(self, outcome: Plain) -> None:
        if self.counts and not self._done:
            self._done = True
            if self.answer is not None:
                self.answer.keep()
            after = _arguments(*self._call)
            if (
                after != self.arguments
            ):  # what a reranker does to the nodes that it is given is seen by others who have them
                outcome = {"outcome": outcome, "arguments now": after}
            self._note(self._path, self._name, self.arguments, outcome, self._nested)


def _arguments(args: Any, kwargs: Any) -> Plain:
    named = {n: plain(v) for n, v in sorted(kwargs.items()) if not is_callback(v) and v is not None}
    return {"positional": [None if is_callback(v) else plain(v) for v in args], "named": named}


def _wrapper(original: Any, call_of: Callable[[Any, Any, Any], _Call]) -> Any:
    """In the original's colour. Bound by ``__get__``, as an attribute would be: decorators look at the object."""

    if inspect.isasyncgenfunction(original):

        @functools.wraps(original)
        async def agen(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = call_of(self, args, kwargs)
            chunks = _async(call.known.chunks()) if call.known else original.__get__(self)(*args, **kwargs)
            async for chunk in _chunks_async(chunks, call):
                yield chunk

        return agen
    if inspect.isgeneratorfunction(original):

        @functools.wraps(original)
        def gen(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = call_of(self, args, kwargs)
            chunks = call.known.chunks() if call.known else original.__get__(self)(*args, **kwargs)
            yield from _chunks(chunks, call)

        return gen
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = call_of(self, args, kwargs)
            try:
                with call.running():
                    value = (
                        _replayed(call, is_async=True) if call.known else await original.__get__(self)(*args, **kwargs)
                    )
            except BaseException as error:
                call.note(error)
                call.end({"raised": plain(error)})
                raise
            return _later(value, call)

        return coroutine

    @functools.wraps(original)
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = call_of(self, args, kwargs)
        try:
            with call.running():
                value = _replayed(call, is_async=False) if call.known else original.__get__(self)(*args, **kwargs)
        except BaseException as error:
            call.note(error)
            call.end({"raised": plain(error)})
            raise
        return _later(value, call)

    return function


def _later(value: Any, call: _Call) -> Any:
    """A stream's outcome is known when it was read; anything else is there."""
    if not call.counts:
        return value
    if hasattr(value, "__anext__"):
        call.note(_STREAM)
        return _chunks_async(value, call)
    if hasattr(value, "__next__"):
        call.note(_STREAM)
        return _chunks(value, call)
    call.note(value)
    call.end(plain(value))
    return value


def _replayed(call: _Call, *, is_async: bool) -> Any:
    """A value, or a stream for a method that returned one."""
    assert call.known is not None
    value = call.known.value()
    if value != _STREAM:
        return value
    chunks = itertools.islice(call.known.chunks(), 1, None)
    return _async(chunks) if is_async else chunks


async def _async(chunks: Iterator[Any]) -> Any:
    for chunk in chunks:
        yield chunk


def _chunks(chunks: Any, call: _Call) -> Any:
    seen: list[Plain] = []
    with _told(call, seen), closing(chunks) if hasattr(chunks, "close") else nullcontext():
        while True:
            with call.running():
                chunk = next(chunks, _END)
            if chunk is _END:
                return
            _note(call, seen, chunk)
            yield chunk


async def _chunks_async(chunks: Any, call: _Call) -> Any:
    seen: list[Plain] = []
    with _told(call, seen):
        async with aclosing(chunks) if hasattr(chunks, "aclose") else nullcontext():
            while True:
                with call.running():
                    chunk = await anext(chunks, _END)
                if chunk is _END:
                    return
                _note(call, seen, chunk)
                yield chunk


def _note(call: _Call, seen: list[Plain], chunk: Any) -> None:
    call.note(chunk)
    seen.append(plain(chunk))


@contextmanager
def _told(call: _Call, seen: list[Plain]) -> Iterator[None]:
    """Ends the call with what it yielded, and with what it raised."""
    try:
        yield
    except GeneratorExit as error:  # left early: not the whole answer
        call.answer = None
        call.end({"yielded": seen, "raised": plain(error)})
        raise
    except BaseException as error:
        call.note(error)
        call.end({"yielded": seen, "raised": plain(error)})
        raise
    call.end({"yielded": seen})
