"""Embeddings that a module computes while it is imported, by classes of the user's own, are computed once for all processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from patchwork_adapters.import_calls import ImportCalls
from patchwork_adapters.record import ImportRecord
from patchwork_adapters.target import load_target, parse_target

LANGCHAIN = """
import builtins, threading
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

class Mine(Embeddings):
    def __init__(self, salt, weights=None):
        self.salt, self.lock, self.weights = salt, threading.Lock(), weights
    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]
    def embed_query(self, text):
        builtins.asked.append(text)
        return [float(len(text)), float(len(self.salt)), 1.0]

first, second = Mine("a"), Mine("bbb")
texts = [f"passage {'x' * i}" for i in range(20)]
store = InMemoryVectorStore.from_texts(texts, first, ids=[str(i) for i in range(20)])
other = InMemoryVectorStore.from_texts(texts, second, ids=[str(i) for i in range(20)])
held = RunnableLambda(first.embed_query)
chain = store.as_retriever() | (lambda found: found)

def contents():
    return {name: (row["text"], row["vector"]) for s in (store, other) for name, row in s.store.items()}
"""
LLAMA = """
import builtins
from llama_index.core import VectorStoreIndex, MockEmbedding
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

class Mine(BaseEmbedding):
    salt: str = ""
    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)
    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)
    def _get_text_embedding(self, text):
        builtins.asked.append(text)
        return [float(len(text)), float(len(self.salt))]

index = VectorStoreIndex([TextNode(id_=f"n{i}", text="y" * (i + 1)) for i in range(20)], embed_model=Mine(salt="abc"))
chain = index.as_query_engine(llm=MockLLM())

def contents():
    return index.vector_store.data.embedding_dict
"""


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user's classes were asked, in whichever module."""
    import builtins

    asked: list[str] = []
    monkeypatch.setattr(builtins, "asked", asked, raising=False)
    return asked


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = list(sys.path)
    yield tmp_path / "embeds_at_import.py"
    sys.path[:] = before
    sys.modules.pop("embeds_at_import", None)


def imported(path: Path, record: ImportRecord, *, is_recording: bool = False) -> tuple[ModuleType, ImportCalls]:
    sys.modules.pop(path.stem, None)
    calls = ImportCalls(record, is_recording=is_recording)
    with calls.watching():
        module = load_target(parse_target(f"{path}:chain")).module
    return module, calls


@pytest.mark.parametrize(("source", "num"), [(LANGCHAIN, 40), (LLAMA, 20)], ids=["langchain", "llamaindex"])
def test_a_second_process_embeds_nothing_and_has_the_same_store(
    path: Path, asked: list[str], source: str, num: int
) -> None:
    if source is LLAMA:
        pytest.importorskip("llama_index.core")
    path.write_text(source)
    record = ImportRecord()
    builders, _ = imported(path, record, is_recording=True)
    assert len(asked) == num
    asked.clear()
    module, calls = imported(path, ImportRecord.from_bytes(record.to_bytes()))
    assert asked == []
    assert calls.num_asked == 0
    assert module.contents() == builders.contents()
    assert b"passage" not in record.to_bytes()


def test_after_the_import_everything_is_asked(path: Path, asked: list[str]) -> None:
    path.write_text(LANGCHAIN)
    record = ImportRecord()
    module, _ = imported(path, record, is_recording=True)
    asked.clear()
    num = len(record)
    assert module.held.invoke("passage x") == module.first.embed_query("passage x") == [9.0, 1.0, 1.0]
    assert len(asked) == 2  # one through the bound method that was taken while it was watched
    assert len(record) == num
    assert not hasattr(module.Mine.embed_query, "__wrapped__")


def test_an_edited_class_is_asked_anew(path: Path, asked: list[str]) -> None:
    path.write_text(LANGCHAIN)
    record = ImportRecord()
    imported(path, record, is_recording=True)
    path.write_text(LANGCHAIN.replace("1.0]", "20.5]"))
    module, _ = imported(path, record)
    assert {vector[-1] for _, vector in module.contents().values()} == {20.5}


def test_two_objects_that_only_their_weights_tell_apart_are_not_recorded(path: Path, asked: list[str]) -> None:
    weights = 'first, second = Mine("a", weights=object()), Mine("a", weights=object())'
    path.write_text(LANGCHAIN.replace('first, second = Mine("a"), Mine("bbb")', weights))
    record = ImportRecord()
    imported(path, record, is_recording=True)
    assert len(record) == 0


def test_an_object_whose_data_changes_as_it_works_is_not_recorded(path: Path, asked: list[str]) -> None:
    path.write_text(LANGCHAIN.replace("        return [float", '        self.salt += "."\n        return [float'))
    record = ImportRecord()
    first, _ = imported(path, record, is_recording=True)
    asked.clear()
    second, _ = imported(path, record)
    assert len(asked) == 40
    assert second.contents() == first.contents()


def test_other_weights_in_the_same_place_are_another_model(path: Path, asked: list[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    path.write_text(LANGCHAIN.replace('Mine("a"), Mine("bbb")', f'Mine("{weights}"), Mine("bbb")'))
    record = ImportRecord()
    imported(path, record, is_recording=True)
    weights.write_bytes(b"another")
    asked.clear()
    imported(path, record)
    assert len(asked) == 20


def test_the_classes_are_as_before_when_the_import_fails(path: Path) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

    before: Any = DeterministicFakeEmbedding.embed_query
    path.write_text("raise RuntimeError('no')")
    with pytest.raises(Exception, match="RuntimeError: no"):
        imported(path, ImportRecord())
    assert DeterministicFakeEmbedding.embed_query is before
    assert "__init_subclass__" not in vars(Embeddings)
