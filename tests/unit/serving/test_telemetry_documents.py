"""What is read from payloads of the OpenAI protocol, whole and streamed."""

from __future__ import annotations

import json

import pytest

from patchwork_adapters.protocol import HttpRequest, HttpResponse, encode_request, encode_response
from patchwork_adapters.transport import LeafCall
from patchwork_serving.errors import ConfigError
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import check_environment, documents, extract
from patchwork_serving.telemetry.setup import exporter_names

CHAT = "POST /v1/chat/completions"
LLM = ComponentSpec("llm", "llm", "protocol", "llamacpp", model="m")


def chat_call(stream: bool = False) -> LeafCall:
    body = json.dumps({"model": "asked", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}).encode()
    return LeafCall(
        "llm", "llm", CHAT, encode_request(HttpRequest("POST", "/v1/chat/completions", {}, body)), stream=stream
    )


def response(document: object, status: int = 200) -> bytes:
    return encode_response(HttpResponse(status, {}, json.dumps(document).encode()))


def test_a_request_of_the_protocol_names_its_model() -> None:
    call = chat_call()
    facts = extract.CallFacts(call, LLM, documents.request_document(call, "protocol"))
    assert extract.span_name(facts) == "chat asked"
    assert extract.attributes(extract.AT_START, facts)["gen_ai.request.temperature"] == 0


def test_a_response_of_the_protocol_tells_its_usage() -> None:
    reply = {
        "id": "1",
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    }
    found = documents.reply_document(response(reply), chat_call(), "protocol")
    told = extract.attributes(extract.AT_END, extract.CallFacts(chat_call(), LLM, reply=found))
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 2)
    assert told["gen_ai.usage.cache_read.input_tokens"] == 4


def test_a_refusal_of_the_engine_is_the_spans_error() -> None:
    found = documents.reply_document(
        response({"error": {"type": "invalid_request_error"}}, 400), chat_call(), "protocol"
    )
    told = extract.attributes(extract.AT_END, extract.CallFacts(chat_call(), LLM, reply=found))
    assert told["error.type"] == "invalid_request_error"


@pytest.mark.parametrize("cut", [1, 7, 50, 10_000])
def test_a_stream_tells_the_same_however_its_bytes_are_cut(cut: int) -> None:
    events = [
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Zü"}}]},
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "rich"}, "finish_reason": "stop"}]},
        {"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
    ]
    body = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    frames = [body[i : i + cut] for i in range(0, len(body), cut)]
    found = documents.stream_document(frames, "protocol")
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 2}
    assert found["choices"] == [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Zürich"}}]


def test_large_embeddings_are_not_parsed_and_still_counted() -> None:
    reply = {"data": [{"embedding": [0.5] * 60_000}], "usage": {"prompt_tokens": 11, "total_tokens": 11}}
    call = LeafCall("e", "e", "POST /v1/embeddings", b"")
    assert documents.reply_document(response(reply), call, "protocol") == {"usage": {"prompt_tokens": 11}}


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "carrier-pigeon"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER"),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "maybe"}, "CAPTURE_MESSAGE_CONTENT"),
    ],
)
def test_a_variable_that_cannot_be_honoured_is_named(env: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_environment(env)


def test_traces_are_exported_only_when_someone_says_where() -> None:
    assert exporter_names({}) == ()
    assert exporter_names({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) == ("otlp",)
    assert exporter_names({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}) == ()
    assert exporter_names({"OTEL_TRACES_EXPORTER": "console, otlp"}) == ("console", "otlp")
