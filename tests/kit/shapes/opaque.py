"""Chains whose structure no framework shows: decorated functions, a class, closures and partials, leaves made on each call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, chain
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_leaves import AsyncChat, Chat, HashEmbeddings, Keywords, Store, corpus

store = Store(HashEmbeddings(), corpus())
models = {"fast": Chat(name_="fast"), "slow": AsyncChat(name_="slow")}


@chain
def decorated(question: str) -> str:
    documents = store.similarity_search(question, k=2)
    first = models["fast"].invoke(f"{[d.page_content for d in documents]} {question}")
    return models["slow"].invoke([first]).text


class Pipeline(Runnable[Any, Any]):
    """Has ``invoke`` only; its parts hide behind private names."""

    def __init__(self) -> None:
        self.__retriever = Keywords(documents=corpus())
        self.__stages: tuple[Any, ...] = (Chat(name_="stage one"), StrOutputParser())

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        value: Any = f"{[d.page_content for d in self.__retriever.invoke(input)]} {input}"
        for stage in self.__stages:
            value = stage.invoke(value)
        return value


pipeline = Pipeline()


def _asker(model: Any) -> Callable[[str], str]:
    def ask(question: str) -> str:
        return str(model.invoke(question).text)

    return ask


def _combine(question: str, *, searcher: Any, ask: Callable[[str], str], again: Any = models["fast"]) -> str:
    found = searcher(question)
    return ask(f"{[d.page_content for d in found]} {question}") + " / " + str(again.invoke(question).text)


kept = InMemoryVectorStore.from_documents(corpus(5, "kept"), HashEmbeddings("kept"))
closures = RunnableLambda(
    functools.partial(_combine, searcher=kept.similarity_search, ask=_asker(AsyncChat(name_="in closure")))
)


_vectors = HashEmbeddings("taken")
taken = RunnableLambda(_vectors.embed_query) | (lambda vector: [round(number, 3) for number in vector])
