"""The *own* way: a method of the user's leaf runs, unchanged, on the same leaf in another process.

Here are both ends: the overrides that send a call away, and the runner that carries it out in the replica. What travels is
``(fields, args, kwargs)``: fields are those that differ from the leaf as imported, which is how ``configurable_fields`` and
``model_copy`` reach a replica. Callback managers stay with the caller. What a call changes in a leaf that was constructed as the chain ran
comes back before or after the outcome (``late_state``).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import inspect
import operator
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from patchwork_adapters import codec, late_state
from patchwork_adapters.aliasing import METHODS, Aliased, Arguments
from patchwork_adapters.binding import Binding, Bound
from patchwork_adapters.errors import CodecError, NotExact
from patchwork_adapters.transport import LeafCall
from patchwork_adapters.walk import Leaf

_CALLBACKS = ("langchain_core.callbacks.", "langchain_core.tracers.", "llama_index.core.callbacks.")
_END = object()
_STARTED = codec.encode_outcome(None)
#: Starts a reply of ``[changed state, outcome]``; no outcome starts like this.
_CHANGED = b"\x7f"


def own_methods(
    cls: type, names: tuple[str, ...], returns_stream: frozenset[str] = frozenset()
) -> dict[str, Callable[..., Any]]:
    """An override for each method, of the same colour. ``returns_stream``: plain methods whose result is an iterator of chunks."""
    return {name: _override(name, inspect.getattr_static(cls, name), name in returns_stream) for name in names}


def _override(name: str, original: Any, returns_stream: bool) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(original):
        return _async_generator(name)
    if inspect.isgeneratorfunction(original):
        return _generator(name)
    if inspect.iscoroutinefunction(original):
        return _coroutine_of_stream(name) if returns_stream else _coroutine(name)
    return _plain_of_stream(name) if returns_stream else _plain(name)


def _call_of(
    leaf: Bound, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], stream: bool = False
) -> LeafCall:
    payload = payload_of(leaf, args, kwargs)
    return leaf.binding.leaf_call(name, payload, stream=stream, manager=kwargs.get("run_manager"))


def _plain(name: str) -> Callable[..., Any]:
    def call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        value = _outcome(leaf, leaf.binding.bridge.call(_call_of(leaf, name, args, kwargs)))
        return _arguments(args, kwargs).accept(value) if isinstance(value, Aliased) else value

    return call


def _coroutine(name: str) -> Callable[..., Any]:
    async def call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        value = _outcome(leaf, await leaf.binding.bridge.acall(_call_of(leaf, name, args, kwargs)))
        return _arguments(args, kwargs).accept(value) if isinstance(value, Aliased) else value

    return call


def _generator(name: str) -> Callable[..., Any]:
    def call(leaf: Bound, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from _chunks(leaf, leaf.binding.bridge.stream(_call_of(leaf, name, args, kwargs, stream=True)))

    return call


def _async_generator(name: str) -> Callable[..., Any]:
    async def call(leaf: Bound, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        frames = leaf.binding.bridge.astream(_call_of(leaf, name, args, kwargs, stream=True))
        async with contextlib.aclosing(frames):  # type: ignore[type-var]
            async for frame in frames:  # as _achunks, without a step of another generator for each chunk
                if (chunk := _outcome(leaf, frame)) is not _END:
                    yield chunk

    return call


def _plain_of_stream(name: str) -> Callable[..., Any]:
    # the call is made up at once: when the stream is read, the code that asked for it may have gone on elsewhere
    def call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        frames = leaf.binding.bridge.stream(_call_of(leaf, name, args, kwargs, stream=True))
        _outcome(leaf, next(frames))  # the method has run there: what it raised, it raises here and now
        return _chunks(leaf, frames)

    return call


def _chunks(leaf: Bound, frames: Iterator[bytes]) -> Iterator[Any]:
    with contextlib.closing(frames):  # type: ignore[type-var]
        for frame in frames:
            if (chunk := _outcome(leaf, frame)) is not _END:
                yield chunk


def _coroutine_of_stream(name: str) -> Callable[..., Any]:
    async def call(leaf: Bound, *args: Any, **kwargs: Any) -> Any:
        frames = leaf.binding.bridge.astream(_call_of(leaf, name, args, kwargs, stream=True))
        _outcome(leaf, await anext(frames))
        return _achunks(leaf, frames)

    return call


async def _achunks(leaf: Bound, frames: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async with contextlib.aclosing(frames):  # type: ignore[type-var]
        async for frame in frames:
            if (chunk := _outcome(leaf, frame)) is not _END:
                yield chunk


def _outcome(leaf: Bound, frame: bytes) -> Any:
    """The value of a frame; ``_END`` for one that only tells what changed. Raises what the leaf raised."""
    if frame[:1] == _CHANGED:
        state, frame = codec.decode(frame[1:])
        late_state.set_state(leaf.obj, state)
        if not frame:
            return _END
    return codec.decode_outcome(frame)


def payload_of(leaf: Bound, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Raises CodecError when an argument cannot travel."""
    binding = leaf.binding
    changed = late_state.changes(binding.baseline, leaf.obj) if binding.is_late else _changed_fields(leaf.obj, binding)
    return codec.encode([changed, *_sent(args, kwargs)])


