"""Sees, through LangChain's callbacks, which documents a run retrieved and which tokens its models counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult

from patchwork_serving.gateway.metrics import Usage
from patchwork_serving.telemetry import names


class Witness(BaseCallbackHandler):
    """Added to a run only when its documents or tokens are asked for. It never raises into the chain: LangChain logs and drops."""

    run_inline = True  # else LangChain takes a thread for each event
    ignore_chain = True
    ignore_agent = True
    ignore_custom_event = True

    def __init__(self) -> None:
        self.usage = Usage()
        self._documents: list[Document] = []

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        self._documents.extend(documents)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generations in response.generations:
            for generation in generations[:1]:
                self.usage += usage_of(getattr(generation, "message", None))

    def sources(self) -> list[dict[str, Any]]:
        """``{"id", "metadata"}`` of each document, in the order of retrieval."""
        return [{"id": document.id, "metadata": document.metadata} for document in self._documents]


def usage_of(message: object) -> Usage:
    """The tokens that a model's message counts; zero when it counts none."""
    counted = message.usage_metadata if isinstance(message, AIMessage) else None
    return Usage(counted["input_tokens"], counted["output_tokens"]) if counted else Usage()


def sources_of(output: object) -> list[dict[str, Any]]:
    """``{"id", "score", "metadata"}`` of a LlamaIndex response's source nodes; empty for anything else."""
    if not type(output).__module__.startswith("llama_index"):
        return []
    nodes = getattr(output, "source_nodes", None) or ()
    return [{"id": n.node.node_id, "score": n.score, "metadata": dict(_mapping(n.node.metadata))} for n in nodes]


def with_scores(sources: Sequence[Mapping[str, Any]], spans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``sources`` with the scores that retrieval spans tell; what the spans tell alone, when there are no sources."""
    found = {d["id"]: d.get("score") for span in spans for d in _retrieved(span)}
    if not sources:
        return [{"id": document_id, "score": score} for document_id, score in found.items()]
    return [{"score": found.get(source["id"]), **source} for source in sources]


def _retrieved(span: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = span.get("attributes", {}).get(names.RETRIEVAL_DOCUMENTS)
    try:
        documents = json.loads(told) if isinstance(told, str) else []
    except ValueError:
        return []
    return [d for d in documents if isinstance(d, dict) and "id" in d]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
