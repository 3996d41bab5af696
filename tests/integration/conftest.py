"""What tests of real deployments share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.deployed import Home, a_home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made
