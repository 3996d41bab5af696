"""Frozen dataclasses as JSON documents: every field is checked, and an error names the field, the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from patchwork_scheduler.errors import InvalidInput

T = TypeVar("T")

#: for ``__pydantic_config__`` of the dataclasses that are read here: nothing unknown, converted, infinite or unchecked gets in
CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, revalidate_instances="always")

_SHOWN = 80  #: characters of a wrong value that a message repeats


def read(cls: type[T], document: object, *, what: str, remedy: str) -> T:
    """A ``cls`` from parsed JSON; InvalidInput names the first wrong field. ``what`` says what is read, e.g. ``plan.json``."""
    return _checked(cls, json.dumps(document), what, remedy)


def read_file(cls: type[T], path: Path, *, remedy: str) -> T:
    """A ``cls`` from a JSON file; InvalidInput names the file and the first wrong field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read ({type(error).__name__}); {remedy}") from error
    return _checked(cls, text, str(path), remedy)


def check(value: T, *, what: str, remedy: str) -> T:
    """The same value, checked field by field as if it had been read."""
    try:
        return _adapter(type(value)).validate_python(value)
    except ValidationError as error:
        raise InvalidInput(_message(error, what, remedy)) from None


def write(value: object) -> dict[str, Any]:
    """The JSON document of a dataclass, field by field."""
    document: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json")
    return document


def write_file(value: object, path: Path) -> None:
    """Write the JSON document, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(write(value), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  #: kept, because building one takes many times as long as using it


def _adapter(cls: type[T]) -> TypeAdapter[T]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _checked(cls: type[T], text: str, what: str, remedy: str) -> T:
    try:
        return _adapter(cls).validate_json(text)
    except ValidationError as error:
        raise InvalidInput(_message(error, what, remedy)) from None


def _message(error: ValidationError, what: str, remedy: str) -> str:
    # a list whose entries are wrong is told to be too short as well
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] == "too_short")
    first, kinds = found[0], {one["type"] for one in found}
    others = len([one for one in found if one["type"] != "too_short"] if len(kinds) > 1 else found) - 1
    field = _field(first["loc"])
    match first["type"]:
        case "missing":
            wrong = f"{field} is missing"
        case "unexpected_keyword_argument":
            wrong = f"{field} is {_shown(first['input']) or 'given'}, and there is no such field"
        case "too_short":
            wrong = f"{field} is empty"
        case _:
            because = str(first["msg"]).removeprefix("Value error, ")
            value = _shown(first["input"])
            wrong = f"{field} is {value}: {because}" if field and value else ": ".join(filter(None, (field, because)))
    more = f" (and {others} more)" if others > 0 else ""
    return f"{what}: {wrong}{more}; {remedy}"


def _field(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _shown(value: object) -> str:
    """Empty for what is too large to repeat."""
    if isinstance(value, Mapping | list | tuple) or hasattr(value, "__dataclass_fields__"):
        return ""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
