"""LangServe's and OpenAI's routes as they are on the wire; in process, over a real LCEL chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda

from kit.gateway import ANSWER, Gate, LcelRunner, chat_model, client, events, gateway, rag_chain
from patchwork_adapters.errors import ComponentUnavailable
from patchwork_serving.gateway import GatewayMetrics, GatewaySettings, ObservedCall, build_gateway
from patchwork_serving.gateway.bodies import RunConfig
from patchwork_serving.telemetry import names

QUESTION = {"input": "What is indentation for?"}
CHAT = {"model": "rag", "messages": [{"role": "user", "content": "What is indentation for?"}]}


async def test_a_batch_has_an_answer_and_a_run_id_for_each_input() -> None:
    runner = LcelRunner(rag_chain())
    async with client(gateway(runner=runner)) as http:
        document = (await http.post("/batch", json={"inputs": ["a", "b"], "config": {"tags": ["t"]}})).json()
        empty = (await http.post("/batch", json={"inputs": []})).json()
    assert document["output"] == [ANSWER, ANSWER]
    assert len(set(document["metadata"]["run_ids"])) == 2
    assert [config["tags"] for config in runner.configs[0]] == [["t"], ["t"]]
    assert empty == {"output": [], "metadata": {"run_ids": [], "responses": []}}


async def test_a_config_passes_only_what_a_client_may_set() -> None:
    runner = LcelRunner(rag_chain())
    config = {
        "tags": ["t"],
        "metadata": {"user": "u"},
        "recursion_limit": 25,
        "callbacks": ["x"],
        "configurable": {"__pregel_send": 1},
    }
    async with client(gateway(runner=runner)) as http:
        response = await http.post("/invoke", json={**QUESTION, "config": config})
    (seen,) = runner.configs
    assert str(seen.pop("run_id")) == response.json()["metadata"]["run_id"]
    assert seen == {"tags": ["t"], "metadata": {"user": "u"}, "configurable": {}}


def test_a_clients_tags_do_not_say_where_calls_are_made() -> None:
    structural = ["seq:step:2", "map:key:a", "branch:1", "condition:1", "retriever_1", "graph:step:3"]
    assert RunConfig(tags=["mine", *structural, "my branch:1"]).to_config()["tags"] == ["mine", "my branch:1"]


async def test_messages_arrive_as_messages() -> None:
    def kind(messages: list[Any]) -> str:
        return type(messages[0]).__name__

    async with client(gateway(RunnableLambda(kind))) as http:
        sent = {"input": [HumanMessage("hi").model_dump()]}
        assert (await http.post("/invoke", json=sent)).json()["output"] == "HumanMessage"


async def test_a_stream_has_metadata_data_and_end() -> None:
    async with client(gateway()) as http:
        response = await http.post("/stream", json=QUESTION)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert [name for name, _ in found if name != "data"] == ["metadata", "metadata", "end"]
    assert "".join(data for name, data in found if name == "data") == ANSWER
    assert found[0][1]["run_id"] == response.headers["x-patchwork-run-id"]
    assert found[-2][1]["slo_attained"] is True


async def test_what_fails_before_the_first_chunk_has_a_status() -> None:
    async def fail(text: str) -> AsyncIterator[str]:
        raise ComponentUnavailable("llm has no replica")
        yield ""

    async with client(gateway(RunnableLambda(fail))) as http:
        for path, body in (("/stream", QUESTION), ("/v1/chat/completions", {**CHAT, "stream": True})):
            assert (await http.post(path, json=body)).status_code == 503


async def broken(text: str) -> AsyncIterator[str]:
    yield "half an "
    raise ValueError("secret input")


class HalfRunner(LcelRunner):
    """Streams a chunk and fails."""

    async def stream(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
        async for chunk in broken(input):
            yield chunk


async def test_what_fails_later_is_an_error_event() -> None:
    app = gateway(runner=HalfRunner(rag_chain()))
    async with client(app) as http:
        response = await http.post("/stream", json=QUESTION)
        window = (await http.get("/info")).json()["window"]
    name, data = events(response.text)[-1]
    assert (name, data["status_code"], data["error"]["type"]) == ("error", 500, "ValueError")
    assert "secret" not in response.text
    assert window["failed"] == 1


async def test_a_chunk_without_a_json_form_does_not_break_the_stream() -> None:
    class Odd(LcelRunner):
        async def stream(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> AsyncIterator[Any]:
            yield object()

    async with client(gateway(runner=Odd(rag_chain()))) as http:
        found = events((await http.post("/stream", json=QUESTION)).text)
    assert found[1] == ("data", {"type": "not_serializable", "class": "builtins.object"})
    assert found[-1][0] == "end"


async def test_a_silent_stream_sends_heartbeats() -> None:
    gate = Gate()
    async with client(gateway(gate.chain(), heartbeat_s=0.01)) as http:
        response = await http.post("/stream", json=QUESTION, headers={"x-patchwork-deadline-ms": "200"})
    assert ": heartbeat" in response.text
    assert events(response.text)[-1][1]["status_code"] == 504
    await gate.cancelled.wait()


async def test_events_can_be_filtered() -> None:
    async with client(gateway()) as http:
        text = (await http.post("/stream_events", json={**QUESTION, "include_types": ["retriever"]})).text
    assert {data["event"] for name, data in events(text) if name == "data"} == {
        "on_retriever_start",
        "on_retriever_end",
    }


async def test_a_framework_without_events_says_so() -> None:
    class Engine(LcelRunner):
        def stream_events(self, *args: Any) -> AsyncIterator[Any]:
            raise NotImplementedError

    async with client(gateway(runner=Engine(rag_chain(), "llamaindex"))) as http:
        response = await http.post("/stream_events", json=QUESTION)
    assert response.status_code == 422
    assert "/stream" in response.json()["error"]["message"]


async def test_a_chat_completion_counts_the_tokens_of_the_chains_models() -> None:
    async with client(gateway()) as http:
        document = (await http.post("/v1/chat/completions", json=CHAT)).json()
    assert document["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
    assert document["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def test_tokens_that_engines_counted_go_before_those_of_messages() -> None:
    metrics = GatewayMetrics("rag")

    class Counted(LcelRunner):
        async def invoke(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
            call = ObservedCall("llm", "llm", 0.5, queue_s=0.1, input_tokens=40, output_tokens=2)
            metrics.observe_call(call, str(config["run_id"]))
            return await super().invoke(input, config, kwargs)

    async with client(build_gateway(Counted(rag_chain()), GatewaySettings("rag"), metrics=metrics)) as http:
        response = await http.post("/v1/chat/completions", json=CHAT)
        text = (await http.get("/metrics")).text
    assert response.json()["usage"] == {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}
    assert "queue;dur=100.0, llm;dur=500.0" in response.headers["server-timing"]
    assert 'patchwork_tokens_total{app="rag",component="llm",direction="input"} 40.0' in text


async def test_a_streamed_chat_completion_ends_with_its_usage_when_asked() -> None:
    async with client(gateway()) as http:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        response = await http.post("/v1/chat/completions", json=body)
    chunks = [data for _, data in events(response.text) if data]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == ANSWER
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert set(chunks[-1]["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert response.text.rstrip().endswith("data: [DONE]")


async def test_a_chain_without_text_in_its_chunks_still_answers_a_streamed_chat() -> None:
    async with client(gateway(RunnableLambda(lambda text: {"count": len(text)}))) as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    said = [d["choices"][0]["delta"].get("content", "") for _, d in events(response.text) if d]
    assert "".join(said) == '{"count":24}'


async def test_a_chat_model_alone_gets_the_whole_chat() -> None:
    async with client(gateway(chat_model())) as http:
        document = (await http.post("/v1/chat/completions", json=CHAT)).json()
    assert document["choices"][0]["message"]["content"] == ANSWER


class RecordedHandle:
    """A root span that remembers."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = dict(attributes)
        self.traceparent: str | None = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
        self.ended: tuple[str, str | None] | None = None

    def set(self, key: str, value: str | bool | int | float) -> None:
        self.attributes[key] = value

    def end(self, outcome: str, error: str | None = None) -> None:
        self.ended = (outcome, error)

    def finished_spans(self) -> Sequence[Mapping[str, Any]]:
        assert self.ended, "a trace is complete only after its root has ended"
        return [
            {"name": "invoke_workflow rag", "attributes": {names.RETRIEVAL_DOCUMENTS: '[{"id": "d1", "score": 0.5}]'}}
        ]


