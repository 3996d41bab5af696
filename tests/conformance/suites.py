"""LangChain's standard suites on classes as their author wrote them, and on the classes that a swap generates from them.

Not collected by itself: ``test_langchain_standard.py`` runs this file in a process of its own and compares outcomes. The names pair up:
``TestModelUnit`` and ``TestModelUnitSwapped``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
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


def _pair(name: str, suite: type, subject: str, cls: type, **more: Any) -> None:
    """``Test{name}`` of the user's class, which the suite calls its ``subject``, and ``Test{name}Swapped`` of the generated one."""
    original = type(f"Test{name}", (suite,), {"__module__": __name__, subject: cls, **more})
    away = {"__module__": __name__, subject: property(lambda self: generated(cls))}
    globals().update({original.__name__: original, f"Test{name}Swapped": type(f"Test{name}Swapped", (original,), away)})


_MODEL: dict[str, Any] = {"chat_model_params": {"model": "standard"}}
_TOOL: dict[str, Any] = {"tool_invoke_params_example": {"a": 2, "b": 3}}
_pair("ModelUnit", ChatModelUnitTests, "chat_model_class", Model, **_MODEL)
_pair("Model", ChatModelIntegrationTests, "chat_model_class", Model, **_MODEL, supports_json_mode=True)
_pair("EmbeddingsUnit", EmbeddingsUnitTests, "embeddings_class", Hashes)
_pair("Embeddings", EmbeddingsIntegrationTests, "embeddings_class", Hashes, embedding_model_params={"size": 8})
_pair("Retriever", RetrieversIntegrationTests, "retriever_constructor", Shelf, retriever_query_example="apples")
_pair("ToolUnit", ToolsUnitTests, "tool_constructor", Adder, **_TOOL)
_pair("Tool", ToolsIntegrationTests, "tool_constructor", Adder, **_TOOL)
_pair("AsyncTool", ToolsIntegrationTests, "tool_constructor", AsyncAdder, **_TOOL)


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
