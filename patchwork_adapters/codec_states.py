"""What is left of a value as plain data, class by class, and how the value is made of it again without running code of its own.

Names of classes may come from outside: each is checked before anything is imported or built.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from patchwork_adapters.codec_classes import is_trusted, resolve_trusted
from patchwork_adapters.errors import CodecError


def is_trusted_model(cls: type) -> bool:
    return "__pydantic_core_schema__" in cls.__dict__ and is_trusted(cls)


def model_state(value: Any) -> list[Any]:
    """pydantic's state without running validators: (fields, extra, fields set, private)."""
    private = value.__pydantic_private__
    return [value.__dict__, value.__pydantic_extra__, sorted(value.__pydantic_fields_set__), private]


def rebuild_model(state: list[Any]) -> Any:
    module, qualname, parts = state
    return rebuild_as(_model_class(module, qualname), parts)


@functools.lru_cache(maxsize=4096)
def _model_class(module: str, qualname: str) -> type:
    cls = resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and "__pydantic_core_schema__" in cls.__dict__):
        raise CodecError(f"{module}.{qualname} is no model")
    return cls


def rebuild_as(cls: Any, state: list[Any]) -> Any:
    fields, extra, fields_set, private = state
    return _model(cls, fields, extra, set(fields_set), private)


def _model(
    cls: Any, fields: dict[str, Any], extra: dict[str, Any] | None, fields_set: set[str], private: dict[str, Any] | None
) -> Any:
    value = cls.__new__(cls)
    put = object.__setattr__  # models may be frozen, or have a __setattr__ of their own
    put(value, "__dict__", fields)
    put(value, "__pydantic_extra__", extra)
    put(value, "__pydantic_fields_set__", fields_set)
    put(value, "__pydantic_private__", private)
    return value


#: The one field of a text.
TEXT = ""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What a framework's objects share besides their fields: how one is made of those."""

    make: Callable[[dict[str, Any]], Any]


def shape_of(module: str, qualname: str, fields_set: list[str] | None = None, *absent: bool) -> Shape:
    """Of a model; without ``fields_set`` of a dataclass, or a text. ``absent``: whether a model's extra and private fields are None."""
    if fields_set is None:
        found = resolve_trusted(module, qualname)
        if isinstance(found, type) and is_text(found):
            return Shape(functools.partial(_text_of, found))
        return Shape(functools.partial(_record_of, _record_class(module, qualname)))
    cls: Any = _model_class(module, qualname)
    names, (no_extra, no_private) = frozenset(fields_set), absent

    def make(fields: dict[str, Any]) -> Any:
        return _model(cls, fields, None if no_extra else {}, set(names), None if no_private else {})

    return Shape(make)


@functools.lru_cache(maxsize=4096)
def is_text(cls: type) -> bool:
    """A framework's text with methods of its own, such as what ``message.text`` gives, and with nothing but the text in it."""
    return issubclass(cls, str) and not cls.__dictoffset__ and not issubclass(cls, enum.Enum) and is_trusted(cls)


def _text_of(cls: Any, fields: dict[str, Any]) -> Any:
    text = fields[TEXT]
    if type(text) is not str:
        raise CodecError(f"a {cls.__qualname__} has no text")
    return str.__new__(cls, text)


@functools.lru_cache(maxsize=4096)
def is_record(cls: type) -> bool:
    """A framework's dataclass that pickle would take apart into its ``__dict__`` and put together without running any code of its own."""
    return (
        dataclasses.is_dataclass(cls)
        and is_trusted(cls)
        and cls.__new__ is object.__new__
        and all(getattr(cls, name) is getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))
        and not any(hasattr(cls, name) for name in ("__setstate__", "__getnewargs__", "__getnewargs_ex__"))
        and not any(vars(base).get("__slots__") for base in cls.__mro__)
    )


def _record_class(module: str, qualname: str) -> type:
    cls = resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and is_record(cls)):
        raise CodecError(f"{module}.{qualname} is no dataclass")
    return cls


def _record_of(cls: type, fields: dict[str, Any]) -> Any:
    value: Any = object.__new__(cls)
    value.__dict__.update(fields)
    return value


def rebuild_enum(state: list[Any]) -> Any:
    module, qualname, name = state
    cls = resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and issubclass(cls, enum.Enum)):
        raise CodecError(f"{module}.{qualname} is no enumeration")
    return cls[name]


def rebuild_array(state: list[Any]) -> Any:
    dtype, shape, data = state
    return np.frombuffer(bytearray(data), dtype=np.dtype(dtype)).reshape(shape)


def rebuild_scalar(state: list[Any]) -> Any:
    return rebuild_array(state).reshape(())[()]


def time_state(value: dt.datetime | dt.time) -> list[Any] | None:
    """[ISO text, fold, zone name or None], or None for a tzinfo that only pickle keeps."""
    zone = value.tzinfo
    if zone is None or (type(zone) is dt.timezone and zone == _plain_offset(zone)):
        return [value.isoformat(), value.fold, None]
    if type(zone) is ZoneInfo and zone.key:
        return [value.replace(tzinfo=None).isoformat(), value.fold, zone.key]
    return None


def _plain_offset(zone: dt.timezone) -> dt.timezone | None:
    """The zone that an ISO text gives back; None when this one has a name of its own, which the text would lose."""
    plain = dt.timezone(zone.utcoffset(None))
    return plain if plain.tzname(None) == zone.tzname(None) else None


def rebuild_time(parse: Callable[[str], Any]) -> Callable[[list[Any]], Any]:
    def rebuild(state: list[Any]) -> Any:
        text, fold, key = state
        value = parse(text)
        return value.replace(fold=fold, tzinfo=ZoneInfo(key) if key else value.tzinfo)

    return rebuild
