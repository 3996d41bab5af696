"""Span attributes from what is known of a call: many small generators, each guarded, so that one that fails loses its attributes only."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchwork_adapters.transport import LeafCall
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import names
from patchwork_serving.wire import Report

logger = logging.getLogger(__name__)

Value = str | bool | int | float | Sequence[str]
Pairs = Iterator[tuple[str, Value | None]]

MAX_DOCUMENTS = 10
MAX_CONTENT_CHARS = 16 * 1024


@dataclass(frozen=True, slots=True)
class CallFacts:
    """Everything that a generator may read."""

    call: LeafCall
    spec: ComponentSpec
    request: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] = field(default_factory=dict)
    report: Report | None = None
    capture: bool = False


Generator = Callable[[CallFacts], Pairs]


def attributes(generators: Sequence[Generator], facts: CallFacts) -> dict[str, Value]:
    """What the generators yield together; None means "not known" and is left out."""
    found: dict[str, Value] = {}
    for generator in generators:
        try:
            for name, value in generator(facts):
                if value is not None:
                    found[name] = value  # noqa: PERF403 what came before a fault is kept
        except Exception as error:  # noqa: BLE001 telemetry cannot hurt
            logger.debug("no attributes from %s: %s", getattr(generator, "__name__", generator), type(error).__name__)
    return found


# -- known when the call starts


def call_identity(facts: CallFacts) -> Pairs:
    yield names.COMPONENT, facts.spec.id
    yield names.CALL_SITE, facts.call.site or None
    yield names.ENGINE, facts.spec.engine
    yield names.EMULATED, facts.spec.is_emulated or None
    yield names.WAY, facts.spec.way
    yield names.METHOD, facts.call.method
    yield names.WORK_ITEMS, facts.call.size if facts.call.size != 1 else None


def request_identity(facts: CallFacts) -> Pairs:
    context = facts.call.request
    if context is not None:
        yield names.REQUEST_ID, context.request_id
        yield names.RUN_ID, context.run_id


def kind(facts: CallFacts) -> Pairs:
    yield names.SPAN_KIND, names.OPENINFERENCE_KIND[facts.spec.kind]


def operation(facts: CallFacts) -> Pairs:
    yield names.OPERATION, operation_name(facts.spec, facts.call)


def provider(facts: CallFacts) -> Pairs:
    if facts.spec.kind in ("llm", "embedder", "reranker", "retriever"):
        yield names.PROVIDER, "openai" if facts.spec.engine == "external" else facts.spec.engine


def model(facts: CallFacts) -> Pairs:
    name = model_name(facts)
    yield names.REQUEST_MODEL, name
    by_kind = {"llm": names.LLM_MODEL, "embedder": names.EMBEDDING_MODEL, "reranker": names.RERANKER_MODEL}
    if facts.spec.kind in by_kind:
        yield by_kind[facts.spec.kind], name


def sampling(facts: CallFacts) -> Pairs:
    if facts.spec.kind == "llm":
        yield names.REQUEST_MAX_TOKENS, facts.request.get("max_completion_tokens") or facts.request.get("max_tokens")
        yield names.REQUEST_TEMPERATURE, facts.request.get("temperature")
        yield names.REQUEST_TOP_P, facts.request.get("top_p")
        yield names.REQUEST_STREAM, facts.call.stream


def source(facts: CallFacts) -> Pairs:
    if facts.spec.kind == "retriever":
        yield names.DATA_SOURCE, source_name(facts)
        yield names.REQUEST_TOP_K, facts.request.get("k")


def tool(facts: CallFacts) -> Pairs:
    if facts.spec.kind == "tool":
        yield names.TOOL_NAME, facts.spec.id


def prompts(facts: CallFacts) -> Pairs:
    """Content: only when asked for."""
    if not facts.capture:
        return
    messages = facts.request.get("messages")
    if messages is not None:
        yield names.INPUT_MESSAGES, clipped(messages)
        for index, message in enumerate(messages[:MAX_DOCUMENTS]):
            yield f"llm.input_messages.{index}.message.role", str(message.get("role", ""))
            yield f"llm.input_messages.{index}.message.content", clipped(message.get("content") or "")
    content = messages or facts.request.get("prompt") or facts.request.get("input") or facts.request.get("texts")
    if content:
        yield names.INPUT_VALUE, clipped(content)
        yield names.INPUT_MIME, "text/plain" if isinstance(content, str) else "application/json"


AT_START: tuple[Generator, ...] = (
    kind, operation, call_identity, request_identity, provider, model, sampling, source, tool, prompts,
)  # fmt: skip


# -- known when the reply has come


def usage(facts: CallFacts) -> Pairs:
    counted = facts.reply.get("usage") or {}
    read, written = counted.get("prompt_tokens"), counted.get("completion_tokens")
    yield names.INPUT_TOKENS, read
    yield names.OUTPUT_TOKENS, written
    yield names.LLM_PROMPT_TOKENS, read
    yield names.LLM_COMPLETION_TOKENS, written
    if facts.spec.kind == "llm":
        yield names.LLM_TOTAL_TOKENS, counted.get("total_tokens")


def cached_tokens(facts: CallFacts) -> Pairs:
    details = (facts.reply.get("usage") or {}).get("prompt_tokens_details") or {}
    yield names.CACHED_TOKENS, details.get("cached_tokens")


def response_identity(facts: CallFacts) -> Pairs:
    yield names.RESPONSE_ID, facts.reply.get("id")
    yield names.RESPONSE_MODEL, facts.reply.get("model")


def finish_reasons(facts: CallFacts) -> Pairs:
    reasons = [choice["finish_reason"] for choice in facts.reply.get("choices") or () if choice.get("finish_reason")]
    yield names.RESPONSE_FINISH, reasons or None


def refusal(facts: CallFacts) -> Pairs:
    """An engine that speaks the protocol refuses in the body of its response."""
    error = facts.reply.get("error")
    if isinstance(error, Mapping):
        yield names.ERROR_TYPE, str(error.get("type") or "error")


def hits(facts: CallFacts) -> Pairs:
    """Ids and scores of what was found; texts are content."""
    if facts.spec.kind != "retriever":
        return
    found = [hit for hit in facts.reply.get("result") or () if isinstance(hit, Mapping)]
    yield (
        names.RETRIEVAL_DOCUMENTS,
        json.dumps([{"id": h.get("id"), "score": h.get("score")} for h in found[:MAX_DOCUMENTS]]),
    )
    for index, hit in enumerate(found[:MAX_DOCUMENTS]):
        yield names.DOCUMENT.format(index=index, field="id"), str(hit["id"])
        yield names.DOCUMENT.format(index=index, field="score"), float(hit["score"]) if "score" in hit else None
        if facts.capture:
            yield names.DOCUMENT.format(index=index, field="content"), clipped(hit.get("text") or "")


def answers(facts: CallFacts) -> Pairs:
    """Content: only when asked for."""
    choices = facts.reply.get("choices")
    if not facts.capture or not choices:
        return
    message = choices[0].get("message") or {"role": "assistant", "content": choices[0].get("text", "")}
    text = message.get("content") or ""
    yield names.OUTPUT_MESSAGES, clipped([message])
    yield "llm.output_messages.0.message.role", str(message.get("role", "assistant"))
    yield "llm.output_messages.0.message.content", clipped(text)
    yield names.OUTPUT_VALUE, clipped(text)
    yield names.OUTPUT_MIME, "text/plain"


def replica(facts: CallFacts) -> Pairs:
    report = facts.report
    if report is not None:
        yield names.REPLICA, report.replica
        yield names.QUEUE, report.queue_s
        yield names.SERVICE, report.service_s
        yield names.FIRST_FRAME, report.first_frame_s
        yield names.BATCH_SIZE, report.batch


AT_END: tuple[Generator, ...] = (
    replica, usage, cached_tokens, response_identity, finish_reasons, refusal, hits, answers,
)  # fmt: skip


# -- names


def operation_name(spec: ComponentSpec, call: LeafCall) -> str:
    """``gen_ai.operation.name``; ``rerank`` and ``function`` are ours, the conventions have none."""
    if spec.kind == "llm":
        return "text_completion" if call.method in ("complete", "POST /v1/completions") else "chat"
    return names.SPAN_WORD[spec.kind]


def model_name(facts: CallFacts) -> str | None:
    asked = facts.request.get("model")
    return asked if isinstance(asked, str) and asked else facts.spec.model


def source_name(facts: CallFacts) -> str:
    collection = facts.request.get("collection")
    return collection if isinstance(collection, str) and collection else facts.spec.id


def span_name(facts: CallFacts) -> str:
    """``chat {model}``, ``embeddings {model}``, ``retrieval {source}``, ``rerank {model}``, ``function {name}``."""
    match facts.spec.kind:
        case "llm" | "embedder" | "reranker":
            about = model_name(facts) or facts.spec.id
        case "retriever":
            about = source_name(facts)
        case _:
            about = facts.spec.id
    return f"{names.SPAN_WORD[facts.spec.kind]} {about}"


def clipped(content: object) -> str:
    """Text, or anything else as JSON, cut to what a backend stores."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_CONTENT_CHARS else text[:MAX_CONTENT_CHARS] + "…"