def _sent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    sent = [None if _is_callback(value) else value for value in args]
    return sent, {name: value for name, value in kwargs.items() if not _is_callback(value)}


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """As the other side sees them, so that both count alike."""
    return Arguments(*_sent(args, kwargs))


def baseline_of(obj: Any) -> dict[str, Any]:
    """The fields to compare with later; values are held, not copied."""
    return dict(getattr(obj, "__dict__", {}))


def _changed_fields(obj: Any, binding: Binding) -> dict[str, Any]:
    fields = getattr(obj, "__dict__", {})
    baseline = binding.baseline
    # told from here at once, as nearly always: nothing was set since
    if (
        len(fields) == len(baseline)
        and all(map(operator.is_, fields, baseline))
        and all(map(operator.is_, fields.values(), baseline.values()))
    ):
        return {}
    changed = {
        name: value
        for name, value in fields.items()
        if value is not (before := baseline.get(name, _END)) and _differs(value, before)
    }
    return {
        name: value
        for name, value in changed.items()
        if not _is_cached(type(obj), name) and _travels(name, value, baseline.get(name, _END))
    }


def _is_cached(cls: type, name: str) -> bool:
    """What a property keeps in the object once it was asked for; the replica's object makes its own."""
    return isinstance(getattr(cls, name, None), functools.cached_property)


def _differs(value: Any, before: Any) -> bool:
    if type(value) is not type(before):
        return True
    same = value == before
    return not same if isinstance(same, bool) else True


def _travels(name: str, value: Any, before: Any) -> bool:
    """Clients and secrets are rebuilt in every process from the user's module; another value that cannot travel is an error."""
    if type(value).__name__ in ("SecretStr", "SecretBytes") or _is_callback(value):
        return False
    try:
        codec.encode(value)
    except NotExact:
        raise
    except CodecError:
        if type(value) is type(before):
            return False
        raise
    return True


def _is_callback(value: Any) -> bool:
    cls: type = type(value)
    return _is_callback_class(cls)


@functools.lru_cache(maxsize=4096)
def _is_callback_class(cls: type) -> bool:
    return cls.__module__.startswith(_CALLBACKS)


