"""Tests of the adapters run with a codec that checks itself: what a boundary loses is an error at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from patchwork_adapters import codec


@pytest.fixture(autouse=True)
def strict_codec() -> Iterator[None]:
    with codec.strict():
        yield
