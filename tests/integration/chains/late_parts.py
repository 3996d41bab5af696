"""The chain of ``own_parts``, with leaves that its functions construct on each call."""

from __future__ import annotations

from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from own_parts import Echo, WordRetriever  # type: ignore[import-not-found]


def context(question: str) -> str:
    return " ".join(d.page_content for d in WordRetriever().invoke(question))


def answer(prompt: Any) -> Any:
    return Echo(suffix="!").invoke(prompt)


chain = (
    {"context": RunnableLambda(context), "question": RunnablePassthrough()}
    | ChatPromptTemplate.from_template("{question} {context}")
    | RunnableLambda(answer)
    | StrOutputParser()
)
