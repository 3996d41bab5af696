"""Values to bytes and back, exactly: ``decode(encode(x))`` equals ``x`` in value and in type.

msgpack carries what it can; everything else travels in extension types. Frameworks' own classes (messages, documents, nodes) go as their
class and state, so that subclasses with extra state survive. What is not known is pickled, which is allowed between our own processes
only: pass ``allow_pickle=False`` for anything that comes from outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import functools
import io
import itertools
import operator
import pickle
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import numpy as np

from patchwork_adapters.codec_classes import is_importable, is_trusted, name_of, path_of
from patchwork_adapters.codec_errors import error_state, rebuild_error, without_secrets
from patchwork_adapters.codec_states import (
    Shape,
    is_record,
    is_text,
    is_trusted_model,
    model_state,
    rebuild_array,
    rebuild_as,
    rebuild_enum,
    rebuild_model,
    rebuild_scalar,
    rebuild_time,
    shape_of,
    time_state,
    usual,
)  # fmt: skip
from patchwork_adapters.errors import CodecError, NotExact
from patchwork_adapters.exact import difference
from patchwork_adapters.redaction import redacted

_TUPLE, _SET, _FROZENSET, _BIGINT, _COMPLEX = 1, 3, 4, 5, 6
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _BYTEARRAY = 10, 11, 12, 13, 14, 15, 16
_NDARRAY, _NPSCALAR, _FLOATS = 20, 21, 22
_MODEL, _ENUM, _SHAPE = 30, 31, 34
_PICKLE, _ERROR = 40, 41
_OUTCOME_VALUE, _OUTCOME_ERROR = b"\x00", b"\x01"
_strict = 0  #: blocks of :func:`strict` that run; for all threads, because calls are encoded in any


def encode(value: Any, *, allow_pickle: bool = True) -> bytes:
    """Raises CodecError for what cannot cross exactly; the message names the type, never the value."""
    data = (_ENCODER if allow_pickle else _PLAIN_ENCODER).pack(value)
    if _strict and (where := difference(value, decode(data, allow_pickle=allow_pickle))) is not None:
        raise NotExact(f"a value of type {name_of(type(value))} does not cross exactly: {where}")
    return data


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Each encoding in this process is decoded again and compared, for as long as the block runs: what is lost is NotExact."""
    global _strict
    _strict += 1
    try:
        yield
    finally:
        _strict -= 1


def decode(data: bytes, *, allow_pickle: bool = True) -> Any:
    """Raises CodecError when the bytes are not ours or hold a pickle that is not allowed."""
    try:
        return (_WITH_PICKLE if allow_pickle else _WITHOUT_PICKLE).unpack(data)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise CodecError(f"these bytes were not written by this codec ({type(error).__name__})") from error


def encode_outcome(outcome: Any, *, allow_pickle: bool = True) -> bytes:
    """A value, or an exception instance that the other side shall raise."""
    if isinstance(outcome, BaseException):
        encoder = _ENCODER if allow_pickle else _PLAIN_ENCODER
        # never strict: a client's response in it comes without its stream, on purpose
        return _OUTCOME_ERROR + encoder.pack(error_state(outcome, encoder.can_pack))
    return _OUTCOME_VALUE + encode(outcome, allow_pickle=allow_pickle)


def decode_outcome(data: bytes, *, allow_pickle: bool = True) -> Any:
    """Returns the value or raises the exception, as the class that the user's leaf raised."""
    if data.startswith(_OUTCOME_VALUE):
        return decode(data[1:], allow_pickle=allow_pickle)
    if data.startswith(_OUTCOME_ERROR):
        raise rebuild_error(decode(data[1:], allow_pickle=allow_pickle), trusted=allow_pickle)
    raise CodecError("these bytes are not an outcome written by this codec")


def outcome_to_keep(data: bytes) -> bytes:
    """An outcome as it may be written to disk: what an exception says has no secrets in it. Our own processes' bytes only."""
    if data[:1] != _OUTCOME_ERROR:
        return data
    return _OUTCOME_ERROR + _ENCODER.pack(without_secrets(decode(data[1:]), _ENCODER.pack))


