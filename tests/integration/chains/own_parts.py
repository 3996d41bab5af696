"""A chain of classes that nobody knows: its leaves run as the user's own objects. Deterministic, and it tells where it ran."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

TEXTS = ["Parrots speak.", "Snakes do not.", "Norwegian blues rest."]


class WordRetriever(BaseRetriever):
    """Texts that share a word with the question."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = set(query.lower().split())
        return [Document(page_content=t, id=t[:4]) for t in TEXTS if words & set(t.lower().strip(".").split())]


class Echo(BaseChatModel):
    """Says the prompt backwards."""

    suffix: str = ""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        text = str(messages[-1].content)
        if "raise" in text:
            raise KeyError("the user's own error")
        message = AIMessage(content=text[::-1] + self.suffix, additional_kwargs={"pid": os.getpid()})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        text = str(messages[-1].content)[::-1] + self.suffix
        for i in range(0, len(text), 5):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text[i : i + 5]))


retriever = WordRetriever()
llm = Echo(suffix="!")
chain = (
    {"context": retriever | (lambda docs: " ".join(d.page_content for d in docs)), "question": RunnablePassthrough()}
    | ChatPromptTemplate.from_template("{question} {context}")
    | llm
    | StrOutputParser()
)
