"""The shape of a trace: names, parents and attributes, without a backend."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from patchwork_adapters import codec
from patchwork_adapters.context import RequestContext
from patchwork_adapters.transport import LeafCall
from patchwork_serving.release import ComponentSpec
from patchwork_serving.telemetry import (
    ReplicaTelemetry,
    RequestHandle,
    RequestTelemetry,
    Tracing,
    extract,
    names,
    open_tracing,
)
from patchwork_serving.wire import CallFrame, Report

LLM = ComponentSpec("llm", "llm", "engine", "llamacpp", model="smollm2-135m-instruct")
EMBEDDER = ComponentSpec("embedder", "embedder", "engine", "onnx", model="all-minilm-l6-v2")
STORE = ComponentSpec("store", "retriever", "engine", "pgvector")
RERANKER = ComponentSpec("reranker", "reranker", "engine", "reranker", model="tiny-cross")
SLOW = ComponentSpec("slow_parse", "function", "own", "own")
COMPONENTS = {c.id: c for c in (LLM, EMBEDDER, STORE, RERANKER, SLOW)}
INCOMING = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REPLY = {
    "id": "cmpl-1",
    "model": "smollm2-135m-instruct",
    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Paris."}}],
    "usage": {"prompt_tokens": 31, "completion_tokens": 3, "total_tokens": 34},
}


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(memory: InMemorySpanExporter) -> Iterator[Tracing]:
    found = open_tracing("demo", "ingress", exporters=[memory])
    yield found
    found.close()


def call(component: str, method: str, arguments: object, traceparent: str | None, **more: object) -> LeafCall:
    request = RequestContext(
        "req-1", "run-1", traceparent=traceparent, capture_content=bool(more.pop("capture", False))
    )
    return LeafCall(
        component, f"mod.{component}", method, codec.encode(arguments), site=f"{component}#1", request=request, **more
    )  # type: ignore[arg-type]


def exported(tracing: Tracing, memory: SpanExporter) -> dict[str, dict[str, object]]:
    assert isinstance(memory, InMemorySpanExporter)
    tracing.provider.force_flush()
    return {
        s.name: {
            "parent": f"{s.parent.span_id:016x}" if s.parent else None,
            "id": f"{s.context.span_id:016x}",
            "trace": f"{s.context.trace_id:032x}",
            **dict(s.attributes or {}),
        }
        for s in memory.get_finished_spans()
    }


def run_rag(
    telemetry: RequestTelemetry, traceparent: str | None = None, wanted: bool = False, capture: bool = False
) -> RequestHandle:
    handle = telemetry.start_request("demo", traceparent, {names.WANTED: wanted, names.ROUTE: "/invoke"})
    root = handle.traceparent
    texts = {"texts": ["Where is Paris?"], "normalize": True}
    with telemetry.observe(call("embedder", "embed", texts, root, capture=capture)) as span:
        span.reply(codec.encode_outcome(np.zeros((1, 384), dtype=np.float32)))
        span.report(Report("embedder-0", queue_s=0.001, service_s=0.004, batch=4))
    search = {"collection": "docs", "vector": np.zeros(384, dtype=np.float32), "k": 2, "ids": None, "where": {}}
    with telemetry.observe(call("store", "search", search, root, capture=capture), slack_s=1.5) as span:
        span.reply(codec.encode_outcome([{"id": "a", "text": "secret text", "metadata": {}, "score": 0.9}]))
        span.report(Report("store-0", queue_s=0.0, service_s=0.002, batch=1))
    with telemetry.observe(call("reranker", "score", {"pairs": [("q", "d")]}, root)) as span:
        span.reply(codec.encode_outcome(np.zeros(1, dtype=np.float32)))
    body = {
        "body": {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "secret"}], "max_tokens": 8}
    }
    with telemetry.observe(call("llm", "chat", body, root, capture=capture)) as span:
        span.reply(codec.encode_outcome(REPLY))
        span.report(Report("llm-0", queue_s=0.01, service_s=0.3, batch=2))
    with telemetry.observe(call("slow_parse", "__call__", ((), {}), root)):
        pass
    handle.end("attained")
    return handle


def test_one_request_is_one_tree_of_named_spans(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    run_rag(RequestTelemetry(tracing, COMPONENTS))
    spans = exported(tracing, memory)
    root = spans["invoke_workflow demo"]
    assert set(spans) == {
        "invoke_workflow demo", "embeddings all-minilm-l6-v2", "retrieval docs", "rerank tiny-cross",
        "chat smollm2-135m-instruct", "function slow_parse",
    }  # fmt: skip
    assert root["parent"] is None
    assert {s["parent"] for name, s in spans.items() if s is not root} == {root["id"]}
    assert len({s["trace"] for s in spans.values()}) == 1


def test_an_llm_span_tells_both_vocabularies_and_where_it_ran(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    run_rag(RequestTelemetry(tracing, COMPONENTS))
    span = exported(tracing, memory)["chat smollm2-135m-instruct"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llamacpp",
        "gen_ai.request.model": "smollm2-135m-instruct",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.stream": False,
        "gen_ai.response.id": "cmpl-1",
        "gen_ai.response.model": "smollm2-135m-instruct",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 31,
        "gen_ai.usage.output_tokens": 3,
        "openinference.span.kind": "LLM",
        "llm.model_name": "smollm2-135m-instruct",
        "llm.token_count.prompt": 31,
        "llm.token_count.completion": 3,
        "llm.token_count.total": 34,
        "patchwork.queue_s": 0.01,
        "patchwork.service_s": 0.3,
        "patchwork.batch_size": 2,
        "patchwork.replica": "llm-0",
        "patchwork.call_site": "llm#1",
        "patchwork.component": "llm",
        "patchwork.engine": "llamacpp",
        "patchwork.way": "engine",
        "patchwork.method": "chat",
        "patchwork.request_id": "req-1",
        "patchwork.run_id": "run-1",
    }
    assert {k: v for k, v in span.items() if k not in ("parent", "id", "trace")} == expected


def test_a_retrieval_span_tells_ids_and_scores_but_no_texts(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    run_rag(RequestTelemetry(tracing, COMPONENTS))
    span = exported(tracing, memory)["retrieval docs"]
    assert json.loads(str(span["gen_ai.retrieval.documents"])) == [{"id": "a", "score": 0.9}]
    assert (span["gen_ai.data_source.id"], span["gen_ai.request.top_k"], span["patchwork.slack_s"]) == ("docs", 2, 1.5)
    assert (span["retrieval.documents.0.document.id"], span["openinference.span.kind"]) == ("a", "RETRIEVER")


def test_prompts_and_documents_are_recorded_only_when_asked_for(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    run_rag(telemetry)
    assert "secret" not in json.dumps(exported(tracing, memory), default=str)
    memory.clear()
    run_rag(telemetry, capture=True)
    spans = exported(tracing, memory)
    assert spans["retrieval docs"]["retrieval.documents.0.document.content"] == "secret text"
    assert spans["chat smollm2-135m-instruct"]["llm.input_messages.0.message.content"] == "secret"
    assert spans["chat smollm2-135m-instruct"]["output.value"] == "Paris."


def test_an_incoming_traceparent_is_continued(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    run_rag(RequestTelemetry(tracing, COMPONENTS), traceparent=INCOMING)
    spans = exported(tracing, memory)
    assert spans["invoke_workflow demo"]["parent"] == "b7ad6b7169203331"
    assert {s["trace"] for s in spans.values()} == {"0af7651916cd43dd8448eb211c80319c"}


def test_a_replica_in_another_process_adds_queue_and_execute_below_the_call(memory: InMemorySpanExporter) -> None:
    ingress, replica = open_tracing("demo", "ingress", [memory]), open_tracing("demo", "llm", [memory])
    telemetry = RequestTelemetry(ingress, COMPONENTS)
    report = Report("llm-0", queue_s=0.25, service_s=1.0, first_frame_s=0.1, batch=3)
    with telemetry.observe(call("llm", "chat", {"body": {}}, None)) as span:
        frame = CallFrame("c1", "req-1", "mod.llm", "chat", b"", traceparent=span.traceparent)
        ReplicaTelemetry(replica, "llm").record(frame, report, ended_ns=10_000_000_000)
    replica.provider.force_flush()
    ingress.provider.force_flush()
    spans = {s.name: s for s in memory.get_finished_spans()}
    above = spans["chat smollm2-135m-instruct"].context.span_id
    assert [spans[n].parent.span_id for n in ("queue", "execute")] == [above, above]  # type: ignore[union-attr]
    assert (spans["queue"].start_time, spans["queue"].end_time) == (8_750_000_000, 9_000_000_000)
    assert (spans["execute"].start_time, spans["execute"].end_time) == (9_000_000_000, 10_000_000_000)


def test_without_an_exporter_only_requests_that_ask_are_recorded() -> None:
    tracing = open_tracing("demo", "ingress")
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    assert not tracing.exporting
    assert run_rag(telemetry).finished_spans() == []
    spans = run_rag(telemetry, wanted=True).finished_spans()
    assert [s["name"] for s in spans] == [
        "invoke_workflow demo", "embeddings all-minilm-l6-v2", "retrieval docs", "rerank tiny-cross",
        "chat smollm2-135m-instruct", "function slow_parse",
    ]  # fmt: skip
    json.dumps(spans)


def test_a_request_that_the_sampler_drops_still_has_its_waterfall(
    memory: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = open_tracing("demo", "ingress", [memory])
    spans = run_rag(RequestTelemetry(tracing, COMPONENTS), wanted=True).finished_spans()
    assert len(spans) == 6
    assert exported(tracing, memory) == {}


def test_requests_of_one_client_trace_are_kept_apart(tracing: Tracing) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    first = telemetry.start_request("demo", INCOMING, {names.WANTED: True})
    second = run_rag(telemetry, traceparent=INCOMING, wanted=True)
    first.end("attained")
    assert [s["name"] for s in first.finished_spans()] == ["invoke_workflow demo"]
    assert len(second.finished_spans()) == 6


def test_a_disabled_sdk_records_nothing_and_hands_the_trace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = RequestTelemetry(open_tracing("demo", "ingress"), COMPONENTS)
    handle = run_rag(telemetry, traceparent=INCOMING, wanted=True)
    assert handle.traceparent == INCOMING
    assert handle.finished_spans() == []


def test_a_streamed_reply_gives_usage_finish_reason_and_first_chunk(
    tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    chunks = [
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "Par"}}]},
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "is."}, "finish_reason": "length"}]},
        {"id": "c", "model": "m", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    ]
    with telemetry.observe(call("llm", "chat", {"body": {}}, None, stream=True, capture=True)) as span:
        for chunk in chunks:
            span.reply(codec.encode_outcome(chunk))
    found = exported(tracing, memory)["chat smollm2-135m-instruct"]
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (7, 2)
    assert found["gen_ai.response.finish_reasons"] == ("length",)
    assert found["output.value"] == "Paris."
    assert found["patchwork.frames"] == 3
    assert isinstance(found["gen_ai.response.time_to_first_chunk"], float)


def test_a_failed_call_names_the_error_and_no_message(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    with pytest.raises(ValueError), telemetry.observe(call("llm", "chat", {"body": {}}, None)):
        raise ValueError("a secret prompt")
    tracing.provider.force_flush()
    (span,) = memory.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "secret" not in span.to_json()
    assert not span.status.is_ok


def test_a_reader_that_closes_a_stream_early_is_no_error(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)

    def frames() -> Iterator[bytes]:
        with telemetry.observe(call("llm", "chat", {"body": {}}, None, stream=True)) as span:
            while True:
                span.reply(b"x")
                yield b"x"

    reader = frames()
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    found = exported(tracing, memory)["chat smollm2-135m-instruct"]
    assert (found["patchwork.cancelled"], found.get("error.type")) == (True, None)


def test_a_failing_generator_loses_its_attribute_and_no_other() -> None:
    def broken(facts: extract.CallFacts) -> extract.Pairs:
        yield "before", 1
        raise RuntimeError

    facts = extract.CallFacts(call("llm", "chat", {}, None), LLM)
    found = extract.attributes((broken, extract.kind), facts)
    assert found == {"before": 1, names.SPAN_KIND: "LLM"}


@pytest.mark.parametrize("payload", [b"", b"\x00garbage", b"{}"])
def test_payloads_that_cannot_be_read_cost_attributes_only(
    tracing: Tracing, memory: InMemorySpanExporter, payload: bytes
) -> None:
    telemetry = RequestTelemetry(tracing, COMPONENTS)
    with telemetry.observe(LeafCall("llm", "l", "chat", payload)) as span:
        span.reply(payload)
    (told,) = exported(tracing, memory).values()
    assert told[names.COMPONENT] == "llm"
    assert not any(str(name).startswith("gen_ai.usage") for name in told)


def test_a_traceparent_that_is_no_traceparent_starts_a_new_trace(
    tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    run_rag(RequestTelemetry(tracing, COMPONENTS), traceparent="00-zz")
    assert exported(tracing, memory)["invoke_workflow demo"]["parent"] is None
