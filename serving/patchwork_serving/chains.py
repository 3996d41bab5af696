"""Running a chain by its own entry points, whatever framework it comes from. Never translated: what is asynchronous stays so (D1)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from patchwork_serving.errors import UsageError

log = logging.getLogger(__name__)


class Chain(Protocol):
    """The entry points that the gateway needs; live Python objects in and out."""

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any: ...

    async def batch(self, values: Sequence[Any], config: Any, kwargs: Mapping[str, Any]) -> list[Any]: ...

    def stream(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]: ...

    def stream_events(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]: ...

    def schemas(self) -> dict[str, dict[str, Any]]:
        """JSON Schemas of ``input``, ``output`` and ``config``."""
        ...


def chain_of(obj: Any, framework: str) -> Chain:
    """The user's object with the entry points of its framework."""
    if framework in ("langchain", "langgraph"):
        return RunnableChain(obj)
    if hasattr(obj, "aquery"):
        return QueryEngineChain(obj)
    if hasattr(obj, "achat"):
        return ChatEngineChain(obj)
    return WorkflowChain(obj)


class RunnableChain:
    """A LangChain Runnable or a compiled LangGraph graph."""

    def __init__(self, runnable: Any) -> None:
        self._runnable = runnable

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        return await self._runnable.ainvoke(value, config, **kwargs)

    async def batch(self, values: Sequence[Any], config: Any, kwargs: Mapping[str, Any]) -> list[Any]:
        return cast(list[Any], await self._runnable.abatch(list(values), config, **kwargs))

    def stream(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        return cast(AsyncIterator[Any], self._runnable.astream(value, config, **kwargs))

    def stream_events(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        options = {"version": "v2", **kwargs}
        return cast(AsyncIterator[dict[str, Any]], self._runnable.astream_events(value, config, **options))

    def schemas(self) -> dict[str, dict[str, Any]]:
        return {
            "input": _told(self._runnable.get_input_jsonschema, "Input"),
            "output": _told(self._runnable.get_output_jsonschema, "Output"),
            "config": _told(lambda: self._runnable.config_schema().model_json_schema(), "Config"),
        }


def _told(make: Callable[[], dict[str, Any]], title: str) -> dict[str, Any]:
    """A schema, or where it cannot be made one that takes anything: the chain itself runs without it.

    pydantic makes none of a graph whose state is a ``typing.TypedDict`` on Python 3.11, nor of classes that it does not know.
    """
    try:
        return make()
    except Exception as error:  # noqa: BLE001  the user's types: whatever is wrong with them
        log.warning("the chain's %s has no schema (%s); anything is accepted", title.lower(), type(error).__name__)
        return {"title": title}


class _LlamaIndexChain:
    """What LlamaIndex entry points share: a text (or a mapping with one) in, and no config."""

    #: keys under which clients send the one text, in the order they are looked for
    text_keys = ("query", "input", "question", "message")

    async def batch(self, values: Sequence[Any], config: Any, kwargs: Mapping[str, Any]) -> list[Any]:
        return list(await asyncio.gather(*(self.invoke(value, config, kwargs) for value in values)))

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    async def stream_events(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        raise UsageError("stream_events exists for LangChain chains only; use /stream")
        yield {}

    def schemas(self) -> dict[str, dict[str, Any]]:
        return {
            "input": {"title": "Input", "type": "string"},
            "output": {
                "title": "Output",
                "type": "object",
                "properties": {
                    "response": {"type": "string"},
                    "source_nodes": {"type": "array", "items": {"type": "object"}},
                    "metadata": {"type": "object"},
                },
            },
            "config": {"title": "Config", "type": "object"},
        }

    def _text(self, value: Any) -> str:
        if isinstance(value, Mapping):
            value = next((value[key] for key in self.text_keys if key in value), value)
        if not isinstance(value, str):
            raise UsageError(f"the input must be a text, or an object with one of {', '.join(self.text_keys)}")
        return value


class QueryEngineChain(_LlamaIndexChain):
    """A LlamaIndex query engine (``aquery``)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        response = await self._engine.aquery(self._text(value))
        if hasattr(response, "get_response"):  # the engine was built with streaming=True: read it to the end
            return await response.get_response()
        return response

    async def stream(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        response = await self._engine.aquery(self._text(value))
        if hasattr(response, "async_response_gen"):
            async for token in response.async_response_gen():
                yield token
        else:
            yield str(response)


class ChatEngineChain(_LlamaIndexChain):
    """A LlamaIndex chat engine (``achat``); its memory lives in this process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()  # one conversation: two turns at once would mix its memory

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        async with self._turn:
            return await self._engine.achat(self._text(value))

    async def stream(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        async with self._turn:
            response = await self._engine.astream_chat(self._text(value))
            async for token in response.async_response_gen():
                yield token


class WorkflowChain(_LlamaIndexChain):
    """A LlamaIndex workflow (``run``); an object becomes its keyword arguments."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow

    async def invoke(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        return await self._workflow.run(**self._arguments(value))

    async def stream(self, value: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        handler = self._workflow.run(**self._arguments(value))
        async for event in handler.stream_events():
            yield event.model_dump() if hasattr(event, "model_dump") else event
        yield await handler

    def _arguments(self, value: Any) -> dict[str, Any]:
        return dict(value) if isinstance(value, Mapping) else {"input": self._text(value)}
