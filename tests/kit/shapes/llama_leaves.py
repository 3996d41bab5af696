"""LlamaIndex leaves as real clients are, small and deterministic; each holds a lock."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import PrivateAttr


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def answer_to(name: str, prompt: str) -> str:
    """Speaks the small languages in which the framework's prompts ask for choices, questions and judgements."""
    if "Doc: 9, Relevance: 7" in prompt:  # LLMRerank
        return "Doc: 2, Relevance: 7\nDoc: 1, Relevance: 3"
    if "list of relevant sub-questions" in prompt:
        names = re.findall(r'"(tool_\w+)"', prompt) or ["tool_a"]
        items = [{"sub_question": f"what about {n}?", "tool_name": n} for n in dict.fromkeys(names)]
        return "```json\n" + json.dumps({"items": items}) + "\n```"
    if (
        "return the top choices" in prompt.lower()
        or "return the choice" in prompt.lower()
        or "'choice'" in prompt
        or '"choice"' in prompt
    ):
        return json.dumps([{"choice": 1 + int(digest(prompt[-400:]), 16) % 2, "reason": "by digest"}])
    if "new question" in prompt.lower() and "knowledge source" in prompt.lower():  # multi-step
        return "None" if "reason" in prompt[-150:].lower() else f"and then {digest(prompt)}?"
    if "search queries" in prompt.lower():  # fusion
        return f"query {digest(prompt)}\nother {digest(prompt[::-1])}"
    if "YES or NO" in prompt or "answer either yes or no" in prompt.lower():
        return "YES" if int(digest(prompt), 16) % 2 else "NO"
    return f"{name} answers {digest(prompt)} after {len(prompt)} characters"


class Text(CustomLLM):
    """Completion only; the framework derives chat from it."""

    note: str = "text"
    window: int = 3900
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self.window, num_output=64, model_name=self.note)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        with self._lock:
            return CompletionResponse(text=answer_to(self.note, prompt), raw={"usage": {"total_tokens": len(prompt)}})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def pieces() -> Any:
            text = ""
            with self._lock:
                words = re.split(r"(?<= )", answer_to(self.note, prompt))
            for word in words:
                text += word
                yield CompletionResponse(text=text, delta=word)

        return pieces()


class Caller(FunctionCallingLLM):
    """All eight methods, asynchronous ones of its own, and tool calls."""

    note: str = "caller"
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True, model_name=self.note)

    def _message(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatMessage:
        with self._lock:
            tools = kwargs.get("tools") or []
            used = [m for m in messages if m.role == MessageRole.TOOL]
            if tools and not used:
                asked = next((m.content or "" for m in reversed(messages) if m.role == MessageRole.USER), "")
                call = {"id": f"call-{digest(asked)}", "name": tools[0]["function"]["name"], "args": {"input": asked}}
                return ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})
            text = "\n".join(f"{m.role.value}: {m.content}" for m in messages)
            return ChatMessage(role="assistant", content=answer_to(self.note, text))

    def _response(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponse:
        return ChatResponse(message=self._message(messages, kwargs), raw={"usage": {"total_tokens": len(messages)}})

    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> list[ChatResponse]:
        message = self._message(messages, kwargs)
        words = re.split(r"(?<= )", message.content or "")
        return [
            ChatResponse(
                message=ChatMessage(
                    role="assistant", content="".join(words[: i + 1]), additional_kwargs=message.additional_kwargs
                ),
                delta=words[i],
            )
            for i in range(len(words))
        ]

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._response(messages, kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        return self._response(messages, kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        def pieces() -> Any:
            yield from self._pieces(messages, kwargs)

        return pieces()

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def pieces() -> Any:
            for piece in self._pieces(messages, kwargs):
                await asyncio.sleep(0)
                yield piece

        return pieces()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=answer_to(self.note, prompt))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=answer_to(self.note, prompt))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, verbose: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": [tool.metadata.to_openai_tool() for tool in tools]}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = response.message.additional_kwargs.get("tool_calls", [])
        return [ToolSelection(tool_id=c["id"], tool_name=c["name"], tool_kwargs=c["args"]) for c in calls]


class Vectors(BaseEmbedding):
    salt: str = ""
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _vector(self, text: str) -> list[float]:
        with self._lock:
            return [byte / 255 + 0.01 for byte in hashlib.sha256((self.salt + text).encode()).digest()[:12]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]


class Judge(BaseNodePostprocessor):
    """A reranker with a model inside: changes scores of the nodes that it is given."""

    top_n: int = 2
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        with self._lock:
            asked = query_bundle.query_str if query_bundle else ""
            for node in nodes:
                node.score = int(digest(asked + node.node.get_content()), 16) / 2**24
            return sorted(nodes, key=lambda n: -(n.score or 0.0))[: self.top_n]


class Words(BaseRetriever):
    """A retriever of the user's own."""

    def __init__(self, texts: Sequence[str], k: int = 2) -> None:
        self._nodes = [TextNode(id_=f"w{i}", text=text) for i, text in enumerate(texts)]
        self._k = k
        self._lock = threading.Lock()
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with self._lock:
            words = set(query_bundle.query_str.lower().split())
            found = [NodeWithScore(node=n, score=float(len(words & set(n.text.lower().split())))) for n in self._nodes]
            return sorted(found, key=lambda n: -(n.score or 0.0))[: self._k]
