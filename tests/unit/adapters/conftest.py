"""Tests of the adapters run with a codec that checks itself: what a boundary loses is an error at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from patchwork_adapters import codec
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.openai_cut import OpenAICut

from .fakes import FakeCluster, route


@pytest.fixture(autouse=True)
def strict_codec() -> Iterator[None]:
    with codec.strict():
        yield


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def cut(cluster: FakeCluster) -> Iterator[OpenAICut]:
    """Installed: clients made in the test talk to ``cluster``, which has the models that ``route`` names."""
    with Bridge(cluster) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        yield cut
        cut.undo()


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    """LlamaIndex's ``Settings`` belong to the process, and modules of chains set them when they are imported."""
    settings = _settings()
    before = dict(vars(settings)) if settings is not None else None
    yield
    settings = _settings()
    if settings is not None:
        vars(settings).clear()
        vars(settings).update(before if before is not None else vars(type(settings)()))


def _settings() -> Any:
    module = sys.modules.get("llama_index.core.settings")
    return getattr(module, "Settings", None)
