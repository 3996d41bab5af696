"""Between a chat and a chain: where the chain takes its question, and which part of its output is the answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.messages import convert_to_messages as to_messages

from patchwork_serving.gateway.bodies import ChatMessage
from patchwork_serving.gateway.faults import InvalidRequest
from patchwork_serving.gateway.serialize import dumps
from patchwork_serving.gateway.shape import HISTORY_KEYS, QUESTION_KEYS, forms, resolved

ANSWER_KEYS = ("answer", "output", "result", "response", "generation", "text", "content")


def chain_input(schema: Mapping[str, Any], chat: Sequence[ChatMessage]) -> Any:
    """The input of a chain with this input schema, from a chat; InvalidRequest when the chat has no place in it.

    A chain that takes messages gets all of them; one that takes an object gets the last user message under the key of the question
    (and what went before under a key of history); any other gets the last user message as a string.
    """
    candidates = forms(schema, schema)
    if any(form.get("type") == "array" and _of_messages(form, schema) for form in candidates):
        return messages(chat)
    if any(form.get("type") == "string" or not form.get("type") for form in candidates):
        return question(chat)
    for form in candidates:
        if form.get("type") == "object":
            return _object_input(form, schema, chat)
        if form.get("type") == "array":
            return messages(chat)
    raise InvalidRequest("messages: this chain takes neither text nor messages; use /invoke")


def _object_input(form: Mapping[str, Any], root: Mapping[str, Any], chat: Sequence[ChatMessage]) -> dict[str, Any]:
    properties: Mapping[str, Any] = form.get("properties") or {}
    if _takes_array(properties.get("messages"), root):
        return {"messages": messages(chat)}
    given: dict[str, Any] = {key: messages(chat[:-1]) for key in HISTORY_KEYS if key in properties}
    required = [key for key in form.get("required") or properties if key not in given]
    key = next((key for key in QUESTION_KEYS if key in properties), required[0] if len(required) == 1 else None)
    if key is None or any(name != key for name in form.get("required") or () if name not in given):
        raise InvalidRequest(f"messages: this chain needs the keys {', '.join(required) or 'of its own'}; use /invoke")
    return given | {key: question(chat)}


def _of_messages(form: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """An array whose items can be messages: objects with ``content``."""
    return any("content" in (item.get("properties") or {}) for item in forms(form.get("items") or {}, root))


def _takes_array(schema: Any, root: Mapping[str, Any]) -> bool:
    return schema is not None and any(form.get("type") == "array" for form in forms(resolved(schema, root), root))


def question(chat: Sequence[ChatMessage]) -> str:
    """The text of the last user message."""
    last = next((message for message in reversed(chat) if message.role == "user"), None)
    if last is None or last.content is None:
        raise InvalidRequest("messages: there is no user message")
    if isinstance(last.content, str):
        return last.content
    texts = [part.get("text") for part in last.content if part.get("type") == "text"]
    if len(texts) < len(last.content) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("messages: this chain takes text; the last user message has other parts")
    return "".join(map(str, texts))


def messages(chat: Sequence[ChatMessage]) -> list[BaseMessage]:
    """The chat as LangChain messages."""
    try:
        return to_messages([{"content": "", **message.model_dump(exclude_none=True)} for message in chat])
    except (ValueError, TypeError, KeyError, NotImplementedError):
        raise InvalidRequest("messages: a message is not in the form that its role asks for") from None


def answer_of(output: Any) -> str:
    """The answer in a chain's whole output: its text, or the output as JSON when it has none."""
    text = text_of(output)
    return dumps(output).decode() if text is None else text


def text_of(value: Any) -> str | None:
    """The answer's text in an output or a chunk of one; None when it has none."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, BaseMessage):
        return str(value.text)
    if isinstance(value, Mapping):
        return _text_of_mapping(value)
    if type(value).__module__.startswith("llama_index"):
        # a chunk has its delta, a response prints as its text
        delta = getattr(value, "delta", None)
        return delta if isinstance(delta, str) else str(value)
    return None


def _text_of_mapping(value: Mapping[str, Any]) -> str | None:
    if isinstance(said := value.get("messages"), list | tuple):
        return _last_answer(said)
    for key in ANSWER_KEYS:
        if key in value and (text := text_of(value[key])) is not None:
            return text
    if len(value) == 1:
        # a LangGraph update: {node: what it wrote}
        (inner,) = value.values()
        return text_of(inner) if isinstance(inner, Mapping) else None
    return None


def _last_answer(said: Sequence[Any]) -> str | None:
    """The text of the last message, unless it only calls tools or is not the model's."""
    last = said[-1] if said else None
    if (
        isinstance(last, BaseMessage)
        and last.type in ("ai", "AIMessageChunk")
        and not getattr(last, "tool_calls", None)
    ):
        return str(last.text)
    return None
