"""What is left of a value as plain data, class by class, and how the value is made of it again without running code of its own.

Names of classes may come from outside: each is checked before anything is imported or built.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from pydantic import BaseModel

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


# models may be frozen, or have a __setattr__ of their own: their slots are written directly
_put_fields, _put_extra, _put_fields_set, _put_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__")
)


def _model(
    cls: Any, fields: dict[str, Any], extra: dict[str, Any] | None, fields_set: set[str], private: dict[str, Any] | None
) -> Any:
    value = cls.__new__(cls)
    _put_fields(value, fields)
    _put_extra(value, extra)
    _put_fields_set(value, fields_set)
    _put_private(value, private)
    return value


#: What may be said once for many objects: it cannot change.
_CONSTANTS = frozenset({type(None), bool, str})


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What a framework's objects share besides their values: how one is made of those, or of its text."""

    make: Callable[[Any], Any]


def usual(cls: Any, names: tuple[str, ...]) -> list[Any]:
    """What the fields hold of which nothing was said, as far as it cannot change; None for the others."""
    fields = getattr(cls, "__pydantic_fields__", None) or getattr(cls, "__dataclass_fields__", {})
    defaults = [getattr(fields.get(name), "default", None) for name in names]
    return [default if type(default) in _CONSTANTS else None for default in defaults]


def shape_of(module: str, qualname: str, *state: Any) -> Shape:
    """``state``: of a text nothing; of a dataclass its fields and what is not told for each object; of a model pydantic's state besides."""
    match state:
        case []:
            return Shape(functools.partial(_text_of, _text_class(module, qualname)))
        case [names, constants]:
            cls = _record_class(module, qualname)
            return _record_shape(cls, *_template(cls, names, constants))
        case [names, constants, fields_set, no_extra, no_private]:
            cls = _model_class(module, qualname)
            return _model_shape(cls, *_template(cls, names, constants), frozenset(fields_set), no_extra, no_private)
    raise CodecError(f"this is no shape of a {module}.{qualname}")


def _template(cls: type, names: list[str], constants: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields in their order, and the names of those whose values are told for each object."""
    if not _CONSTANTS.issuperset(map(type, constants.values())):
        raise CodecError("objects would share what can change")
    template = {name: constants.get(name) for name in names}
    for name, default in zip(names, usual(cls, tuple(names)), strict=True):
        if type(default) is str and template[name] == default:
            template[name] = default  # the class's own object, by which it is known when these are sent on
    return template, [name for name in names if name not in constants]


def _record_shape(cls: type, template: dict[str, Any], told: list[str]) -> Shape:
    count = len(told)

    def make(values: list[Any]) -> Any:
        if len(values) != count:
            raise _miscounted(cls)
        value: Any = object.__new__(cls)
        fields = value.__dict__  # the class may be frozen
        fields.update(template)
        fields.update(zip(told, values))  # noqa: B905  they were counted
        return value

    return Shape(make)


def _model_shape(
    cls: Any, template: dict[str, Any], told: list[str], fields_set: frozenset[str], no_extra: bool, no_private: bool
) -> Shape:
    count, new = len(told), functools.partial(cls.__new__, cls)
    copied, put, put_set, put_extra, put_private = template.copy, _put_fields, _put_fields_set, _put_extra, _put_private

    def make(values: list[Any]) -> Any:
        """As :func:`_model`, in one go: most of what is decoded is made here."""
        if len(values) != count:
            raise _miscounted(cls)
        fields = copied()
        fields.update(zip(told, values))  # noqa: B905  they were counted
        value = new()
        put(value, fields)
        put_set(value, set(fields_set))
        put_extra(value, None if no_extra else {})
        put_private(value, None if no_private else {})
        return value

    return Shape(make)


def _miscounted(cls: type) -> CodecError:
    return CodecError(f"not as many values as a {cls.__qualname__} has")


@functools.lru_cache(maxsize=4096)
def is_text(cls: type) -> bool:
    """A framework's text with methods of its own, such as what ``message.text`` gives, and with nothing but the text in it."""
    return issubclass(cls, str) and not cls.__dictoffset__ and not issubclass(cls, enum.Enum) and is_trusted(cls)


def _text_class(module: str, qualname: str) -> type:
    cls = resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and is_text(cls)):
        raise CodecError(f"{module}.{qualname} is no text")
    return cls


def _text_of(cls: Any, text: Any) -> Any:
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
