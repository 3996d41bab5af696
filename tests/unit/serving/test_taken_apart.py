"""What a deployed process loads of the user's leaves: nothing of those that run elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kit.twins import Twins
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.import_hooks import Undo
from patchwork_adapters.leaves import spec
from patchwork_adapters.record import ImportRecord
from patchwork_adapters.transport import Way
from patchwork_serving.release import ComponentSpec, Release
from patchwork_serving.taken_apart import take_apart

#: Stands for a package whose constructors load weights.
HEAVY = """
class Weights:
    loaded = 0

    def __init__(self):
        Weights.loaded += 1
"""
CHAIN = """
from heavy_weights import Weights
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda

class Mine(Embeddings):
    def __init__(self):
        self.weights = Weights()

    def embed_documents(self, texts):
        return [[0.0] for _ in texts]

    def embed_query(self, text):
        return [0.0]

mine = Mine()
chain = RunnableLambda(mine.embed_query)
"""


def without_weights(module: ModuleType) -> Undo:
    original = module.Weights.__init__
    module.Weights.__init__ = lambda self: None  # type: ignore[attr-defined]

    def undo() -> None:
        module.Weights.__init__ = original  # type: ignore[attr-defined]

    return undo


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "heavy_weights.py").write_text(HEAVY, encoding="utf-8")
    (tmp_path / "chain_of_weights.py").write_text(CHAIN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec.spec_for(
        object
    )  # families register their hooks once, and must not do so in the list that is there for this test
    monkeypatch.setattr(spec, "_hooks", [spec.ConstructHook("heavy_weights", without_weights)])
    yield str(tmp_path / "chain_of_weights.py")
    for name in ("heavy_weights", "chain_of_weights"):
        sys.modules.pop(name, None)


def release(target: str, way: Way) -> Release:
    mine = ComponentSpec("embedder-mine", "embedder", way, "own", leaves=("mine",))
    return Release("app", target, str(Path(target).parent), ComponentGraph(target, "langchain", ()), (mine,))


@pytest.mark.parametrize(
    ("way", "keep", "loads"),
    [
        ("own", frozenset(), 0),  # the orchestrator
        ("engine", frozenset(), 0),
        ("own", frozenset({"mine"}), 1),  # the replica that it runs in
    ],
)
def test_weights_are_loaded_only_where_the_leaf_runs(way: Way, keep: frozenset[str], loads: int, target: str) -> None:
    with Bridge(Twins()) as bridge:
        apart = take_apart(release(target, way), bridge, ImportRecord(), keep=keep)
        try:
            weights = sys.modules["heavy_weights"].Weights
            assert weights.loaded == loads
        finally:
            apart.close()
    weights()
    assert weights.loaded == loads + 1  # the constructor is the user's again
