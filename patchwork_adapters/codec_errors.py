"""Exceptions as state, so that the other side raises the class that was raised here, with its arguments and attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from patchwork_adapters.codec_classes import is_importable, name_of, path_of, resolve, resolve_trusted
from patchwork_adapters.errors import CodecError
from patchwork_adapters.redaction import redacted


def error_state(error: BaseException, can_travel: Callable[[Any], bool]) -> list[Any]:
    """What :func:`rebuild_error` needs; parts that cannot travel are replaced by their text rather than losing the error."""
    cls = type(error)
    # __reduce__ of the built-in classes knows arguments that .args does not show, such as OSError's file name
    reduced = error.__reduce__()[1] if cls.__module__ == "builtins" else error.args
    attributes = {name: _sendable(item, can_travel) for name, item in error.__dict__.items() if name != "__notes__"}
    lineage = [list(path_of(base)) for base in cls.__mro__ if is_importable(base) and issubclass(base, BaseException)]
    arguments = [_sendable(argument, can_travel) for argument in reduced]
    return [lineage, arguments, attributes, list(getattr(error, "__notes__", []))]


def rebuild_error(state: list[Any], *, trusted: bool) -> BaseException:
    """By ``cls.__new__``: constructors of clients' exceptions ask for live responses. The nearest class that exists here is taken."""
    lineage, arguments, attributes, notes = state
    for module, qualname in lineage:
        try:
            cls = resolve(module, qualname) if trusted or module == "builtins" else resolve_trusted(module, qualname)
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


def without_secrets(state: list[Any], packed: Callable[[Any], bytes]) -> list[Any]:
    """An error's state to be kept: texts are redacted, and an object with a secret inside is replaced by the name of its class."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return redacted(value)
        if isinstance(value, list | tuple):
            return type(value)(map(clean, value)) if type(value) in (list, tuple) else value
        if type(value) is dict:
            return {clean(key): clean(item) for key, item in value.items()}
        text = packed(value).decode("latin-1")
        return value if redacted(text) == text else f"<{name_of(type(value))}>"

    lineage, *rest = state
    return [lineage, *map(clean, rest)]


def _new_error(cls: type[BaseException], arguments: list[Any]) -> BaseException:
    if cls.__module__ == "builtins":
        return cls(*arguments)
    try:
        error = cls.__new__(cls)
    except TypeError:  # exception groups want their arguments there
        return cls.__new__(cls, *arguments)
    error.args = tuple(arguments)
    return error


def _sendable(value: Any, can_travel: Callable[[Any], bool]) -> Any:
    if type(value).__module__.startswith(("httpx", "httpx2")):
        value = _without_headers(value)
    return value if can_travel(value) else f"<{name_of(type(value))}>"


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
    return f"<{name_of(cls)}>"
