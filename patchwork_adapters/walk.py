"""Walks the objects that a chain is made of and names them by canonical paths.

A path says how to get from a global of the user's module to an object: ``llm``, ``chain.steps[2]``, ``answer::retriever`` (a name that
function ``answer`` uses). Each process walks by itself and must arrive at the same paths: the order of visits follows insertion order
only, nothing is imported or called, and values that appear while the chain runs (cached properties) are not looked at.

What is looked at: fields, private attributes and slots, containers, bound methods, partials, closures, defaults and, for functions of the
user's modules only, the globals that their bytecode loads. A framework's functions load what every program loads.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

from patchwork_adapters.constructions import OPENAI_CLIENTS
from patchwork_adapters.graph import Opaque
from patchwork_adapters.held import Held
from patchwork_adapters.late import Constructions, Late
from patchwork_adapters.leaves.spec import LeafSpec, spec_for
from patchwork_adapters.parts import Step, children, is_dull, is_users_code, names_of
from patchwork_adapters.raw_clients import connecting_calls, used_at, what_is
from patchwork_adapters.raw_openai import asked_in, spec_of
from patchwork_adapters.redaction import hide_secrets_of
from patchwork_adapters.transport import Kind

#: They come and go while the chain runs (a bound method is made each time it is asked for), or say nothing of it.
_CONTAINERS = (dict, list, tuple, set, frozenset, deque, FunctionType, MethodType, ModuleType, functools.partial)


@dataclass(frozen=True, slots=True)
class Leaf:
    path: str  #: canonical, equal in every process that imports the module
    obj: Any
    kind: Kind
    spec: LeafSpec
    held: tuple[Held, ...] = field(default=(), compare=False, repr=False)  #: its bound methods that the chain holds
    #: of a leaf that the user's functions construct as they run: ``obj`` is one like those, made for the walk
    late: Late | None = field(default=None, compare=False, repr=False)

    @property
    def cls(self) -> str:
        """``module.Class`` of the user's object."""
        return f"{type(self.obj).__module__}.{type(self.obj).__qualname__}"


@dataclass(frozen=True, slots=True)
class Walk:
    leaves: tuple[Leaf, ...]
    opaque: tuple[Opaque, ...]
    functions: tuple[FunctionType, ...] = ()  #: of the user's modules, that the chain can reach
    parts: tuple[
        tuple[str, Any], ...
    ] = ()  #: (path, object) of what holds the chain together: no leaves, no containers, no functions
    late_classes: tuple[type, ...] = ()  #: of leaves that are constructed with what is known only then

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
    starts = [id(chain), *(id(value) for _, value in _settings_roots(chain))]
    late = Constructions()
    leaf_keys, candidates = _leaves_within(walked, starts)
    outside = walked.reachable(starts, stop=leaf_keys)  # what a leaf does inside is no part of the chain
    while made := late.look_into((walked.paths[key], walked.objects[key]) for key in outside if key not in leaf_keys):
        starts += walked.go_on((one.path, one.obj) for one in made)
        leaf_keys, candidates = _leaves_within(walked, starts)
        outside = walked.reachable(starts, stop=leaf_keys)
    lates = {id(one.obj): one.late for one in late.made}
    leaves = [
        Leaf(walked.paths[k], walked.objects[k], candidates[k].kind, candidates[k], _held(walked, k), lates.get(k))
        for k in walked.objects  # in the order of the walk
        if k in leaf_keys
    ]
    hide_secrets_of(walked.objects.values())
    inside = [(walked.paths[key], walked.objects[key]) for key in outside if key not in leaf_keys]
    functions = tuple(f for _, f in inside if isinstance(f, FunctionType) and is_users_code(f))
    raw = tuple(_raw_leaves(inside, functions, lates))
    opaque = _opaque(walked, starts, leaf_keys, functions, frozenset(id(leaf.obj) for leaf in raw))
    return Walk(
        leaves=(*leaves, *raw),
        opaque=(*late.opaque, *opaque),
        functions=functions,
        parts=tuple((path, part) for path, part in inside if not isinstance(part, _CONTAINERS)),
        late_classes=tuple(late.local),
    )


def _leaves_within(walked: _Walked, starts: Iterable[int]) -> tuple[frozenset[int], dict[int, LeafSpec]]:
    candidates = {
        key: spec
        for key in walked.reachable(starts)
        if (spec := spec_for(type(walked.objects[key]))) is not None and not spec.is_empty(walked.objects[key])
    }
    return _leaves_among(candidates, walked), candidates


