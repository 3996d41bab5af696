"""Values of options that several commands have."""

from __future__ import annotations

from patchwork_serving.config import parse_seconds
from patchwork_serving.errors import UsageError


def seconds(option: str, text: str) -> float:
    """A duration of the command line; UsageError names the option."""
    try:
        value = parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not isinstance(value, float) or value <= 0:
        raise UsageError(f"{option}: {text!r} must be more than 0 seconds")
    return value
