"""Embeddings that a module's import computes by itself: recorded by the builder, answered from the record elsewhere (design, D4b).

Requests of OpenAI clients are recorded where they leave the process (``record``). Other embedders compute in it, or through clients that
nobody knows, so their methods are watched: those of every class of embeddings, from the moment when the class is made to the end of the
import. What is asked is told by content: the object's class and data, the code and the versions behind it, and the texts. An object whose
answers that does not settle (its data changes as it works, or another object has the same data around other weights) is not recorded.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from patchwork_adapters import codec
from patchwork_adapters.errors import CodecError
from patchwork_adapters.import_hooks import Undo, when_imported
from patchwork_adapters.late_state import is_data, state_of
from patchwork_adapters.leaves.spec import spec_for
from patchwork_adapters.parts import is_user_module
from patchwork_adapters.record import ImportRecord
from patchwork_adapters.transport import LeafCall

#: Base classes of embeddings, by the modules that define them.
_BASES = {
    "langchain_core.embeddings.embeddings": "Embeddings",
    "llama_index.core.base.embeddings.base": "BaseEmbedding",
}
#: Parts of an object that say nothing of what it answers.
_EMPTY_TYPES = (
    "_thread.", "threading.", "logging.", "asyncio.", "weakref.", "langchain_core.callbacks.", "llama_index.core.callbacks.",
)  # fmt: skip
_MARK = "_patchwork_watched"
_MAX_FILES = 1000

#: Objects that are answering now: what they ask of themselves is part of their answer.
_INSIDE: ContextVar[frozenset[int]] = ContextVar("patchwork_import_calls", default=frozenset())
_originals: dict[tuple[type, str], Callable[..., Any]] = {}
_now: ImportCalls | None = None


class ImportCalls:
    """The calls of one import. ``is_recording``: unknown ones are kept; else they are made, and that is all."""

    def __init__(self, record: ImportRecord, *, is_recording: bool) -> None:
        self._record = record
        self._is_recording = is_recording
        self._lock = threading.Lock()
        self._owners: dict[bytes, Any] = {}  #: identity -> the first object that had it
        self._kept: dict[bytes, list[LeafCall]] = {}
        self._unsettled: set[bytes] = set()
        self.num_asked = 0  #: calls that the record did not know

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the time of an import; one at a time."""
        global _now
        undo = [when_imported(module, functools.partial(_watch, name)) for module, name in _BASES.items()]
        _now = self
        try:
            yield
        finally:
            _now = None
            while undo:
                undo.pop()()

    def call_of(self, obj: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LeafCall | None:
        """None when the answer has to be computed and is not kept."""
        identity = _identity(obj)
        if identity is None:
            return None
        with self._lock:
            owner = self._owners.setdefault(identity, obj)
        if owner is not obj and _holds_more_than_data(obj):
            self.unsettle(identity)
            return None
        try:
            payload = codec.encode([list(args), kwargs])
        except CodecError:
            return None
        return LeafCall(component=f"import-{identity.hex()}", leaf="", method=method, payload=payload)

    def known(self, call: LeafCall) -> list[bytes] | None:
        return self._record.get(call)

    def keep(self, call: LeafCall, obj: Any, value: Any) -> None:
        self.num_asked += 1
        if not self._is_recording:
            return
        identity = bytes.fromhex(call.component.removeprefix("import-"))
        if _identity(obj) != identity:
            self.unsettle(identity)
            return
        with self._lock:
            if identity not in self._unsettled:
                self._record.put(call, [codec.encode_outcome(value)])
                self._kept.setdefault(identity, []).append(call)

    def unsettle(self, identity: bytes) -> None:
        with self._lock:
            self._unsettled.add(identity)
            for call in self._kept.pop(identity, ()):
                self._record.remove(call)


def _watch(name: str, module: ModuleType) -> Undo:
    base = getattr(module, name)
    undo: list[Undo] = []

    def meet(cls: type) -> None:
        spec = spec_for(cls)
        if spec is None or spec.speaks_openai:
            return
        for method in spec.cut(cls):
            original = vars(cls).get(method)
            if callable(original) and not hasattr(original, _MARK):
                undo.append(_replace(cls, method, original))

    before = vars(base).get("__init_subclass__")

    def __init_subclass__(cls: type, /, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs) if before is None else before.__func__(cls, **kwargs)
        meet(cls)

    base.__init_subclass__ = classmethod(__init_subclass__)
    for cls in _below(base):
        meet(cls)

    def undo_all() -> None:
        if before is None:
            del base.__init_subclass__
        else:
            base.__init_subclass__ = before
        while undo:
            undo.pop()()

    return undo_all


def _below(base: type) -> list[type]:
    found: dict[type, None] = {}
    waiting = [base]
    while waiting:
        below: list[type] = waiting.pop().__subclasses__()
        for cls in below:
            if cls not in found:
                found[cls] = None
                waiting.append(cls)
    return list(found)


def _replace(cls: type, method: str, original: Any) -> Undo:
    key = cls, method
    _originals[key] = original
    watched = _coroutine(key) if inspect.iscoroutinefunction(original) else _plain(key)
    functools.update_wrapper(watched, original)
    setattr(watched, _MARK, True)
    watched.__module__ = __name__  # else a walk that meets it takes what it reads for the user's globals
    setattr(cls, method, watched)

    def undo() -> None:
        if vars(cls).get(method) is watched:
            setattr(cls, method, original)

    return undo


def _plain(key: tuple[type, str]) -> Callable[..., Any]:
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = _originals[key]
        calls, call = _asked(self, key, args, kwargs)
        if calls is None or call is None:
            return original(self, *args, **kwargs)
        if (known := calls.known(call)) is not None:
            return codec.decode_outcome(known[0])
        with _inside(self):
            value = original(self, *args, **kwargs)
        calls.keep(call, self, value)
        return value

    return watched


def _coroutine(key: tuple[type, str]) -> Callable[..., Any]:
    async def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = _originals[key]
        calls, call = _asked(self, key, args, kwargs)
        if calls is None or call is None:
            return await original(self, *args, **kwargs)
        if (known := calls.known(call)) is not None:
            return codec.decode_outcome(known[0])
        with _inside(self):
            value = await original(self, *args, **kwargs)
        calls.keep(call, self, value)
        return value

    return watched


def _asked(
    obj: Any, key: tuple[type, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ImportCalls | None, LeafCall | None]:
    calls = _now
    if calls is None or id(obj) in _INSIDE.get():  # the import is over; the method was taken while it lasted
        return None, None
    return calls, calls.call_of(obj, f"{key[0].__qualname__}.{key[1]}", args, kwargs)


@contextmanager
def _inside(obj: Any) -> Iterator[None]:
    token = _INSIDE.set(_INSIDE.get() | {id(obj)})
    try:
        yield
    finally:
        _INSIDE.reset(token)


def _identity(obj: Any) -> bytes | None:
    """Digest of what decides on an embedder's answers, as far as it can be told."""
    data = {name: value for name, value in sorted(state_of(obj).items()) if value is not None and is_data(value)}
    try:
        parts = [codec.encode(data), *(_code_behind(cls) for cls in type(obj).__mro__)]
    except CodecError:
        return None
    parts += [_file_facts(value) for value in data.values() if isinstance(value, str | Path)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _holds_more_than_data(obj: Any) -> bool:
    spec = spec_for(type(obj))
    if spec is not None and spec.engine is not None:  # its weights are those that its settings name
        return False
    return any(
        not is_data(value) and not f"{type(value).__module__}.".startswith(_EMPTY_TYPES)
        for value in state_of(obj).values()
    )


@functools.lru_cache(maxsize=1000)
def _code_behind(cls: type) -> bytes:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not is_user_module(cls.__module__):
        package = cls.__module__.partition(".")[0]
        try:
            return f"{name} {version(package.replace('_', '-'))}".encode()
        except PackageNotFoundError:
            return name.encode()
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    digest = hashlib.sha256(name.encode())
    for path in sorted(Path(file).parent.glob("*.py")) if file else ():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()


def _file_facts(value: str | Path) -> bytes:
    """Of the file or folder that a setting names: other weights in the same place are another model."""
    try:
        path = Path(value)
        files = sorted(path.rglob("*"))[:_MAX_FILES] if path.is_dir() else [path] if path.is_file() else []
        return repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]).encode()
    except (OSError, ValueError):  # a text that is no path
        return b""