class _Encoder:
    """msgpack walks through lists and maps, and asks for what it has no form for."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._packers: list[msgpack.Packer] = []  #: that nobody uses now

    def pack(self, value: Any) -> bytes:
        try:
            return self._packed(_with_arrays(value))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CodecError(
                f"a value of type {name_of(type(value))} cannot be encoded ({type(error).__name__})"
            ) from error

    def _packed(self, value: Any) -> bytes:
        """Making a packer costs more than packing a small value."""
        try:
            packer = self._packers.pop()
        except IndexError:
            packer = msgpack.Packer(default=self._form_of, strict_types=True, unicode_errors="surrogatepass")
        data: bytes = packer.pack(value)
        if len(data) < _KEPT_BUFFER:  # a packer keeps the memory of the largest value that it packed
            self._packers.append(packer)
        return data

    def can_pack(self, value: Any) -> bool:
        try:
            self.pack(value)
        except CodecError:
            return False
        return True

    def _form_of(self, value: Any) -> Any:
        """Almost everything that crosses consists of models: behind what they share, their values cross in their place."""
        cls: type = type(value)
        form = _forms.get(cls)
        if form is None:
            return self._ext(value)
        fields, state = value.__dict__, tuple[Any, ...]()
        if form.is_model:
            extra, private = value.__pydantic_extra__, value.__pydantic_private__
            if extra or private:
                return _Ext((_MODEL, self.pack([*path_of(cls), model_state(value)])))
            state = (frozenset(value.__pydantic_fields_set__), extra is None, private is None)
        if tuple(fields) != form.names:
            form = _forms[cls] = _form(cls, tuple(fields))
        told = tuple(map(_is_not, fields.values(), form.usual))
        head = form.heads.get((told, state)) or form.head(told, state)
        values = list(_compress(fields.values(), told))
        for place in form.vectors:
            if told[place]:
                return {head: _with_arrays(values)}
        return {head: values}

    def _ext(self, value: Any) -> Any:
        cls: type = type(value)
        if cls is int:
            return _Ext((_BIGINT, str(value).encode()))
        known = _BY_TYPE.get(cls)
        if known is not None:
            code, to_state = known
            return _Ext((code, self.pack(to_state(value))))
        if is_trusted_model(cls) or is_record(cls):
            _forms[cls] = _form(cls, tuple(value.__dict__))
            return self._form_of(value)
        if cls in (dt.datetime, dt.time):
            state = time_state(value)
            code = _DATETIME if cls is dt.datetime else _TIME
            return self._pickled(value) if state is None else _Ext((code, self.pack(state)))
        if isinstance(value, np.ndarray) and cls is np.ndarray and not value.dtype.hasobject:
            return self._array(_NDARRAY, value)
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return self._array(_NPSCALAR, np.asarray(value))
        if isinstance(value, enum.Enum) and is_trusted(cls):
            return _enum_ext(value)
        if cls in _codes and self._allow_pickle:
            return _Ext((_codes[cls], self.pack([getattr(value, field.name) for field in dataclasses.fields(value)])))
        if is_text(cls):
            return {_text_head(cls): str.__str__(value)}
        return self._pickled(value)

    def _array(self, code: int, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype.fields is not None:
            return self._pickled(array)
        data = [array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()]
        return _Ext((code, self.pack(data)))

    def _pickled(self, value: Any) -> Any:
        if not self._allow_pickle:
            raise CodecError(f"a value of type {name_of(type(value))} cannot cross this boundary without pickle")
        try:
            return _Ext((_PICKLE, _pickle(value)))
        except Exception as error:  # pickling runs the value's own code: anything may come out
            raise CodecError(
                f"a value of type {name_of(type(value))} cannot be sent to another process ({type(error).__name__}: {redacted(str(error))})"
            ) from error


#: ``msgpack.ExtType`` without its checks of code and data
_Ext: Callable[[tuple[int, bytes]], Any] = functools.partial(tuple.__new__, msgpack.ExtType)


def _with_arrays(value: Any) -> Any:
    """Lists and maps with the vectors in them as arrays, which take a fraction of the time to read."""
    kind = type(value)
    if kind is list and value:
        if (
            type(value[0]) is float
            and len(value) >= _VECTOR
            and operator.countOf(map(type, value), float) == len(value)
        ):
            return _Ext((_FLOATS, struct.pack(f"<{len(value)}d", *value)))
        if not _CONTAINERS.isdisjoint(map(type, value)):
            return [_with_arrays(item) if type(item) in _CONTAINERS else item for item in value]
    elif kind is dict and not _CONTAINERS.isdisjoint(map(type, value.values())):
        return {name: _with_arrays(item) if type(item) in _CONTAINERS else item for name, item in value.items()}
    return value


class _Pickler(pickle.Pickler):
    """Pickles frameworks' models inside as their state: some of them run validators, or drop fields, when they are unpickled."""

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if is_trusted_model(cls) or _forgets(cls):
            return rebuild_as, (cls, model_state(obj))
        return NotImplemented


def _pickle(value: Any) -> bytes:
    data = io.BytesIO()
    _Pickler(data, protocol=5).dump(value)
    return data.getvalue()


_ENCODER, _PLAIN_ENCODER = _Encoder(True), _Encoder(False)


class _Form:
    """An object's fields, and what they usually hold: told once, in the key of its map. No key of the caller's is like it."""

    def __init__(self, cls: type, names: tuple[str, ...]) -> None:
        self._cls = cls
        self.names = names
        self.is_model = is_trusted_model(cls)
        self.vectors = [
            place for place, name in enumerate(names) if "embedding" in name
        ]  #: where there usually are any
        self.usual = usual(cls, names)
        self.heads: dict[Any, Any] = {}

    def head(self, told: tuple[bool, ...], state: tuple[Any, ...]) -> Any:
        constants = {
            name: usual for name, usual, is_told in zip(self.names, self.usual, told, strict=True) if not is_told
        }
        model = [sorted(state[0]), *state[1:]] if state else []
        if len(self.heads) >= _MAX_HEADS:
            self.heads.clear()
        made = _Ext((_SHAPE, msgpack.packb([*path_of(self._cls), list(self.names), constants, *model])))
        return self.heads.setdefault((told, state), made)


