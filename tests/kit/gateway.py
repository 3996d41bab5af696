"""A chain of deterministic leaves behind a small runner, and clients of the gateway before it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import httpx
from fastapi import FastAPI
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from patchwork_adapters.context import REQUEST, RequestContext
from patchwork_serving.gateway import EventFilter, GatewaySettings, build_gateway

ANSWER = "Indentation groups statements."
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


def rag_chain() -> Runnable[str, str]:
    """What people write: retriever, prompt, chat model, parser."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(f"passage {n}", id=f"d{n}", metadata={"n": n}) for n in range(4)])
    retriever = store.as_retriever(search_kwargs={"k": 2})
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    return {"context": retriever | _join, "question": RunnablePassthrough()} | prompt | chat_model() | StrOutputParser()


def _join(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def chat_model(text: str = ANSWER) -> GenericFakeChatModel:
    """Says ``text`` and counts its tokens; streams word by word."""
    return GenericFakeChatModel(messages=itertools.cycle([AIMessage(text, usage_metadata=USAGE)]))


class LcelRunner:
    """A ChainRunner over any Runnable; notes the request context of each run."""

    def __init__(self, chain: Runnable[Any, Any], framework: str = "langchain") -> None:
        self.name = "rag"
        self.framework = framework
        self.chain = chain
        self.ready = True
        self.seen: list[RequestContext | None] = []
        self.configs: list[Any] = []

    def release_info(self) -> dict[str, Any]:
        return {"target": "my_chain.py"}

    def input_schema(self) -> dict[str, Any]:
        return self.chain.get_input_jsonschema()

    def output_schema(self) -> dict[str, Any]:
        return self.chain.get_output_jsonschema()

    def config_schema(self) -> dict[str, Any]:
        return self.chain.config_schema().model_json_schema()

    async def invoke(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        self._note(config)
        return await self.chain.ainvoke(input, config, **kwargs)

    async def batch(self, inputs: Sequence[Any], configs: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        self._note(configs)
        return await self.chain.abatch(list(inputs), list(configs), **kwargs)

    async def stream(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        self._note(config)
        async for chunk in self.chain.astream(input, config, **kwargs):
            yield chunk

    def stream_events(
        self, input: Any, config: Any, kwargs: Mapping[str, Any], version: Literal["v1", "v2"], events: EventFilter
    ) -> AsyncIterator[Any]:
        self._note(config)
        return self.chain.astream_events(input, config, version=version, **events.to_kwargs(), **kwargs)

    def is_ready(self) -> bool:
        return self.ready

    async def status(self) -> dict[str, Any]:
        return {"replicas": []}

    def _note(self, config: Any) -> None:
        self.seen.append(REQUEST.get())
        self.configs.append(config)


class Gate:
    """A step of a chain that starts, and waits until it is let through; knows when it was cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()

    def chain(self) -> Runnable[str, str]:
        async def wait(text: str) -> str:
            self.entered.set()
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return text

        return RunnableLambda(wait)


def failing_chain(error: BaseException) -> Runnable[str, str]:
    async def fail(text: str) -> str:
        raise error

    return RunnableLambda(fail)


def gateway(chain: Runnable[Any, Any] | None = None, *, runner: LcelRunner | None = None, **settings: Any) -> FastAPI:
    """A gateway named ``rag``; its runner is ``app.state.gateway.runner``."""
    return build_gateway(runner or LcelRunner(chain or rag_chain()), GatewaySettings("rag", **settings))


def client(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """In process, without a socket."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


def events(body: str) -> list[tuple[str, Any]]:
    """(event, data) of each server-sent event; data is parsed JSON, None without."""
    found = []
    for block in body.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if fields:
            data = fields.get("data")
            found.append(
                (fields.get("event", "message"), None if data is None or data == "[DONE]" else json.loads(data))
            )
    return found
