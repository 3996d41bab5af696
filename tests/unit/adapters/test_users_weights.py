"""Weights that the user's own classes load with Hugging Face's: only where they are used. The packages are stood in for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings

from patchwork_adapters.leaves import users_weights
from patchwork_adapters.leaves.deferred import Deferred
from patchwork_adapters.leaves.spec import install_construct_hooks, spec_for
from patchwork_adapters.walk import find_leaves


class Loaded:
    """Counts what is loaded, in place of weights."""

    names: list[str] = []  # noqa: RUF012  emptied before each test

    def __init__(self, model_name_or_path: str | None = None, modules: Any = None, device: str = "cpu") -> None:
        self.names.append(str(model_name_or_path))
        self.device, self.is_training = device, True

    def eval(self) -> Any:
        self.is_training = False
        return self

    def encode(self, text: str) -> list[float]:
        return [float(len(text))]


class AutoModel:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> Any:
        return Loaded(pretrained_model_name_or_path, **kwargs)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``sentence_transformers``, with the hooks of deployed processes in force."""
    package, factory = ModuleType("sentence_transformers"), ModuleType("transformers.models.auto.modeling_auto")
    vars(package).update({name: type(name, (Loaded,), {}) for name in ("SentenceTransformer", "CrossEncoder")})
    vars(factory).update(AutoModel=AutoModel)
    for module in (package, factory):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Loaded, "names", [])
    spec_for(object)  # families register their hooks once, and must not do so in the list that is there for this test
    hooks = [hook for hook in users_weights_hooks() if hook.module in sys.modules]
    monkeypatch.setattr("patchwork_adapters.leaves.spec._hooks", hooks)
    undo = install_construct_hooks()
    try:
        yield package
    finally:
        undo()


def users_weights_hooks() -> list[Any]:
    from patchwork_adapters.leaves import spec

    return [hook for hook in spec._hooks if hook.install.__module__ == users_weights.__name__]


class Mine(Embeddings):
    def __init__(self, package: Any) -> None:
        self.model = package.SentenceTransformer("bi", device="cuda").eval()
        self.pairs = package.CrossEncoder(Path("cross"))
        self.auto = AutoModel.from_pretrained("auto").eval()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        found: list[float] = self.model.encode(text)
        return found


def test_a_leaf_of_the_users_own_loads_its_weights_when_they_are_used(package: Any) -> None:
    mine = Mine(package)
    assert isinstance(mine.model, package.SentenceTransformer)
    assert [leaf.path for leaf in find_leaves(mine, ModuleType("user")).leaves] == ["chain"]
    assert Loaded.names == []
    assert mine.embed_query("four") == [4.0]
    assert Loaded.names == ["bi"]
    assert (mine.model.device, mine.model.is_training) == ("cuda", False)
    assert mine.auto.is_training is False
    assert Loaded.names == ["bi", "auto"]


def test_what_a_package_constructs_and_what_names_no_model_is_made_at_once(package: Any) -> None:
    theirs: dict[str, Any] = {"__name__": "json", "package": package, "AutoModel": AutoModel}
    exec("made = [package.SentenceTransformer('bi'), AutoModel.from_pretrained('auto')]", theirs)
    assert Loaded.names == ["bi", "auto"]
    assert not any(type(made) is Deferred for made in theirs["made"])
    package.SentenceTransformer(modules=["layer"])
    type("Users", (package.SentenceTransformer,), {})("derived")
    assert Loaded.names[2:] == ["None", "derived"]


def test_undoing_the_hooks_gives_the_constructors_back(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    again = ModuleType("sentence_transformers")
    vars(again).update({name: type(name, (Loaded,), {}) for name in ("SentenceTransformer", "CrossEncoder")})
    monkeypatch.setitem(sys.modules, again.__name__, again)
    install_construct_hooks()()
    assert type(again.SentenceTransformer("one", device="cuda")) is again.SentenceTransformer
    assert type(again.CrossEncoder(model_name_or_path="two")) is again.CrossEncoder
    assert Loaded.names == ["one", "two"]
    assert type(package.SentenceTransformer("three")) is Deferred  # of which nobody undid anything