class RecordedTelemetry:
    def __init__(self) -> None:
        self.handles: list[RecordedHandle] = []

    def start_request(self, name: str, traceparent: str | None, attributes: Mapping[str, Any]) -> RecordedHandle:
        self.handles.append(RecordedHandle(attributes))
        return self.handles[-1]


async def test_a_trace_and_the_sources_come_with_the_answer_when_asked_for() -> None:
    telemetry, runner = RecordedTelemetry(), LcelRunner(rag_chain())
    async with client(build_gateway(runner, GatewaySettings("rag", capture_content=True), telemetry)) as http:
        plain = (await http.post("/invoke", json=QUESTION)).json()["metadata"]
        traced = (await http.post("/invoke", json=QUESTION, headers={"x-patchwork-trace": "1"})).json()["metadata"]
        content = await http.post("/stream", json=QUESTION, headers={"x-patchwork-trace": "content"})
    assert set(plain) == {"run_id", "feedback_tokens"}
    assert [span["name"] for span in traced["trace"]] == ["invoke_workflow rag"]
    assert len(traced["sources"]) == 2
    assert all(source["metadata"] == {"n": int(source["id"][1:])} for source in traced["sources"])
    assert {s["id"]: s["score"] for s in traced["sources"]}.get("d1") in (0.5, None)
    assert [handle.attributes.get(names.WANTED) for handle in telemetry.handles] == [False, True, True]
    assert [handle.ended for handle in telemetry.handles] == [("attained", None)] * 3
    assert [context.capture_content for context in runner.seen if context] == [False, False, True]
    assert events(content.text)[-2][1]["trace"]


async def test_content_is_captured_only_where_the_settings_allow_it() -> None:
    runner = LcelRunner(rag_chain())
    async with client(gateway(runner=runner)) as http:
        await http.post("/invoke", json=QUESTION, headers={"x-patchwork-trace": "content"})
    assert [context.capture_content for context in runner.seen if context] == [False]


async def test_a_gateway_may_keep_its_traces_to_itself() -> None:
    async with client(gateway(allow_trace=False)) as http:
        document = (await http.post("/invoke", json=QUESTION, headers={"x-patchwork-trace": "1"})).json()
    assert "trace" not in document["metadata"]


async def test_a_failed_request_ends_its_root_span_with_the_error() -> None:
    telemetry = RecordedTelemetry()
    async with client(build_gateway(HalfRunner(rag_chain()), GatewaySettings("rag"), telemetry)) as http:
        await http.post("/stream", json=QUESTION)
    assert telemetry.handles[0].ended == ("failed", "ValueError")
