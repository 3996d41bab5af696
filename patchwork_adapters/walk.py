"""Walks the objects that a chain is made of and names them by canonical paths.

A path says how to get from a global of the user's module to an object: ``llm``, ``chain.steps[2]``, ``answer::retriever`` (a name that
function ``answer`` uses). Each process walks by itself and must arrive at the same paths: the order of visits follows insertion order
only, nothing is imported or called, and values that appear while the chain runs (cached properties) are not looked at.

What is looked at: fields, private attributes and slots, containers, bound methods, partials, closures, defaults and, for functions of the
user's modules only, the globals that their bytecode loads. A framework's functions load what every program loads.
"""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, cast

from patchwork_adapters.chains import class_names
from patchwork_adapters.graph import Opaque
from patchwork_adapters.leaves.spec import LeafSpec, spec_for
from patchwork_adapters.transport import Kind

Step = tuple[str, Any]  #: text appended to the path, object

_PRIMITIVE = (str, bytes, bytearray, int, float, complex, bool, type(None), type, BuiltinFunctionType, CodeType)
_UNSEEN_PACKAGES = (
    "logging.", "threading.", "_thread.", "asyncio.", "pydantic.", "pydantic_core.", "typing.", "numpy.", "re.", "concurrent.", "queue.",
    "contextvars.", "weakref.", "tiktoken.", "pathlib.", "datetime.", "ssl.", "inspect.",
)  # fmt: skip
#: Bulk data: thousands of objects, no leaves.
_DATA = frozenset({
    "langchain_core.documents.base.BaseMedia", "langchain_core.messages.base.BaseMessage", "llama_index.core.schema.BaseNode",
    "llama_index.core.storage.docstore.types.BaseDocumentStore", "llama_index.core.storage.index_store.types.BaseIndexStore",
    "llama_index.core.graph_stores.types.GraphStore", "llama_index.core.data_structs.data_structs.IndexStruct",
})  # fmt: skip
#: Connections that user code may call by itself: nothing of them moves.
_RAW_CLIENTS = {
    "psycopg.connection.BaseConnection": "a database connection",
    "psycopg._connection_base.BaseConnection": "a database connection",
    "sqlalchemy.engine.base.Engine": "a database engine",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": "a database engine",
    "pymongo.mongo_client.MongoClient": "a database client",
    "redis.client.Redis": "a Redis client",
    "requests.sessions.Session": "an HTTP session",
    "httpx._client.BaseClient": "an HTTP client",
    "httpx2._client.BaseClient": "an HTTP client",
    "botocore.client.BaseClient": "a cloud client",
}
_OPENAI_CLIENTS = ("openai._base_client.SyncAPIClient", "openai._base_client.AsyncAPIClient")


@dataclass(frozen=True, slots=True)
class Leaf:
    path: str  #: canonical, equal in every process that imports the module
    obj: Any
    kind: Kind
    spec: LeafSpec

    @property
    def cls(self) -> str:
        """``module.Class`` of the user's object."""
        return f"{type(self.obj).__module__}.{type(self.obj).__qualname__}"


@dataclass(frozen=True, slots=True)
class Walk:
    leaves: tuple[Leaf, ...]
    opaque: tuple[Opaque, ...]

    def leaf(self, path: str) -> Leaf:
        """KeyError names the leaves that exist."""
        for leaf in self.leaves:
            if leaf.path == path:
                return leaf
        raise KeyError(f"no leaf {path!r}; there are {[leaf.path for leaf in self.leaves]}")


def find_leaves(chain: Any, module: ModuleType | None = None, root: str = "chain") -> Walk:
    """The leaves that the chain can reach, by their shortest paths, in the order in which the walk meets them."""
    roots = [*_global_roots(module, chain), (root, chain), *_settings_roots(chain)]
    walked = _Walked.of(roots)
    reached = walked.reachable([id(chain), *(id(value) for _, value in _settings_roots(chain))])
    candidates = {
        key: spec
        for key in reached
        if (spec := spec_for(type(walked.objects[key]))) is not None and not spec.is_empty(walked.objects[key])
    }
    leaf_keys = _leaves_among(candidates, walked)
    leaves = [
        Leaf(walked.paths[key], walked.objects[key], candidates[key].kind, candidates[key])
        for key in walked.objects  # in the order of the walk
        if key in leaf_keys
    ]
    return Walk(tuple(leaves), tuple(_opaque(walked, [id(chain)], leaf_keys)))


def reaches(chain: Any, part: Any) -> bool:
    """Whether ``part`` is among the objects that ``chain`` is made of."""
    return id(part) in _Walked.of([("", chain)]).objects


def parts_of(part: Any) -> tuple[int, ...]:
    """``id`` of every object that ``part`` is made of, itself first, in the order of the walk. Valid while ``part`` lives."""
    return tuple(_Walked.of([("", part)]).objects)


