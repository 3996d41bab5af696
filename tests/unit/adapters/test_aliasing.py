"""A leaf that changes its arguments, or returns objects of them, does so to the caller's objects, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document

from kit.twins import swapped


class Marker(BaseDocumentCompressor):
    """Sorts the list that it is given, marks the documents, and returns the first and a new one."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        documents.sort(key=lambda d: -len(d.page_content))  # type: ignore[attr-defined]
        for rank, document in enumerate(documents):
            document.metadata["rank"] = rank
            document.metadata.setdefault("seen", []).append(query)
        documents[-1].id = "last"
        return [documents[0], Document(page_content="new"), documents[0]]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        return self.compress_documents(documents, query)


class Gentle(BaseDocumentCompressor):
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        return [d.model_copy() for d in documents]


def given() -> list[Document]:
    return [Document(page_content="x" * n, metadata={"n": n}) for n in (1, 3, 2)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_callers_own_documents_are_changed_and_returned(is_async: bool) -> None:
    expected, mine = given(), given()
    before = {id(d) for d in mine}
    plain, away = Marker(), Marker()
    wanted = plain.compress_documents(expected, "q")
    with swapped(away, Marker()) as twins:
        found = await away.acompress_documents(mine, query="q") if is_async else away.compress_documents(mine, "q")
    assert len(twins.calls) == 1
    assert mine == expected
    assert {id(d) for d in mine} == before
    assert found == wanted
    assert found[0] is found[2] is mine[0]
    assert mine[-1].model_fields_set == expected[-1].model_fields_set


def test_copies_stay_copies() -> None:
    mine, away = given(), Gentle()
    with swapped(away, Gentle()):
        found = away.compress_documents(mine, "q")
    assert found == mine
    assert not {id(d) for d in mine} & {id(d) for d in found}


def test_a_postprocessor_scores_the_nodes_of_the_caller() -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    from kit.shapes.llama_leaves import Judge

    def nodes() -> Any:
        return [schema.NodeWithScore(node=schema.TextNode(id_=f"n{i}", text=f"note {i}"), score=0.5) for i in range(4)]

    expected, mine, away = nodes(), nodes(), Judge(top_n=2)
    wanted = Judge(top_n=2).postprocess_nodes(expected, query_str="apples")
    with swapped(away, Judge(top_n=2)):
        found = away.postprocess_nodes(mine, query_str="apples")
    assert found == wanted
    assert [n.score for n in mine] == [n.score for n in expected]
    assert all(any(one is other for other in mine) for one in found)
