"""Values to bytes and back, exactly: ``decode(encode(x))`` equals ``x`` in value and in type.

msgpack carries what it can; everything else travels in extension types. Frameworks' own classes (messages, documents, nodes) go as their
class and state, so that subclasses with extra state survive. What is not known is pickled, which is allowed between our own processes
only: pass ``allow_pickle=False`` for anything that comes from outside.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import functools
import importlib
import io
import pickle
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

import msgpack
import numpy as np

from patchwork_adapters.errors import CodecError, NotExact
from patchwork_adapters.exact import difference

_TUPLE, _DICT, _SET, _FROZENSET, _BIGINT, _COMPLEX = 1, 2, 3, 4, 5, 6
_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _BYTEARRAY = 10, 11, 12, 13, 14, 15, 16
_NDARRAY, _NPSCALAR = 20, 21
_MODEL, _ENUM = 30, 31
_PICKLE, _ERROR = 40, 41
_OUTCOME_VALUE, _OUTCOME_ERROR = b"\x00", b"\x01"
_strict = 0  #: blocks of :func:`strict` that run; for all threads, because calls are encoded in any

#: Classes of these packages are rebuilt from their state; a class of the user's may do anything in ``__setstate__``, so it is pickled.
_TRUSTED_MODELS = ("langchain_core.", "langchain_classic.", "langchain_community.", "langgraph.", "llama_index.core.")


def encode(value: Any, *, allow_pickle: bool = True) -> bytes:
    """Raises CodecError for what cannot cross exactly; the message names the type, never the value."""
    data = (_ENCODER if allow_pickle else _PLAIN_ENCODER).pack(value)
    if _strict and (where := difference(value, decode(data, allow_pickle=allow_pickle))) is not None:
        raise NotExact(f"a value of type {_name(type(value))} does not cross exactly: {where}")
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
        # never strict: a client's response in it comes without its stream, on purpose
        return _OUTCOME_ERROR + (_ENCODER if allow_pickle else _PLAIN_ENCODER).pack(_error_state(outcome))
    return _OUTCOME_VALUE + encode(outcome, allow_pickle=allow_pickle)


def decode_outcome(data: bytes, *, allow_pickle: bool = True) -> Any:
    """Returns the value or raises the exception, as the class that the user's leaf raised."""
    kind, body = data[:1], data[1:]
    if kind == _OUTCOME_VALUE:
        return decode(body, allow_pickle=allow_pickle)
    if kind == _OUTCOME_ERROR:
        raise _rebuild_error(decode(body, allow_pickle=allow_pickle), trusted=allow_pickle)
    raise CodecError("these bytes are not an outcome written by this codec")


