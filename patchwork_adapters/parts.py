"""What an object is made of, for the walk: steps to the objects inside, in an order that is the same in every process."""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, cast

from patchwork_adapters.chains import class_names
from patchwork_adapters.leaves.spec import spec_for

Step = tuple[str, Any]  #: text appended to the path, object

_PRIMITIVE = (str, bytes, bytearray, int, float, complex, bool, type(None), type, BuiltinFunctionType, CodeType)
_UNSEEN_PACKAGES = (
    "logging.", "threading.", "_thread.", "asyncio.", "pydantic.", "pydantic_core.", "typing.", "numpy.", "re.", "concurrent.", "queue.",
    "contextvars.", "weakref.", "patchwork_adapters.leaves.deferred.", "tiktoken.", "pathlib.", "datetime.", "ssl.", "inspect.",
)  # fmt: skip
#: Bulk data: thousands of objects, no leaves.
_DATA = frozenset({
    "langchain_core.documents.base.BaseMedia", "langchain_core.messages.base.BaseMessage", "llama_index.core.schema.BaseNode",
    "llama_index.core.storage.docstore.types.BaseDocumentStore", "llama_index.core.storage.index_store.types.BaseIndexStore",
    "llama_index.core.graph_stores.types.GraphStore", "llama_index.core.data_structs.data_structs.IndexStruct",
})  # fmt: skip


def is_user_module(name: str | None) -> bool:
    """Whether a module belongs to the user's program: neither installed nor of the standard library."""
    if name is None or name in ("__main__", "__mp_main__"):
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        return "." not in name
    return file is not None and not file.startswith(_installed_folders()) and "site-packages" not in file


def is_users_code(function: FunctionType) -> bool:
    """Whether a function stands in a file of the user's: a decorator's wrapper names the module of what it wraps."""
    file = function.__code__.co_filename
    return (
        is_user_module(function.__module__)
        and not file.startswith(_installed_folders())
        and "site-packages" not in file
    )


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    ours = __file__.rsplit("/", 1)[0]
    return (
        *{p for name, p in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")},
        ours,
    )


def is_dull(value: Any) -> bool:
    if isinstance(value, _PRIMITIVE):
        return True
    module = type(value).__module__
    if f"{module}.".startswith(_UNSEEN_PACKAGES):
        return True
    return not _DATA.isdisjoint(names_of(value))


def names_of(value: Any) -> frozenset[str]:
    return _names(cast(Hashable, type(value)))


@functools.lru_cache(maxsize=10_000)
def _names(cls: type) -> frozenset[str]:
    return frozenset(class_names(cls))


def children(value: Any) -> Iterator[Step]:
    match value:
        case dict():
            for key, item in list(value.items()):
                yield f"[{key!r}]" if isinstance(key, str | int) else f"[{type(key).__name__}]", item
        case list() | tuple() | deque():
            yield from ((f"[{i}]", item) for i, item in enumerate(list(value)))
        case set() | frozenset():
            yield from ((f"{{{i}}}", item) for i, item in enumerate(sorted(value, key=_set_order)))
        case FunctionType():
            yield from _function(value)
        case MethodType():
            yield ".__self__", value.__self__
            yield from _function(value.__func__)
        case functools.partial():
            yield ".func", value.func
            yield from ((f".args[{i}]", item) for i, item in enumerate(value.args))
            yield from ((f".keywords[{name!r}]", item) for name, item in value.keywords.items())
        case ModuleType():
            return
        case _:
            yield from _instance(value)


def _set_order(value: Any) -> tuple[str, str]:
    """Equal in every process: neither hash nor address takes part."""
    text = value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__qualname__", "")
    return type(value).__qualname__, str(text)


def _instance(value: Any) -> Iterator[Step]:
    spec = spec_for(type(value))
    names = _fields(value)
    if spec is not None and spec.inner is not None:
        names = [(name, item) for name, item in names if name in spec.inner]
    elif "langchain_core.runnables.base.RunnableSequence" in names_of(value):
        # first, middle and last are how it is kept; steps is how people speak of it
        names = [(name, item) for name, item in names if name not in ("first", "middle", "last")]
        yield from ((f".steps[{i}]", step) for i, step in enumerate(value.steps))
    yield from ((f".{name}", item) for name, item in names)
    if is_user_module(type(value).__module__):
        yield from _user_class(type(value))


def _fields(value: Any) -> list[Step]:
    found: dict[str, Any] = {}
    for cls in reversed(type(value).__mro__):
        for name, member in vars(cls).items():
            if isinstance(member, MemberDescriptorType) and not name.startswith("__"):  # a slot, under its mangled name
                found[name] = _quiet(value, name)
    found.update(getattr(value, "__dict__", None) or {})
    for extra in ("__pydantic_extra__", "__pydantic_private__"):
        part = _quiet(value, extra)
        if isinstance(part, dict):
            found.update(part)
    return [(name, item) for name, item in found.items() if not _is_cached(type(value), name)]


def _quiet(value: Any, name: str) -> Any:
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return None


def _is_cached(cls: type, name: str) -> bool:
    """Values that are there only after somebody asked for them: a path through one would differ between processes."""
    return isinstance(getattr(cls, name, None), functools.cached_property) if isinstance(name, str) else False


def _user_class(cls: type) -> Iterator[Step]:
    for base in cls.__mro__:
        if not is_user_module(base.__module__) or base is object:
            continue
        for name, item in vars(base).items():
            if name.startswith("__") and name not in ("__init__", "__call__"):
                continue
            if isinstance(item, staticmethod | classmethod):
                item = item.__func__
            if isinstance(item, property):
                item = item.fget
            if not isinstance(item, type):
                yield f".{name}", item


def _function(function: Any) -> Iterator[Step]:
    code: CodeType = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"::{name}", cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from ((f"::{name}", item) for name, item in zip(names, defaults, strict=True))
    yield from ((f"::{name}", item) for name, item in (function.__kwdefaults__ or {}).items())
    if (wrapped := function.__dict__.get("__wrapped__")) is not None:
        yield ".__wrapped__", wrapped
    if is_user_module(function.__module__):
        for name, attributes in global_names(code).items():
            yield from _global(name, function.__globals__.get(name), attributes)


def _global(name: str, value: Any, attributes: Iterable[str]) -> Iterator[Step]:
    if not isinstance(value, ModuleType):
        yield f"::{name}", value
    elif is_user_module(
        value.__name__
    ):  # only what is read from it: other globals of that module may belong to another chain
        yield from ((f"::{name}.{item}", getattr(value, item, None)) for item in attributes)


@functools.lru_cache(maxsize=10_000)
def global_names(code: CodeType) -> dict[str, tuple[str, ...]]:
    """Global names that the code, or code inside it, loads, each with the attributes read from it at once."""
    found: dict[str, dict[str, None]] = {}
    last: str | None = None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.setdefault(name, {})
            last = name
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and last is not None:
            found[last][name] = None
            last = None
        else:
            last = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for name, attributes in global_names(constant).items():
                found.setdefault(name, {}).update(dict.fromkeys(attributes))
    return {name: tuple(attributes) for name, attributes in found.items()}
