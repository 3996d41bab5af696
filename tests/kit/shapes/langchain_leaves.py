"""Leaves as real clients are, small and deterministic: each answer depends on the arguments and fields only, and each holds a lock."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.vectorstores import VectorStore
from pydantic import PrivateAttr

DIM = 12


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def reply_to(name: str, messages: Sequence[BaseMessage], temperature: float) -> str:
    asked = str(messages[-1].content)
    if "GRADE" in asked:
        return "yes" if int(digest(asked), 16) % 3 else "no"
    if "different versions" in asked:
        return "\n".join(f"{word} {digest(asked + word)}" for word in ("first", "second", "third"))
    whole = "|".join(f"{m.type}:{m.content}" for m in messages)
    return f"{name} at {temperature} says {digest(whole)} of {len(messages)} messages"


class Busy(RuntimeError):
    """As clients' errors are: made from a required keyword, with an attribute that callers read."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Chat(BaseChatModel):
    """Only synchronous methods, as most integrations of local models."""

    name_: str = "chat"
    temperature: float = 0.0
    fails_on: str = ""
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "shape-chat"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _answer(self, messages: Sequence[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
        with self._lock:
            if self.fails_on and self.fails_on in str(messages[-1].content):
                raise Busy(f"{self.name_} is busy", code=429)
            usage = {"input_tokens": len(messages), "output_tokens": 5, "total_tokens": len(messages) + 5}
            tools = kwargs.get("tools") or []
            if tools and not isinstance(messages[-1], ToolMessage):
                asked = next((str(m.content) for m in reversed(messages) if isinstance(m, HumanMessage)), "")
                name = tools[0]["function"]["name"]
                argument = next(iter(tools[0]["function"]["parameters"]["properties"]))
                calls = [{"name": name, "args": {argument: asked}, "id": f"call-{digest(asked)}"}]
                return AIMessage(content="", tool_calls=calls, usage_metadata=usage)
            text = reply_to(self.name_, messages, self.temperature)
            return AIMessage(content=text, usage_metadata=usage, response_metadata={"finish_reason": "stop"})

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, kwargs)):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class AsyncChat(Chat):
    """With asynchronous methods of its own, as HTTP clients have."""

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, kwargs)):
            await asyncio.sleep(0)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class QuietChat(Chat):
    """Does not stream: its chain must not begin to because of a swap."""

    _stream = BaseChatModel._stream


def _chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    if message.tool_calls:
        calls = [
            {"name": c["name"], "args": str(c["args"]).replace("'", '"'), "id": c["id"], "index": 0}
            for c in message.tool_calls
        ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(content="", tool_call_chunks=calls, usage_metadata=message.usage_metadata)  # type: ignore[arg-type]
        )
        return
    words = str(message.content).split(" ")
    for i, word in enumerate(words):
        last = i == len(words) - 1
        usage = message.usage_metadata if last else None
        yield ChatGenerationChunk(message=AIMessageChunk(content=word + ("" if last else " "), usage_metadata=usage))


class Completion(LLM):
    """A model of the older, text to text, kind."""

    note: str = "completion"
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "shape-completion"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        with self._lock:
            return f"{self.note} {digest(prompt)}"


class HashEmbeddings(Embeddings):
    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self._lock = threading.Lock()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            return [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        return self.embed_query(text)

    def _vector(self, text: str) -> list[float]:
        return [byte / 255 + 0.01 for byte in hashlib.sha256((self.salt + text).encode()).digest()[:DIM]]


class Store(VectorStore):
    """A client of a vector database: it embeds with an embedder of its own."""

    def __init__(self, embedding: Embeddings, documents: Sequence[Document]) -> None:
        self._embedding = embedding
        self._documents = list(documents)
        self._vectors = embedding.embed_documents([d.page_content for d in documents])
        self._lock = threading.Lock()

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    def similarity_search(self, query: str, k: int = 3, **kwargs: Any) -> list[Document]:
        with self._lock:
            asked = self._embedding.embed_query(query)
            scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in self._vectors]
            best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
            return [self._documents[i].model_copy(deep=True) for i in best]

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> Store:  # type: ignore[override]
        return cls(embedding, [Document(page_content=text) for text in texts])


class Keywords(BaseRetriever):
    """A retriever of the user's own, such as one over SQL."""

    documents: list[Document]
    k: int = 2
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        with self._lock:
            words = set(query.lower().split())
            scored = [(len(words & set(d.page_content.lower().split())), d) for d in self.documents]
            return [d for _, d in sorted(scored, key=lambda pair: -pair[0])[: self.k]]


class Rerank(BaseDocumentCompressor):
    """Reads the state that earlier stages leave on the documents."""

    top_n: int = 3
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        with self._lock:

            def score(document: Document) -> float:
                state = getattr(document, "state", {})
                return float(state.get("query_similarity_score", 0)) + int(digest(query + document.page_content), 16)

            ranked = sorted(documents, key=score)[: self.top_n]
            return [d.model_copy(update={"metadata": {**d.metadata, "rank": i}}) for i, d in enumerate(ranked)]


def corpus(count: int = 8, prefix: str = "note") -> list[Document]:
    topics = ("apples", "bread", "cherries", "dates", "eggs", "flour", "grapes", "honey", "ice", "jam")
    return [
        Document(
            id=f"{prefix}-{i}", page_content=f"{prefix} {i} about {topics[i % 10]}", metadata={"n": i, "at": (i, i)}
        )
        for i in range(count)
    ]