class _Encoder:
    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle

    def pack(self, value: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(
                self._plain(value), default=self._ext, strict_types=True, unicode_errors="surrogatepass"
            )
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CodecError(
                f"a value of type {_name(type(value))} cannot be encoded ({type(error).__name__})"
            ) from error
        return packed

    def _plain(self, value: Any) -> Any:
        """Values that msgpack would take but not give back as they were. Vectors and texts, which are long, pass whole."""
        kind = type(value)
        if kind in _NATIVE:
            return value
        if kind is list:
            return value if _NATIVE.issuperset(map(type, value)) else [self._plain(item) for item in value]
        if kind is dict:
            if not _ONLY_TEXT.issuperset(map(type, value)):
                return msgpack.ExtType(_DICT, self.pack([[key, item] for key, item in value.items()]))
            if _NATIVE.issuperset(map(type, value.values())):
                return value
            return {key: self._plain(item) for key, item in value.items()}
        if kind is int:
            return value if _MIN_INT <= value <= _MAX_INT else msgpack.ExtType(_BIGINT, str(value).encode())
        return self._ext(value)

    def _ext(self, value: Any) -> msgpack.ExtType:
        known = _BY_TYPE.get(type(value))
        if known is not None:
            code, to_state = known
            return msgpack.ExtType(code, self.pack(to_state(value)))
        if _is_trusted_model(type(value)):
            return msgpack.ExtType(_MODEL, self.pack([*_path(type(value)), _model_state(value)]))
        if type(value) in (dt.datetime, dt.time):
            state = _time_state(value)
            code = _DATETIME if type(value) is dt.datetime else _TIME
            return self._pickled(value) if state is None else msgpack.ExtType(code, self.pack(state))
        if isinstance(value, np.ndarray) and type(value) is np.ndarray and not value.dtype.hasobject:
            return self._array(_NDARRAY, value)
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return self._array(_NPSCALAR, np.asarray(value))
        if isinstance(value, enum.Enum) and _is_trusted(type(value)):
            return msgpack.ExtType(_ENUM, self.pack([*_path(type(value)), value.name]))
        return self._pickled(value)

    def _array(self, code: int, array: np.ndarray[Any, Any]) -> msgpack.ExtType:
        if array.dtype.fields is not None:
            return self._pickled(array)
        data = [array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()]
        return msgpack.ExtType(code, self.pack(data))

    def _pickled(self, value: Any) -> msgpack.ExtType:
        if not self._allow_pickle:
            raise CodecError(f"a value of type {_name(type(value))} cannot cross this boundary without pickle")
        try:
            return msgpack.ExtType(_PICKLE, _pickle(value))
        except Exception as error:  # pickling runs the value's own code: anything may come out
            raise CodecError(
                f"a value of type {_name(type(value))} cannot be sent to another process ({type(error).__name__}: {error})"
            ) from error


class _Pickler(pickle.Pickler):
    """Pickles frameworks' models inside as their state: some of them run validators, or drop fields, when they are unpickled."""

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if _is_trusted_model(cls) or _forgets(cls):
            return _rebuild_as, (cls, _model_state(obj))
        return NotImplemented


def _pickle(value: Any) -> bytes:
    data = io.BytesIO()
    _Pickler(data, protocol=5).dump(value)
    return data.getvalue()


_ENCODER, _PLAIN_ENCODER = _Encoder(True), _Encoder(False)


class _Decoder:
    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle

    def ext(self, code: int, data: bytes) -> Any:
        if code == _PICKLE:
            if not self._allow_pickle:
                raise CodecError("a pickle is not allowed at this boundary")
            return pickle.loads(data)
        if code == _BIGINT:
            return int(data)
        return _FROM_STATE[code](self.unpack(data))

    def unpack(self, data: bytes) -> Any:
        return msgpack.unpackb(data, ext_hook=self.ext, strict_map_key=False, unicode_errors="surrogatepass")


_WITH_PICKLE, _WITHOUT_PICKLE = _Decoder(True), _Decoder(False)


def _model_state(value: Any) -> list[Any]:
    """pydantic's state without running validators: (fields, extra, fields set, private)."""
    private = value.__pydantic_private__
    return [value.__dict__, value.__pydantic_extra__, sorted(value.__pydantic_fields_set__), private]


def _rebuild_model(state: list[Any]) -> Any:
    module, qualname, parts = state
    cls = _resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and "__pydantic_core_schema__" in cls.__dict__):
        raise CodecError(f"{module}.{qualname} is no model")
    return _rebuild_as(cls, parts)


def _rebuild_as(cls: Any, state: list[Any]) -> Any:
    fields, extra, fields_set, private = state
    value = cls.__new__(cls)
    for name, part in (
        ("__dict__", fields),
        ("__pydantic_extra__", extra),
        ("__pydantic_fields_set__", set(fields_set)),
        ("__pydantic_private__", private),
    ):
        object.__setattr__(value, name, part)
    return value


def _rebuild_enum(state: list[Any]) -> Any:
    module, qualname, name = state
    cls = _resolve_trusted(module, qualname)
    if not (isinstance(cls, type) and issubclass(cls, enum.Enum)):
        raise CodecError(f"{module}.{qualname} is no enumeration")
    return cls[name]


def _rebuild_array(state: list[Any]) -> Any:
    dtype, shape, data = state
    return np.frombuffer(bytearray(data), dtype=np.dtype(dtype)).reshape(shape)


def _rebuild_scalar(state: list[Any]) -> Any:
    return _rebuild_array(state).reshape(())[()]


def _error_state(error: BaseException) -> list[Any]:
    """What :func:`_rebuild_error` needs; parts that cannot travel are replaced by their text rather than losing the error."""
    cls = type(error)
    # __reduce__ of the built-in classes knows arguments that .args does not show, such as OSError's file name
    reduced = error.__reduce__()[1] if cls.__module__ == "builtins" else error.args
    attributes = {name: _sendable(item) for name, item in error.__dict__.items() if name != "__notes__"}
    lineage = [list(_path(base)) for base in cls.__mro__ if _is_importable(base) and issubclass(base, BaseException)]
    arguments = [_sendable(argument) for argument in reduced]
    return [lineage, arguments, attributes, list(getattr(error, "__notes__", []))]