class OwnLeafRunner:
    """Carries out calls on the user's object in the replica. Plain methods run in threads: they may block for as long as they like."""

    def __init__(self, leaf: Any, *, is_late: bool = False) -> None:
        self._leaf = leaf
        self._is_late = is_late  #: it stands for objects that are constructed as the chain runs

    async def run(self, method: str, payload: bytes) -> bytes:
        """The encoded outcome; the user's exceptions are in it, not raised."""
        try:
            fields, args, kwargs = codec.decode(payload)
            leaf, was = self._leaf_with(fields)
        except Exception as error:  # noqa: BLE001  as below
            return codec.encode_outcome(error)
        outcome = await self._run(getattr(leaf, method), method, args, kwargs)
        changed = self._changed(leaf, was)
        return _CHANGED + codec.encode([changed, outcome]) if changed else outcome

    async def _run(self, function: Callable[..., Any], method: str, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        try:
            _complete(function, kwargs)
            given = (
                Arguments(args, {n: v for n, v in kwargs.items() if not _is_callback(v)}) if method in METHODS else None
            )
            if given is not None:
                given.remember()
            if inspect.iscoroutinefunction(function):
                value = await function(*args, **kwargs)
            else:
                value = await asyncio.to_thread(function, *args, **kwargs)
            return codec.encode_outcome(value if given is None else given.outcome(value))
        except Exception as error:  # noqa: BLE001  it is the user's: it travels and is raised where the leaf was called
            return codec.encode_outcome(error)

    async def stream(self, method: str, payload: bytes) -> AsyncIterator[bytes]:
        """The encoded chunks; an exception is the last one. Before those of a method that is no generator: None, when it has returned."""
        try:
            fields, args, kwargs = codec.decode(payload)
            leaf, was = self._leaf_with(fields)
            function = getattr(leaf, method)
        except Exception as error:  # noqa: BLE001  as below
            yield codec.encode_outcome(error)
            return
        failed = b""
        try:
            _complete(function, kwargs)
            chunks = function(*args, **kwargs)
            if inspect.isawaitable(chunks):
                chunks = await chunks
            if not inspect.isgeneratorfunction(function) and not inspect.isasyncgenfunction(function):
                yield _STARTED
            iterator = chunks if hasattr(chunks, "__anext__") else _in_thread(chunks)
            async for chunk in iterator:
                yield codec.encode_outcome(chunk)
        except Exception as error:  # noqa: BLE001  as above
            failed = codec.encode_outcome(error)
        if changed := self._changed(leaf, was):
            yield _CHANGED + codec.encode([changed, failed])
        elif failed:
            yield failed

    def _leaf_with(self, fields: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """The object to work with, and the state that it has, where that matters."""
        if not self._is_late:
            return (_with_fields(self._leaf, fields) if fields else self._leaf), {}
        leaf = late_state.fresh(self._leaf)
        late_state.set_state(leaf, late_state.copied(fields))
        return leaf, {**late_state.state_of(self._leaf), **fields}

    def _changed(self, leaf: Any, was: Mapping[str, Any]) -> dict[str, Any]:
        if not self._is_late:
            return {}
        late_state.keep_loaded(self._leaf, leaf)
        return late_state.changes(was, leaf)


def runner_of(leaf: Leaf) -> OwnLeafRunner:
    return OwnLeafRunner(leaf.obj, is_late=leaf.late is not None)


def _complete(function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """What the framework passes and a call leaves at home."""
    parameter = inspect.signature(function).parameters.get("run_manager")
    if parameter is not None and parameter.default is parameter.empty and "run_manager" not in kwargs:
        kwargs["run_manager"] = _silent_manager(inspect.iscoroutinefunction(function))


def _with_fields(leaf: Any, fields: Mapping[str, Any]) -> Any:
    if hasattr(type(leaf), "model_copy"):
        return leaf.model_copy(update=dict(fields))
    changed = copy.copy(leaf)
    changed.__dict__.update(fields)
    return changed


def _silent_manager(is_async: bool) -> Any:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

    return (AsyncCallbackManagerForRetrieverRun if is_async else CallbackManagerForRetrieverRun).get_noop_manager()


def _next(iterator: Iterator[Any]) -> Any:
    return next(iterator, _END)


async def _in_thread(chunks: Iterator[Any]) -> AsyncIterator[Any]:
    """Each step in a thread, all in one context: a generator may set context variables and read them later."""
    iterator = iter(chunks)
    context = contextvars.copy_context()
    try:
        while (chunk := await asyncio.to_thread(context.run, _next, iterator)) is not _END:
            yield chunk
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            await asyncio.to_thread(context.run, close)