@functools.lru_cache(maxsize=4096)
def _form(cls: type, names: tuple[str, ...]) -> _Form:
    return _Form(cls, names)


@functools.lru_cache(maxsize=4096)
def _text_head(cls: type) -> Any:
    return _Ext((_SHAPE, msgpack.packb([*path_of(cls)])))


@functools.lru_cache(maxsize=4096, typed=True)  # members of different enumerations may be equal
def _enum_ext(value: enum.Enum) -> Any:
    return _Ext((_ENUM, msgpack.packb([*path_of(type(value)), value.name])))


def _made(found: dict[Any, Any]) -> Any:
    """A map of the caller's as it is, or the object whose shape is its key."""
    for shape in found:
        if type(shape) is Shape:
            return shape.make(found[shape])
        break
    return found


class _Decoder:
    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self.unpack: Callable[[bytes], Any] = functools.partial(
            msgpack.unpackb, ext_hook=self.ext, object_hook=_made, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def ext(self, code: int, data: bytes) -> Any:
        if code == _SHAPE:
            return _shape(data)
        if code == _ENUM:
            return _enum(data)
        if code == _MODEL:
            return rebuild_model(self.unpack(data))
        if code == _FLOATS:
            return np.frombuffer(data, "<f8").tolist()
        if code == _PICKLE:
            if not self._allow_pickle:
                raise CodecError("a pickle is not allowed at this boundary")
            return pickle.loads(data)
        if code == _BIGINT:
            return int(data)
        if code in _ours:
            if not self._allow_pickle:
                raise CodecError("what passes between our own processes only is not allowed at this boundary")
            return _shared(code, data) if code in _constant else _ours[code](*self.unpack(data))
        return _FROM_STATE[code](self.unpack(data))


_WITH_PICKLE, _WITHOUT_PICKLE = _Decoder(True), _Decoder(False)


@functools.lru_cache(maxsize=4096)
def _shape(data: bytes) -> Shape:
    return shape_of(*msgpack.unpackb(data))


@functools.lru_cache(maxsize=4096)
def _shared(code: int, data: bytes) -> Any:
    return _ours[code](*msgpack.unpackb(data))


@functools.lru_cache(maxsize=4096)
def _enum(data: bytes) -> Any:
    return rebuild_enum(msgpack.unpackb(data))


def register(code: int, cls: type, *, is_constant: bool = False) -> None:
    """A dataclass of ours with slots, which passes between our own processes as its fields. Codes from 50 on.

    ``is_constant``: nothing in it can change, so that one object will do for all that are equal.
    """
    _codes[cls], _ours[code] = code, cls
    if is_constant:
        _constant.add(code)


def _forgets(cls: type) -> bool:
    """A user's subclass of a LlamaIndex component that pickles as those do: without what cannot be pickled, through the constructor."""
    getter = getattr(cls, "__getstate__", None)
    return getattr(getter, "__module__", None) == "llama_index.core.schema" and is_importable(cls)


#: The form of each class that was met last.
_forms: dict[type, _Form] = {}
_MAX_HEADS = 256
_is_not, _compress = operator.is_not, itertools.compress
_KEPT_BUFFER = 1 << 20
_codes: dict[type, int] = {}
_ours: dict[int, type] = {}
_constant: set[int] = set()
_CONTAINERS = frozenset({list, dict})
_VECTOR = 16  #: so many numbers cross as an array
_BY_TYPE: dict[type, tuple[int, Callable[[Any], Any]]] = {
    tuple: (_TUPLE, list),
    set: (_SET, list),
    frozenset: (_FROZENSET, list),
    complex: (_COMPLEX, lambda v: [v.real, v.imag]),
    bytearray: (_BYTEARRAY, bytes),
    dt.date: (_DATE, dt.date.isoformat),
    dt.timedelta: (_TIMEDELTA, lambda v: [v.days, v.seconds, v.microseconds]),
    UUID: (_UUID, lambda v: v.bytes),
    Decimal: (_DECIMAL, str),
}
_FROM_STATE: dict[int, Callable[[Any], Any]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _COMPLEX: lambda s: complex(*s),
    _BYTEARRAY: bytearray,
    _DATETIME: rebuild_time(dt.datetime.fromisoformat),
    _DATE: dt.date.fromisoformat,
    _TIME: rebuild_time(dt.time.fromisoformat),
    _TIMEDELTA: lambda s: dt.timedelta(*s),
    _UUID: lambda s: UUID(bytes=s),
    _DECIMAL: Decimal,
    _NDARRAY: rebuild_array,
    _NPSCALAR: rebuild_scalar,
}