def _rebuild_error(state: list[Any], *, trusted: bool) -> BaseException:
    """By ``cls.__new__``: constructors of clients' exceptions ask for live responses. The nearest class that exists here is taken."""
    lineage, arguments, attributes, notes = state
    for module, qualname in lineage:
        try:
            cls = _resolve(module, qualname) if trusted or module == "builtins" else _resolve_trusted(module, qualname)
        except CodecError:
            continue
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            continue  # a name from outside may be that of any function
        error = _new_error(cls, arguments)
        error.__dict__.update(attributes)
        for note in notes:
            error.add_note(note)
        return error
    raise CodecError("an exception of a class that does not exist in this process")


def _new_error(cls: type[BaseException], arguments: list[Any]) -> BaseException:
    if cls.__module__ == "builtins":
        return cls(*arguments)
    try:
        error = cls.__new__(cls)
    except TypeError:  # exception groups want their arguments there
        return cls.__new__(cls, *arguments)
    error.args = tuple(arguments)
    return error


def _sendable(value: Any) -> Any:
    if type(value).__module__.startswith(("httpx", "httpx2")):
        value = _without_headers(value)
    try:
        _ENCODER.pack(value)
    except CodecError:
        return f"<{_name(type(value))}>"
    return value


def _without_headers(value: Any) -> Any:
    """A client's request or response as a new one without the request's headers: they hold the user's API key."""
    cls = type(value)
    if cls.__name__ == "Request":
        return cls(value.method, value.url.copy_with(username=None, password=None))
    if cls.__name__ == "Response" and value.is_closed and hasattr(value, "_content"):
        headers = [
            (k, v) for k, v in value.headers.items() if k not in ("content-encoding", "content-length", "set-cookie")
        ]
        request = _without_headers(value._request) if value._request is not None else None
        return cls(value.status_code, headers=headers, content=value.content, request=request)
    return f"<{_name(cls)}>"


def _path(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _resolve(module: str, qualname: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CodecError(f"{module}.{qualname} does not exist in this process") from error
    return found


@functools.lru_cache(maxsize=4096)
def _resolve_trusted(module: str, qualname: str) -> Any:
    """Checked before anything is imported: the name may come from outside."""
    if not module.startswith(_TRUSTED_MODELS):
        raise CodecError(f"class {module}.{qualname} is not rebuilt from state")
    return _resolve(module, qualname)


@functools.lru_cache(maxsize=4096)
def _is_importable(cls: type) -> bool:
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return False
    try:
        return _resolve(*_path(cls)) is cls
    except CodecError:
        return False


def _is_trusted(cls: type) -> bool:
    return cls.__module__.startswith(_TRUSTED_MODELS) and _is_importable(cls)


def _is_trusted_model(cls: type) -> bool:
    known = _trusted_models.get(cls)
    if known is None:
        known = _trusted_models[cls] = _is_trusted(cls) and "__pydantic_core_schema__" in cls.__dict__
    return known


def _forgets(cls: type) -> bool:
    """A user's subclass of a LlamaIndex component that pickles as those do: without what cannot be pickled, through the constructor."""
    getter = getattr(cls, "__getstate__", None)
    return getattr(getter, "__module__", None) == "llama_index.core.schema" and _is_importable(cls)


def _time_state(value: dt.datetime | dt.time) -> list[Any] | None:
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


def _rebuild_time(parse: Callable[[str], Any]) -> Callable[[list[Any]], Any]:
    def rebuild(state: list[Any]) -> Any:
        text, fold, key = state
        value = parse(text)
        return value.replace(fold=fold, tzinfo=ZoneInfo(key) if key else value.tzinfo)

    return rebuild


_trusted_models: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_NATIVE = frozenset({type(None), bool, float, str, bytes})
_ONLY_TEXT = frozenset({str})
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
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
    _DICT: dict,
    _SET: set,
    _FROZENSET: frozenset,
    _COMPLEX: lambda s: complex(*s),
    _BYTEARRAY: bytearray,
    _DATETIME: _rebuild_time(dt.datetime.fromisoformat),
    _DATE: dt.date.fromisoformat,
    _TIME: _rebuild_time(dt.time.fromisoformat),
    _TIMEDELTA: lambda s: dt.timedelta(*s),
    _UUID: lambda s: UUID(bytes=s),
    _DECIMAL: Decimal,
    _NDARRAY: _rebuild_array,
    _NPSCALAR: _rebuild_scalar,
    _MODEL: _rebuild_model,
    _ENUM: _rebuild_enum,
}
