"""LangChain's standard suites on classes as their author wrote them, and on the classes that a swap generates from them.

Not collected by itself: ``test_langchain_standard.py`` runs this file in a process of its own and compares outcomes. The names pair up:
``TestModelUnit`` and ``TestModelUnitSwapped``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    ToolsIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests, ToolsUnitTests

from conformance.leaves import Adder, AsyncAdder, Hashes, Model, Shelf
from kit.twins import Twins, swapped

#: generated class -> where its calls go; for the life of this process, as in a deployed one
CLUSTERS: dict[type, Twins] = {}
_open: list[Any] = []


def generated(cls: type, *args: Any) -> type:
    """The class that a swap makes of ``cls``: its objects' calls are carried out by another object, by bytes only."""
    found = next((made for made in CLUSTERS if made.__bases__ == (cls,)), None)
    if found is not None:
        return found
    obj = cls(*args)
    context = swapped(obj, cls(*args))
    CLUSTERS[type(obj)] = context.__enter__()
    _open.append((context, obj))
    return type(obj)


def num_calls() -> int:
    return sum(len(cluster.calls) for cluster in CLUSTERS.values())


@pytest.fixture(autouse=True, scope="class")
def calls_went_away(request: pytest.FixtureRequest) -> Iterator[None]:
    """A swap that runs nothing elsewhere would be equal as well. Unit suites only construct."""
    before = num_calls()
    yield
    if request.cls.__name__.endswith("Swapped") and "Unit" not in request.cls.__name__:
        assert num_calls() > before


class TestModelUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Model

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "standard"}


class TestModelUnitSwapped(TestModelUnit):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return generated(Model)


class TestModel(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Model

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "standard"}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestModelSwapped(TestModel):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return generated(Model)


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Hashes


class TestEmbeddingsUnitSwapped(TestEmbeddingsUnit):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return generated(Hashes)


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Hashes

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"size": 8}


class TestEmbeddingsSwapped(TestEmbeddings):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return generated(Hashes)


class TestStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return InMemoryVectorStore(self.get_embeddings())


class TestStoreSwapped(TestStore):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:  # type: ignore[override]
        store = InMemoryVectorStore(self.get_embeddings())
        with swapped(store, None) as cluster:
            CLUSTERS[type(store)] = cluster
            yield store


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return Shelf

    @property
    def retriever_query_example(self) -> str:
        return "apples"


class TestRetrieverSwapped(TestRetriever):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return generated(Shelf)


class TestToolUnit(ToolsUnitTests):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return Adder

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"a": 2, "b": 3}


class TestToolUnitSwapped(TestToolUnit):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return generated(Adder)


class TestTool(ToolsIntegrationTests):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return Adder

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"a": 2, "b": 3}


class TestToolSwapped(TestTool):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return generated(Adder)


class TestAsyncTool(ToolsIntegrationTests):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return AsyncAdder

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"a": 2, "b": 3}


class TestAsyncToolSwapped(TestAsyncTool):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return generated(AsyncAdder)
