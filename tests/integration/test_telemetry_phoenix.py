"""Spans of several processes, sent to a real OTLP backend by the standard variables and read back as one tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from phoenix_server import Phoenix, running

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = "b7ad6b7169203331"

#: the ingress of an application: takes a request, calls an embedder, a store and an LLM, whose replica is another process
INGRESS = f"""
import json, subprocess, sys
from patchwork_adapters import codec
from patchwork_adapters.context import RequestContext
from patchwork_adapters.protocol import HttpRequest, HttpResponse, encode_request, encode_response
from patchwork_adapters.transport import LeafCall
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import RequestTelemetry, open_tracing
from patchwork_serving.wire import CallFrame, Report

tracing = open_tracing("demo", "ingress")
assert tracing.exporting
llm = ComponentSpec("llm", "llm", "protocol", "llamacpp", model="smollm2")
store = ComponentSpec("store", "retriever", "engine", "pgvector")
telemetry = RequestTelemetry(tracing, {{c.id: c for c in (llm, store)}})
handle = telemetry.start_request("demo", "00-{TRACE}-{CLIENT}-01", {{}})
request = RequestContext("q1", "r1", traceparent=handle.traceparent)

search = LeafCall("store", "store", "search", codec.encode({{"collection": "docs", "k": 2}}), request=request)
with telemetry.observe(search) as seen:
    seen.report(Report("store-0", queue_s=0.001, service_s=0.002, batch=3))
    seen.reply(codec.encode_outcome([{{"id": "a", "text": "a document", "metadata": {{}}, "score": 0.5}}]))

body = json.dumps({{"model": "smollm2", "messages": [{{"role": "user", "content": "a prompt"}}]}}).encode()
payload = encode_request(HttpRequest("POST", "/v1/chat/completions", {{}}, body))
chat = LeafCall("llm", "llm", "POST /v1/chat/completions", payload, request=request)
with telemetry.observe(chat) as seen:
    frame = CallFrame("c1", "q1", "llm", chat.method, b"", traceparent=seen.traceparent)
    replica = subprocess.run([sys.executable, "-c", sys.argv[1]], input=frame.to_bytes(), check=True, timeout=60)
    reply = {{"id": "1", "model": "smollm2", "usage": {{"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}},
             "choices": [{{"finish_reason": "stop", "message": {{"role": "assistant", "content": "an answer"}}}}]}}
    seen.report(Report("llm-0", queue_s=0.01, service_s=0.02, batch=2))
    seen.reply(encode_response(HttpResponse(200, {{}}, json.dumps(reply).encode())))
handle.end("attained")
tracing.close()
"""

REPLICA = """
import sys
from patchwork_serving.telemetry import ReplicaTelemetry, open_tracing
from patchwork_serving.wire import CallFrame, Report

tracing = open_tracing("demo", "llm")
frame = CallFrame.from_bytes(sys.stdin.buffer.read())
ReplicaTelemetry(tracing, "llm").record(frame, Report("llm-0", queue_s=0.01, service_s=0.02, batch=2))
tracing.close()
"""


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    with running(Path(tmp_path_factory.mktemp("phoenix"))) as server:
        yield server


def test_a_request_over_several_processes_is_one_tree_in_the_backend(phoenix: Phoenix) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": phoenix.url
    }
    subprocess.run([sys.executable, "-c", INGRESS, REPLICA], env=env, check=True, timeout=120)
    spans = phoenix.spans(TRACE, 5)
    ids = {span["context"]["span_id"]: name for name, span in spans.items()}
    parents = {name: ids.get(span["parent_id"], span["parent_id"]) for name, span in spans.items()}
    assert parents == {
        "invoke_workflow demo": CLIENT,
        "retrieval docs": "invoke_workflow demo",
        "chat smollm2": "invoke_workflow demo",
        "queue": "chat smollm2",
        "execute": "chat smollm2",
    }
    kinds = {name: span["span_kind"] for name, span in spans.items() if name not in ("queue", "execute")}
    assert kinds == {"invoke_workflow demo": "CHAIN", "retrieval docs": "RETRIEVER", "chat smollm2": "LLM"}
    chat = spans["chat smollm2"]["attributes"]
    assert (chat["llm.token_count.prompt"], chat["gen_ai.usage.output_tokens"], chat["patchwork.batch_size"]) == (
        9,
        4,
        2,
    )
    told = str(spans)
    assert not [content for content in ("a prompt", "a document", "an answer") if content in told]


def test_content_is_sent_when_the_standard_variable_asks_for_it(phoenix: Phoenix) -> None:
    trace = TRACE[::-1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{phoenix.url}/v1/traces",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
    }
    subprocess.run([sys.executable, "-c", INGRESS.replace(TRACE, trace), REPLICA], env=env, check=True, timeout=120)
    spans = phoenix.spans(trace, 5)
    assert spans["chat smollm2"]["attributes"]["llm.output_messages.0.message.content"] == "an answer"
    assert spans["retrieval docs"]["attributes"]["retrieval.documents.0.document.content"] == "a document"