def _held(walked: _Walked, leaf: int) -> tuple[Held, ...]:
    return tuple(
        Held(walked.objects[holder], value)
        for key in walked.methods
        if id((value := walked.objects[key]).__self__) == leaf
        for holder, inside in walked.inside.items()
        if key in inside
    )


def made_of(chain: Any) -> dict[int, Any]:
    """The objects that ``chain`` is made of, itself included, by ``id``."""
    return _Walked.of([("", chain)]).objects


def parts_of(part: Any) -> tuple[int, ...]:
    """``id`` of every object that ``part`` is made of, itself first, in the order of the walk. Valid while ``part`` lives."""
    return tuple(_Walked.of([("", part)]).objects)


@dataclass(slots=True)
class _Walked:
    """Everything met: objects are kept alive, because some (bound methods) exist only while somebody holds them."""

    objects: dict[int, Any]
    paths: dict[int, str]
    inside: dict[int, list[int]]  #: object -> what it is directly made of
    methods: list[int]  #: those that are bound methods

    @classmethod
    def of(cls, roots: Iterable[Step]) -> _Walked:
        walked = cls({}, {}, {}, [])
        walked.go_on(roots)
        return walked

    def go_on(self, roots: Iterable[Step]) -> list[int]:
        """Walk from more roots; paths that are known stay. Returns the roots' keys."""
        waiting: deque[int] = deque()
        keys = [self._meet(path, value, waiting) for path, value in roots]
        while waiting:  # breadth first: the first path to an object is a shortest one
            key = waiting.popleft()
            path = self.paths[key]
            if _is_openai(self.objects[key]):
                self.inside[key] = []  # a client's machinery is no part of the chain, and may be ours
                continue
            self.inside[key] = [
                child
                for step, value in children(self.objects[key])
                if (child := self._meet(path + step, value, waiting)) is not None
            ]
        return [key for key in keys if key is not None]

    def _meet(self, path: str, value: Any, waiting: deque[int]) -> int | None:
        if is_dull(value):
            return None
        key = id(value)
        if key not in self.objects:
            self.objects[key] = value
            self.paths[key] = path
            waiting.append(key)
            if isinstance(value, MethodType):
                self.methods.append(key)
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


def _raw_leaves(inside: Iterable[Step], functions: Sequence[FunctionType], lates: Mapping[int, Late]) -> Iterator[Leaf]:
    """Raw openai clients: a leaf for each model that the user's functions ask them for."""
    clients = [(path, value) for path, value in inside if _is_openai(value)]
    asked = asked_in(functions) if clients else ()
    for path, client in clients:
        late = lates.get(id(client))
        names = late.names if late is not None else re.findall(r"[A-Za-z_]\w*", path)[-1:]
        for call in asked:
            if call.client in names:
                spec = spec_of(client, call.kind, call.model)
                yield Leaf(f"{path}({call.model!r})", client, call.kind, spec, late=late)


def _is_openai(value: Any) -> bool:
    return not OPENAI_CLIENTS.isdisjoint(names_of(value))


def _opaque(
    walked: _Walked,
    roots: Iterable[int],
    leaf_keys: frozenset[int],
    functions: Sequence[FunctionType],
    raw: frozenset[int],
) -> Iterator[Opaque]:
    for key in walked.reachable(roots, stop=leaf_keys):
        if key in leaf_keys or key in raw:
            continue
        value, path = walked.objects[key], walked.paths[key]
        if _is_openai(value):
            line = _used(path, functions)
            yield Opaque(
                path,
                "a raw openai client whose models are known only when it is called: requests for models of components go to them, "
                f"others to their server{line}",
            )
        elif (what := what_is(names_of(value))) is not None and not path.endswith("._client"):
            cls = f"{type(value).__module__}.{type(value).__qualname__}"
            yield Opaque(path, f"{what} ({cls}): its calls stay in the orchestrator{_used(path, functions)}")
        elif isinstance(value, FunctionType) and is_users_code(value):
            for called, line in connecting_calls(value):
                yield Opaque(path, f"calls {called} at {line}: it runs in the orchestrator")


def _used(path: str, functions: Sequence[FunctionType]) -> str:
    line = used_at(path, functions)
    return f"; used at {line}" if line else ""


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