def is_user_module(name: str | None) -> bool:
    """Whether a module belongs to the user's program: neither installed nor of the standard library."""
    if name is None or name in ("__main__", "__mp_main__"):
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        return "." not in name
    return file is not None and not file.startswith(_installed_folders()) and "site-packages" not in file


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    ours = __file__.rsplit("/", 1)[0]
    return (
        *{p for name, p in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")},
        ours,
    )


@dataclass(slots=True)
class _Walked:
    """Everything met: objects are kept alive, because some (bound methods) exist only while somebody holds them."""

    objects: dict[int, Any]
    paths: dict[int, str]
    inside: dict[int, list[int]]  #: object -> what it is directly made of

    @classmethod
    def of(cls, roots: Iterable[Step]) -> _Walked:
        walked = cls({}, {}, {})
        waiting: deque[int] = deque()
        for path, value in roots:
            walked._meet(path, value, waiting)
        while waiting:  # breadth first: the first path to an object is a shortest one
            key = waiting.popleft()
            path = walked.paths[key]
            walked.inside[key] = [
                child
                for step, value in _children(walked.objects[key])
                if (child := walked._meet(path + step, value, waiting)) is not None
            ]
        return walked

    def _meet(self, path: str, value: Any, waiting: deque[int]) -> int | None:
        if _is_dull(value):
            return None
        key = id(value)
        if key not in self.objects:
            self.objects[key] = value
            self.paths[key] = path
            waiting.append(key)
        return key

    def reachable(self, keys: Iterable[int], stop: frozenset[int] = frozenset()) -> dict[int, None]:
        """Keys reached from ``keys``, ordered; what lies behind ``stop`` is not entered."""
        seen: dict[int, None] = {}
        waiting = deque(key for key in keys if key in self.objects)
        while waiting:
            key = waiting.popleft()
            if key in seen:
                continue
            seen[key] = None
            if key not in stop:
                waiting.extend(self.inside.get(key, ()))
        return seen


def _leaves_among(candidates: Mapping[int, LeafSpec], walked: _Walked) -> frozenset[int]:
    """A candidate that is built on others is glue and stays; a facade (a store) hides what it does with its own kind."""
    leaves = set(candidates)
    for key, spec in candidates.items():
        inner = [k for k in walked.reachable(walked.inside.get(key, ())) if k in candidates and k != key]
        if spec.facade:
            leaves -= {k for k in inner if candidates[k].kind == spec.kind}
        elif inner:
            leaves.discard(key)
    return frozenset(leaves)


def _opaque(walked: _Walked, roots: Iterable[int], leaf_keys: frozenset[int]) -> Iterator[Opaque]:
    for key in walked.reachable(roots, stop=leaf_keys):
        if key in leaf_keys:
            continue
        value, path = walked.objects[key], walked.paths[key]
        names = _names_of(value)
        what = next((_RAW_CLIENTS[name] for name in names if name in _RAW_CLIENTS), None)
        if any(name in names for name in _OPENAI_CLIENTS):
            yield Opaque(
                path, "a raw openai client: requests for hosted models go to components, others to their server"
            )
        elif what is not None and not path.endswith("._client"):
            yield Opaque(
                path,
                f"{what} ({type(value).__module__}.{type(value).__qualname__}): its calls stay in the orchestrator",
            )
        elif isinstance(value, FunctionType):
            yield from _made_per_call(path, value)


def _made_per_call(path: str, function: FunctionType) -> Iterator[Opaque]:
    """Leaves that a function of the user's constructs each time it runs: there is no object to swap yet."""
    if not is_user_module(function.__module__):
        return
    for name in _global_names(function.__code__):
        cls = function.__globals__.get(name)
        spec = spec_for(cls) if isinstance(cls, type) else None
        if spec is not None and not is_user_module(cls.__module__):
            where = (
                "requests for hosted models go to components" if spec.speaks_openai else "it runs in the orchestrator"
            )
            yield Opaque(path, f"may construct a {name} on every call: {where}")


def _global_roots(module: ModuleType | None, chain: Any) -> Iterator[Step]:
    if module is None:
        return
    for name, value in vars(module).items():
        if not name.startswith("__") and not isinstance(value, ModuleType):
            yield name, value


def _settings_roots(chain: Any) -> list[Step]:
    """LlamaIndex reads its defaults when they are needed; only those that are set, because reading others creates clients."""
    module = sys.modules.get("llama_index.core.settings")
    if module is None or not any(
        base.__module__.startswith(("llama_index", "workflows")) for base in type(chain).__mro__
    ):
        return []
    settings = vars(module.Settings)
    found = [(f"Settings.{name}", settings.get(f"_{name}")) for name in ("llm", "embed_model")]
    return [(path, value) for path, value in found if value is not None]


def _is_dull(value: Any) -> bool:
    if isinstance(value, _PRIMITIVE):
        return True
    module = type(value).__module__
    if f"{module}.".startswith(_UNSEEN_PACKAGES):
        return True
    return not _DATA.isdisjoint(_names_of(value))


def _names_of(value: Any) -> frozenset[str]:
    return _names(cast(Hashable, type(value)))


@functools.lru_cache(maxsize=10_000)
def _names(cls: type) -> frozenset[str]:
    return frozenset(class_names(cls))


def _children(value: Any) -> Iterator[Step]:
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
    elif "langchain_core.runnables.base.RunnableSequence" in _names_of(value):
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
        for name, attributes in _global_names(code).items():
            yield from _global(name, function.__globals__.get(name), attributes)


def _global(name: str, value: Any, attributes: Iterable[str]) -> Iterator[Step]:
    if not isinstance(value, ModuleType):
        yield f"::{name}", value
    elif is_user_module(
        value.__name__
    ):  # only what is read from it: other globals of that module may belong to another chain
        yield from ((f"::{name}.{item}", getattr(value, item, None)) for item in attributes)


@functools.lru_cache(maxsize=10_000)
def _global_names(code: CodeType) -> dict[str, tuple[str, ...]]:
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
            for name, attributes in _global_names(constant).items():
                found.setdefault(name, {}).update(dict.fromkeys(attributes))
    return {name: tuple(attributes) for name, attributes in found.items()}
