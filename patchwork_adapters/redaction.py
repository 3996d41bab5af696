"""Text without secrets, for whatever is shown, written or logged and was not made by us: messages of exceptions, differences of values.

Two things tell a secret. Its form: a password in a URL or a connection string, a value behind a name such as ``api_key``, the forms of
well-known vendors' keys. And its value: environment variables with such names, and what the objects of the user's chain hold under them,
or in a ``SecretStr``. What is replaced is the secret alone; the rest of a message stays useful.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "***"
_LEAST = 8  #: characters of a secret known by value: shorter ones would blank innocent text
_MOST = 1000  #: secrets remembered
_NAME = r"(?:api[_-]?key|access[_-]?key|secret[_-]?key|secret|token|password|passwd|pwd|authorization|credentials?)"
_ENDS_SECRET = re.compile(rf"(?:^|[_-]){_NAME}$|^x-api-key$|^(?:set-)?cookie$", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"(?:_|^)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
#: (form, what stays of it)
_FORMS = (
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]*:[^\s/@'\"]*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(rf"(?<![A-Za-z0-9])((?:\w+[_-])?{_NAME}[\"']?\s*[=:]\s*)(?!\*\*\*|(?:Bearer|Basic)\s|None\b|True\b|False\b|\d+\b)"
                r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&(){}\[\]<>\"']+)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk)-[\w*-]{6,}|\bhf_\w{16,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bxox[abp]-[\w-]{10,}"
                r"|\blsv2_\w{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"), HIDDEN),
)  # fmt: skip
_known: set[str] = set()


def redacted(text: str) -> str:
    """``text`` with each secret in it replaced."""
    for secret in sorted(_known | _of_environment(), key=len, reverse=True):  # one may be part of another
        if secret in text:
            text = text.replace(secret, HIDDEN)
    for form, stays in _FORMS:
        text = form.sub(stays, text)
    return text


def redacted_traceback(error: BaseException) -> str:
    return redacted("".join(traceback.format_exception(error)))


def hide_secrets_of(objects: Iterable[Any]) -> None:
    """From now on what these objects keep secret is known by value, in this process."""
    for obj in objects:
        for secret in _held(obj):
            if len(secret) >= _LEAST and len(_known) < _MOST:
                _known.add(secret)


def _held(obj: Any) -> Iterator[str]:
    for name, value in _attributes(obj):
        if isinstance(value, Mapping) and "header" in name.lower():
            yield from (
                v for n, v in value.items() if isinstance(n, str) and isinstance(v, str) and _ENDS_SECRET.search(n)
            )
        elif (text := _unwrapped(value)) is not None:
            yield text
        elif isinstance(value, str) and _ENDS_SECRET.search(name):
            yield value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    for part in ("__dict__", "__pydantic_private__", "__pydantic_extra__"):
        try:
            found = object.__getattribute__(obj, part)
        except Exception:  # noqa: BLE001  a class of the user's may compute it
            continue
        if isinstance(found, Mapping):
            yield from ((name, value) for name, value in list(found.items()) if isinstance(name, str))


def _unwrapped(value: Any) -> str | None:
    """Of pydantic's SecretStr and SecretBytes."""
    if type(value).__name__ not in ("SecretStr", "SecretBytes"):
        return None
    secret = value.get_secret_value()
    return secret.decode("utf-8", "replace") if isinstance(secret, bytes) else str(secret)


def _of_environment() -> set[str]:
    return {value for name, value in os.environ.items() if len(value) >= _LEAST and _ENVIRONMENT.search(name)}
