"""Raw ``openai`` clients in user code as leaves (design, D4, *protocol*): one leaf for each model that the code asks a client for.

A client says nothing of the models that will be asked; the calls do: ``client.chat.completions.create(model="small", ...)``. They are read
from the source of the user's functions, where the model is written down or is a name whose value is a text by now. A call whose model is
known only when it is made is not found here, and the client stays as it is for those: requests for models of known components go to them.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from patchwork_adapters.leaves.spec import Facts, LeafSpec
from patchwork_adapters.transport import Kind

#: resources of a client, by the last of their names, and the kind of model that answers there
_RESOURCES: Mapping[str, Kind] = {
    "completions": "llm",
    "responses": "llm",
    "embeddings": "embedder",
}
#: ``framework`` of a leaf that is a client
RAW = "openai"
_METHODS = ("create", "stream", "parse", "with_raw_response", "with_streaming_response")


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of a client in the user's source."""

    client: str  #: last name by which the code knows the client
    kind: Kind
    model: str


def asked_in(functions: Sequence[FunctionType]) -> tuple[Asked, ...]:
    """The calls whose model is known before they are made, in the order of the functions; each once."""
    return tuple(dict.fromkeys(asked for function in functions for asked in _asked(function)))


def spec_of(client: Any, kind: Kind, model: str) -> LeafSpec:
    """What is known of a leaf that is one model behind a client."""
    base_url = str(client.base_url).rstrip("/")
    cls = f"{type(client).__module__}.{type(client).__qualname__}"
    return LeafSpec(
        cls,
        kind,
        RAW,
        cut=lambda _: (),
        facts=lambda _: Facts(model, base_url),
        speaks_openai=True,
        openai_clients=lambda leaf: [leaf],
    )


def _asked(function: FunctionType) -> Iterator[Asked]:
    tree = _tree(function)
    if tree is None:
        return
    known = _Names(function)
    made = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for node in sorted(made, key=lambda call: (call.lineno, call.col_offset)):
        chain = _dotted(node.func)
        model = next((known.text(k.value) for k in node.keywords if k.arg == "model"), None)
        if len(chain) < 3 or chain[-1] not in _METHODS or model is None:
            continue
        place = next((n for n, name in enumerate(chain) if n > 0 and name in (*_RESOURCES, "chat", "beta")), None)
        kind = next((_RESOURCES[name] for name in reversed(chain) if name in _RESOURCES), None)
        if place is not None and kind is not None:
            yield Asked(chain[place - 1], kind, model)


@functools.lru_cache(maxsize=1000)
def _tree(function: FunctionType) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (
        OSError,
        TypeError,
        SyntaxError,
        ValueError,
    ):  # typed in, made at run time, or a lambda in the middle of an expression
        return None


def _dotted(node: ast.AST) -> list[str]:
    """``a.b().c`` as its names."""
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=value, attr=name):
            return [*_dotted(value), name]
        case ast.Call(func=function):
            return _dotted(function)
        case ast.Subscript(value=value):
            return _dotted(value)
        case _:
            return []


class _Names:
    """Values of the names that a function reads, as they are now."""

    def __init__(self, function: FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._known = {**vars(builtins), **function.__globals__, **dict(_contents(cells))}

    def text(self, node: ast.AST) -> str | None:
        """The text that an expression is; None when it is none, or is known only at run time."""
        value = (
            node.value
            if isinstance(node, ast.Constant)
            else self._known.get(node.id)
            if isinstance(node, ast.Name)
            else None
        )
        return value if isinstance(value, str) else None


def _contents(cells: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # still empty
            continue
