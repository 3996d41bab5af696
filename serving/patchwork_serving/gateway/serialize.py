"""Values of a chain to JSON and back, in the form that LangServe uses.

Out: messages, Documents and other pydantic models as their ``model_dump`` (which carries ``type``), LlamaIndex responses as
``{"response", "source_nodes": [{"id", "text", "score", "metadata"}], "metadata"}``, arrays as lists, times as ISO 8601.
In: JSON only. A dict whose ``type`` names a message, a Document or another well-known value becomes that value; nothing is
imported or constructed by name, and no pickle and no LangChain ``load`` is near.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from pathlib import PurePath
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from patchwork_serving.gateway.faults import InvalidRequest

MAX_DEPTH = 64  #: of JSON from clients: decoding recurses

#: dataclasses pass through because LlamaIndex's responses are some
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


def dumps(value: Any) -> bytes:
    """``value`` as JSON; a part that has no JSON form becomes ``{"type": "not_serializable", "class": ...}``."""
    try:
        return orjson.dumps(value, default=_plain, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        # integers beyond 64 bits, lone surrogates, cycles, nesting deeper than orjson goes
        return orjson.dumps(_coerced(value, MAX_DEPTH), option=_OPTIONS)


def plain(value: Any) -> Any:
    """``value`` as JSON-ready dicts, lists, strings and numbers."""
    return orjson.loads(dumps(value))


def loads(body: bytes) -> Any:
    """JSON of a client as plain values; InvalidRequest when it is malformed or nested too deeply."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    _check_depth(value)
    return value


def revive(value: Any) -> Any:
    """Plain values with message, Document and other well-known dicts turned into objects, innermost first."""
    if isinstance(value, list):
        return [revive(item) for item in value]
    if not isinstance(value, dict):
        return value
    revived = {key: revive(item) for key, item in value.items()}
    tag = revived.get("type")
    model = well_known().get(tag) if isinstance(tag, str) else None
    if model is None:
        return revived
    try:
        return model.model_validate(revived)
    except (ValidationError, ValueError, TypeError, AttributeError):
        return revived  # only looks like one: {"type": "human", "age": 3}


def check_messages(values: list[Any], where: str) -> None:
    """InvalidRequest for what fits the schema of messages, but LangChain makes none of: tool calls with other fields than those have."""
    from langchain_core.messages import convert_to_messages

    for n, value in enumerate(values):
        if not isinstance(value, dict):  # a message already
            continue
        try:
            convert_to_messages([copy.deepcopy(value)])
        except Exception as error:  # noqa: BLE001  whatever it is, the chain would raise it too
            why = f"LangChain makes no message of this ({type(error).__name__})"
            raise InvalidRequest(f"{where}[{n}]: {why}; a tool call has name, args and id, and nothing else") from None


@cache
def well_known() -> Mapping[str, type[BaseModel]]:
    """The types that LangServe revives, by the ``type`` that tells them."""
    from langchain_core import agents, documents, messages, outputs, prompt_values

    tagged: dict[str, type[BaseModel]] = {
        "ai": messages.AIMessage,
        "human": messages.HumanMessage,
        "chat": messages.ChatMessage,
        "system": messages.SystemMessage,
        "function": messages.FunctionMessage,
        "tool": messages.ToolMessage,
    }
    by_name: tuple[type[BaseModel], ...] = (
        messages.AIMessageChunk,
        messages.HumanMessageChunk,
        messages.ChatMessageChunk,
        messages.SystemMessageChunk,
        messages.FunctionMessageChunk,
        messages.ToolMessageChunk,
        documents.Document,
        prompt_values.StringPromptValue,
        prompt_values.ChatPromptValueConcrete,
        agents.AgentAction,
        agents.AgentFinish,
        agents.AgentActionMessageLog,
        outputs.ChatGeneration,
        outputs.Generation,
        outputs.ChatGenerationChunk,
        outputs.LLMResult,
    )
    return tagged | {model.__name__: model for model in by_name}


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _plain(value: Any) -> Any:
    """One step towards JSON for what orjson does not know."""
    llama = _from_llama_index(value)
    if llama is not None:
        return llama
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Decimal | PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(tolist := getattr(value, "tolist", None)):  # arrays that orjson refuses: strided, object, torch
        return tolist()
    return _marker(value)


def _marker(value: Any) -> dict[str, str]:
    # the class only: repr may hold keys and addresses
    return {"type": "not_serializable", "class": f"{type(value).__module__}.{type(value).__qualname__}"}


def _from_llama_index(value: Any) -> dict[str, Any] | None:
    """LlamaIndex's responses and nodes, known by shape because the package is optional; None for anything else."""
    if not type(value).__module__.startswith("llama_index"):
        return None
    if hasattr(value, "source_nodes") and hasattr(value, "response"):
        return {
            "response": value.response if isinstance(value.response, BaseModel) else str(value),
            "source_nodes": list(value.source_nodes or ()),
            "metadata": getattr(value, "metadata", None),
        }
    if hasattr(value, "node") and hasattr(value, "score"):
        node = value.node
        return {"id": node.node_id, "text": node.get_content(), "score": value.score, "metadata": node.metadata}
    return None


def _coerced(value: Any, depth: int) -> Any:
    """A slow copy that orjson surely takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if depth == 0:
        return _marker(value)
    if isinstance(value, Mapping):
        return {_coerced(str(key), 1): _coerced(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_coerced(item, depth - 1) for item in value]
    try:
        return orjson.loads(orjson.dumps(value, option=_OPTIONS))
    except (TypeError, ValueError, RecursionError):
        return _coerced(_plain(value), depth - 1)
