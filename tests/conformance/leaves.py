"""A chat model, embeddings, a store, a retriever and a tool of a user's own, able enough for the standard suites."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, PrivateAttr


def made_up(schema: dict[str, Any]) -> Any:
    """A value of a JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: made_up(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [made_up(schema.get("items", {}))]
        case "integer" | "number":
            return 3
        case "boolean":
            return True
        case _:
            return "你好 こんにちは"


class Model(BaseChatModel):
    """Calls the tool that it is given, once; asynchronous methods of its own."""

    model: str = "standard"
    temperature: float = 0.0
    max_tokens: int | None = None
    timeout: float | None = None
    stop: list[str] | None = None
    max_retries: int = 1
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "standard-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        found = super()._get_ls_params(stop=stop, **kwargs)
        return {**found, "ls_provider": "own", "ls_model_name": kwargs.get("model", self.model)}

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def _answer(self, messages: Sequence[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
        with self._lock:
            usage: Any = {"input_tokens": len(messages), "output_tokens": 4, "total_tokens": len(messages) + 4}
            facts = {"model_name": self.model, "model_provider": "own", "finish_reason": "stop"}
            tools = kwargs.get("tools") or []
            if tools and not isinstance(messages[-1], ToolMessage):
                called = tools[0]["function"]
                calls: Any = [
                    {"name": called["name"], "args": made_up(called["parameters"]), "id": "call-1", "type": "tool_call"}
                ]
                return AIMessage(content="", tool_calls=calls, usage_metadata=usage, response_metadata=facts)
            asked = [str(m.content) for m in messages if isinstance(m, HumanMessage)]
            text = f"{self.model} read {hashlib.sha256(''.join(asked).encode()).hexdigest()[:8]} of {len(messages)}"
            return AIMessage(content=text, usage_metadata=usage, response_metadata=facts)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from pieces(self._answer(messages, kwargs))

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for piece in pieces(self._answer(messages, kwargs)):
            yield piece


def pieces(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    for call in message.tool_calls:
        chunk: Any = {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": 0}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
    words = str(message.content).split(" ") if message.content else []
    for i, word in enumerate(words):
        yield ChatGenerationChunk(message=AIMessageChunk(content=f"{' ' if i else ''}{word}"))
    last = AIMessageChunk(
        content="", usage_metadata=message.usage_metadata, response_metadata=message.response_metadata,
        chunk_position="last",
    )  # fmt: skip
    yield ChatGenerationChunk(message=last)


class Hashes(Embeddings):
    def __init__(self, size: int = 6) -> None:
        self.size = size
        self._lock = threading.Lock()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            return [[byte / 255 for byte in hashlib.sha256(text.encode()).digest()[: self.size]] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Shelf(BaseRetriever):
    k: int = 2

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        return [Document(page_content=f"{query} {i}", metadata={"n": i}) for i in range(k or self.k)]


class Sum(BaseModel):
    a: int = Field(description="first")
    b: int = Field(description="second")


class Adder(BaseTool):
    name: str = "adder"
    description: str = "adds two numbers"
    args_schema: Any = Sum
    response_format: Any = "content_and_artifact"
    unit: str = "apples"

    def _run(self, a: int, b: int, run_manager: Any = None) -> tuple[str, Document]:
        return f"{a + b} {self.unit}", Document(page_content=str(a + b), metadata={"of": (a, b)})


class AsyncAdder(Adder):
    async def _arun(self, a: int, b: int, run_manager: Any = None) -> tuple[str, Document]:
        return f"{a + b} {self.unit}, later", Document(page_content=str(a + b))
