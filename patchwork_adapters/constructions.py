"""Leaves that a function of the user's constructs each time it runs (``lambda x: Chat(k=3).invoke(x)``), read from its source.

There is no object to swap before the function runs. But the source says which class is constructed, and often all of its arguments:
constants, and names whose values are known by now. Calls are found by the places that the bytecode gives for them, so that lambdas in
the middle of an expression are read as well as functions.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import importlib
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from patchwork_adapters.chains import class_names
from patchwork_adapters.leaves.spec import spec_for

#: Line and column where a call ends; no other call ends there.
_Place = tuple[int, int]
OPENAI_CLIENTS = frozenset({"openai._base_client.SyncAPIClient", "openai._base_client.AsyncAPIClient"})
#: Packages whose classes people import inside a function. The function would import them anyway.
_FRAMEWORKS = ("langchain", "llama_index", "openai")


class _Unknown(Exception):
    """Known only when the function runs."""


@dataclass(frozen=True, slots=True)
class Arguments:
    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and _is_same(
            [self.positional, dict(self.named)], [other.positional, dict(other.named)]
        )


@dataclass(frozen=True, slots=True)
class Construction:
    cls: type
    where: str  #: ``file.py:12``
    names: tuple[str, ...]  #: by which the code knows what it constructs
    arguments: Arguments | None  #: None: known only when it happens
    by: str = ""  #: the class method, such as ``from_model_id``, when it is not the constructor


def constructions_in(function: FunctionType) -> tuple[Construction, ...]:
    """The leaf classes that the function, or one inside it, calls, by line."""
    found = sorted(_found(function, function.__code__), key=lambda pair: pair[0])
    return tuple(construction for _, construction in found)


def _found(function: FunctionType, code: CodeType) -> Iterator[tuple[_Place, Construction]]:
    calls = _calls_of(code.co_filename)
    places = dict.fromkeys(_places(code))
    for place in places:
        call = calls.get(place)
        if call is None:
            continue
        names = _Names(function, code)
        try:
            cls, by = names.constructed(call.func)
        except _Unknown:
            continue
        if isinstance(cls, type) and (spec_for(cls) is not None or is_openai_client(cls)):
            where = f"{Path(code.co_filename).name}:{call.lineno}"
            yield place, Construction(cls, where, (cls.__name__, *_names_of(call)), names.arguments(call), by)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _found(function, constant)


def is_openai_client(cls: type) -> bool:
    return not OPENAI_CLIENTS.isdisjoint(class_names(cls))


def _names_of(call: ast.Call) -> tuple[str, ...]:
    """Of the variable that takes what the call gives: ``client = OpenAI()``, ``with OpenAI() as client``."""
    found: tuple[str, ...] = getattr(call, "patchwork_names", ())
    return found


def _places(code: CodeType) -> Iterator[_Place]:
    for instruction in dis.get_instructions(code):
        at = instruction.positions
        if instruction.opname.startswith("CALL") and at is not None:
            yield at.end_lineno or 0, at.end_col_offset or 0


def _calls_of(file: str) -> Mapping[_Place, ast.Call]:
    linecache.checkcache(file)
    return _calls_in("".join(linecache.getlines(file)))


@functools.lru_cache(maxsize=32)
def _calls_in(source: str) -> Mapping[_Place, ast.Call]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                call.patchwork_names = (name,)  # type: ignore[attr-defined]
            case ast.withitem(context_expr=ast.Call() as call, optional_vars=ast.Name(id=name)):
                call.patchwork_names = (name,)  # type: ignore[attr-defined]
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {(call.end_lineno or 0, call.end_col_offset or 0): call for call in calls}


class _Names:
    """Values of expressions in a function's code as far as they are known before it runs."""

    def __init__(self, function: FunctionType, code: CodeType) -> None:
        is_outer = code is function.__code__
        self._local = {*code.co_varnames, *code.co_cellvars, *(() if is_outer else code.co_freevars)}
        self._known: dict[str, Any] = {**vars(builtins), **function.__globals__}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._known[name] = cell.cell_contents
            except ValueError:  # still empty
                self._known.pop(name, None)
            self._local.discard(name)
        self._imported = dict(_imports(code))

    def constructed(self, called: ast.AST) -> tuple[Any, str]:
        """What is called, and by which of its class methods (``HuggingFacePipeline.from_model_id``). Raises _Unknown."""
        match called:
            case ast.Attribute(value=inner, attr=attr) if attr.startswith("from_"):
                cls = self.value(inner)
                if isinstance(cls, type) and isinstance(inspect.getattr_static(cls, attr, None), classmethod):
                    return cls, attr
        return self.value(called), ""

    def arguments(self, call: ast.Call) -> Arguments | None:
        try:
            positional = tuple(self.value(arg) for arg in call.args)
            named = {keyword.arg: self.value(keyword.value) for keyword in call.keywords}
        except _Unknown:
            return None
        return None if None in named else Arguments(positional, named)  # type: ignore[arg-type]

    def value(self, node: ast.AST) -> Any:
        """Raises _Unknown."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in self._local and name in self._imported:
                return self._of_import(*self._imported[name])
            case ast.Name(id=name) if name not in self._local and name in self._known:
                return self._known[name]
            case ast.Attribute(value=inner, attr=attr) if isinstance(module := self.value(inner), ModuleType):
                if attr in vars(module):
                    return vars(module)[attr]
            case ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item) for item in items)
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return {self.value(key): self.value(item) for key, item in zip(keys, values, strict=True) if key}
            case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := self.value(operand), int | float):
                return -number
        raise _Unknown

    @staticmethod
    def _of_import(module: str, name: str) -> Any:
        if module not in sys.modules and not module.startswith(_FRAMEWORKS):
            raise _Unknown
        try:
            return getattr(importlib.import_module(module), name)
        except Exception:  # noqa: BLE001  whatever stops the import will stop the function
            raise _Unknown from None


def _imports(code: CodeType) -> Iterator[tuple[str, tuple[str, str]]]:
    """``from module import name as local`` in the code: local -> (module, name)."""
    module, name = "", ""
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "IMPORT_NAME":
                module, name = instruction.argval, ""
            case "IMPORT_FROM":
                name = instruction.argval
            case "STORE_FAST" | "STORE_DEREF" if module and name:
                yield instruction.argval, (module, name)
                name = ""
            case "POP_TOP":
                module = ""


def _is_same(a: Any, b: Any) -> bool:
    """Equal beyond doubt: the same object, or equal data of the same type."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_is_same(a[key], b[key]) for key in a)
    return type(a) in (int, float, str, bytes, bool) and a == b
