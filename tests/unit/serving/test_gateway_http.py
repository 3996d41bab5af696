"""The door: ids, keys, limits, errors, health. In process, over a real LCEL chain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from langchain_core.runnables import RunnableLambda

from kit.gateway import ANSWER, Gate, LcelRunner, client, failing_chain, gateway, rag_chain
from patchwork_adapters.errors import CodecError, ComponentFailed, ComponentUnavailable, DeadlinePassed
from patchwork_scheduler.model import SloClass
from patchwork_serving.errors import ConfigError, EngineRefused, StoreUnreachable
from patchwork_serving.gateway import GatewaySettings, RequestRefused, build_gateway

QUESTION = {"input": "What is indentation for?"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"type", "message", "stage", "retryable", "run_id"}
    assert "Traceback" not in response.text
    return dict(error)


async def test_routes_are_served_at_the_root_and_below_the_name() -> None:
    async with client(gateway()) as http:
        for path in ("/invoke", "/rag/invoke"):
            assert (await http.post(path, json=QUESTION)).json()["output"] == ANSWER
        assert (await http.get("/rag/livez")).status_code == 200
        assert (await http.get("/ragged/livez")).status_code == 404


async def test_a_root_path_of_the_server_is_respected() -> None:
    app = gateway()
    for root, path in (("/apps", "/apps/rag/livez"), ("/rag", "/rag/livez"), ("/apps", "/livez")):
        transport = httpx.ASGITransport(app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            assert (await http.get(path)).status_code == 200, (root, path)


def test_a_name_that_a_route_has_is_refused() -> None:
    for name in ("invoke", "v1", "", "a/b"):
        with pytest.raises(ConfigError, match="name"):
            GatewaySettings(name)


async def test_a_request_id_is_echoed_and_an_unsafe_one_replaced() -> None:
    async with client(gateway()) as http:
        assert (await http.get("/livez", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        given = "x" * 500
        assert (await http.get("/livez", headers={"x-request-id": given})).headers["x-request-id"] != given
        assert (await http.get("/nowhere")).headers["x-request-id"]


async def test_a_server_that_echoes_request_ids_is_left_to_do_so() -> None:
    async with client(gateway(server_echoes_request_id=True)) as http:
        assert "x-request-id" not in (await http.get("/livez", headers={"x-request-id": "abc-1"})).headers


async def test_the_chain_runs_in_the_context_of_its_request() -> None:
    runner = LcelRunner(rag_chain())
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-request-id": "r1", "traceparent": traceparent, "x-patchwork-slo": "fast"}
    async with client(gateway(runner=runner, slo_classes={"fast": SloClass("fast", 2.0)}), **headers) as http:
        response = await http.post("/invoke", json=QUESTION)
    (seen,) = runner.seen
    assert seen is not None
    assert (seen.request_id, seen.slo, seen.traceparent) == ("r1", "fast", traceparent)
    assert seen.run_id == response.json()["metadata"]["run_id"] == response.headers["x-patchwork-run-id"]
    assert seen.deadline is not None
    assert seen.slo_deadline is not None
    assert seen.slo_deadline < seen.deadline


async def test_an_answer_tells_its_timing_and_whether_the_promise_was_kept() -> None:
    async with client(gateway()) as http:
        response = await http.post("/invoke", json=QUESTION)
        late = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-slo": "default"})
    assert response.headers["x-patchwork-slo-attained"] == "true"
    assert response.headers["server-timing"].startswith("total;dur=")
    assert late.status_code == 200


async def test_an_answer_after_its_promise_is_given_and_counts_as_missed() -> None:
    app = gateway(slo_classes={"impossible": SloClass("impossible", 1e-9)})
    async with client(app) as http:
        response = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-slo": "impossible"})
        info = (await http.get("/info")).json()
    assert (response.status_code, response.headers["x-patchwork-slo-attained"]) == (200, "false")
    assert info["window"]["missed"] == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic secret"}, 401),  # another scheme
        ({"x-api-key": "secre"}, 401),
        ({"x-api-key": "sécret"}, 401),  # not ASCII
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),  # schemes are case-insensitive
        ({"x-api-key": "secret"}, 200),
    ],
)
async def test_the_api_key_opens_everything_but_the_probes(headers: dict[str, str], status: int) -> None:
    async with client(gateway(api_key="secret")) as http:
        raw = {name: value.encode() for name, value in headers.items()}
        for path in ("/info", "/metrics", "/docs"):
            assert (await http.get(path, headers=raw)).status_code == status
        response = await http.post("/invoke", json=QUESTION, headers=raw)
        assert response.status_code == status
        if status == 401:
            assert error_of(response)["type"] == "Unauthorized"
            assert "secret" not in response.text
        assert (await http.get("/livez")).status_code == (await http.get("/readyz")).status_code == 200


async def test_a_body_too_large_is_refused_while_it_comes_in() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b"x" * 1000

    async with client(gateway(max_body_bytes=2500)) as http:
        response = await http.post("/invoke", content=endless())
    assert response.status_code == 413
    assert error_of(response)["type"] == "BodyTooLarge"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/invoke", "{", "not JSON"),
        ("/invoke", "[]", "JSON object"),
        ("/invoke", "{}", "input: Field required"),
        ("/invoke", '{"input": 3}', "input: must be of type string"),
        ("/invoke", '{"input": "x", "config": 3}', "config"),
        ("/invoke", '{"input": "x", "config": {"run_id": "no"}}', "config.run_id"),
        ("/invoke", '{"input": "x", "config": {"recursion_limit": 0}}', "config.recursion_limit"),
        ("/invoke", '{"input": "x", "kwargs": {"stop": ["."]}}', "kwargs"),
        ("/batch", '{"inputs": "x"}', "inputs"),
        ("/batch", '{"inputs": ["x", 3]}', "inputs[1]: must be of type string"),
        ("/batch", '{"inputs": ["x"], "config": []}', "0 configs for 1 inputs"),
        ("/batch", '{"inputs": ["x", "x", "x", "x"]}', "at most 3"),
        ("/stream", '{"inputs": "x"}', "input"),
        ("/stream_events", '{"input": "x", "version": "v9"}', "version"),
        ("/stream_events", '{"input": "x", "include_names": 3}', "include_names"),
        ("/v1/chat/completions", '{"model": "rag"}', "messages"),
        ("/v1/chat/completions", '{"model": "rag", "messages": []}', "messages"),
        ("/v1/chat/completions", '{"model": "rag", "messages": [{"role": "user", "content": "x"}], "n": 2}', "n:"),
        (
            "/v1/chat/completions",
            '{"model": "rag", "messages": [{"role": "user", "content": "x"}], "tools": [1]}',
            "tools",
        ),
        ("/v1/chat/completions", '{"model": "rag", "messages": [{"role": "boss", "content": "x"}]}', "role"),
    ],
)
async def test_invalid_bodies_are_the_clients_fault(path: str, body: str, told: str) -> None:
    async with client(gateway(max_batch_inputs=3)) as http:
        response = await http.post(path, content=body)
    assert response.status_code == 422
    assert told in error_of(response)["message"]


async def test_a_bad_deadline_header_is_the_clients_fault() -> None:
    async with client(gateway()) as http:
        response = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-deadline-ms": "0"})
    assert response.status_code == 422


async def test_unknown_routes_and_methods_have_the_error_body() -> None:
    async with client(gateway()) as http:
        unknown, wrong = await http.get("/nowhere"), await http.get("/invoke")
    assert (unknown.status_code, error_of(unknown)["type"]) == (404, "UnknownRoute")
    assert (wrong.status_code, error_of(wrong)["type"]) == (405, "MethodNotAllowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("error", "status", "kind", "retryable"),
    [
        (ValueError("secret input"), 500, "ValueError", False),
        (ComponentUnavailable("llm has no replica"), 503, "ComponentUnavailable", True),
        (ComponentFailed("llm: secret input"), 502, "ComponentFailed", False),
        (StoreUnreachable("no database at secret input"), 503, "StoreUnreachable", True),
        (CodecError("secret input"), 500, "CodecError", False),
        (EngineRefused("the prompt has 9000 tokens, the model takes 2048"), 422, "EngineRefused", False),
        (DeadlinePassed("late"), 504, "DeadlinePassed", True),
        (RequestRefused("too much to do", 2.5), 429, "RequestRefused", True),
    ],
)
async def test_errors_of_the_chain_have_their_status_and_tell_no_inputs(
    error: BaseException, status: int, kind: str, retryable: bool
) -> None:
    async with client(gateway(failing_chain(error))) as http:
        response = await http.post("/invoke", json=QUESTION)
    told = error_of(response)
    assert (response.status_code, told["type"], told["retryable"]) == (status, kind, retryable)
    assert "secret" not in response.text
    assert told["run_id"] == response.headers["x-patchwork-run-id"]
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_an_error_of_ours_is_known_below_what_a_framework_raises_from_it() -> None:
    async def fail(text: str) -> str:
        try:
            raise ComponentUnavailable("llm has no replica")
        except ComponentUnavailable as error:
            raise RuntimeError("step failed") from error

    async with client(gateway(RunnableLambda(fail))) as http:
        response = await http.post("/invoke", json=QUESTION)
    assert (response.status_code, error_of(response)["type"]) == (503, "ComponentUnavailable")


async def test_a_fault_of_the_gateway_itself_is_no_traceback() -> None:
    class Broken(LcelRunner):
        def release_info(self) -> dict[str, Any]:
            raise RuntimeError("secret")

    async with client(gateway(runner=Broken(rag_chain()))) as http:
        response = await http.get("/info")
    assert (response.status_code, error_of(response)["stage"]) == (500, "gateway")
    assert "secret" not in response.text


async def test_an_app_that_is_not_ready_asks_to_come_back() -> None:
    runner = LcelRunner(rag_chain())
    runner.ready = False
    async with client(gateway(runner=runner)) as http:
        for response in (await http.get("/readyz"), await http.post("/invoke", json=QUESTION)):
            assert (response.status_code, error_of(response)["type"]) == (503, "NotReady")
            assert int(response.headers["retry-after"]) >= 1
        assert (await http.get("/livez")).status_code == 200


async def test_a_deadline_cancels_the_run() -> None:
    gate = Gate()
    async with client(gateway(gate.chain())) as http:
        response = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-deadline-ms": "50"})
        assert (response.status_code, error_of(response)["type"]) == (504, "DeadlinePassed")
        assert response.headers["x-patchwork-slo-attained"] == "false"
        await gate.cancelled.wait()


async def test_a_run_is_cancelled_by_its_id() -> None:
    gate, run_id = Gate(), "5bbd5ff3-72b5-4a77-91ae-0dd1a3a8a0a5"
    async with client(gateway(gate.chain())) as http:
        asked = asyncio.create_task(http.post("/invoke", json={**QUESTION, "config": {"run_id": run_id}}))
        await gate.entered.wait()
        taken = await http.post("/invoke", json={**QUESTION, "config": {"run_id": run_id}})
        cancelled = await http.post(f"/runs/{run_id}/cancel")
        response = await asked
        again = await http.post(f"/runs/{run_id}/cancel")
    assert taken.status_code == 409
    assert cancelled.json() == {"run_id": run_id, "cancelled": True}
    assert (response.status_code, error_of(response)["run_id"]) == (499, run_id)
    assert (again.status_code, error_of(again)["type"]) == (404, "UnknownRun")


async def test_a_run_of_another_replica_is_cancelled_there() -> None:
    asked: list[str] = []

    async def elsewhere(run_id: str) -> bool:
        asked.append(run_id)
        return run_id == "theirs"

    app = build_gateway(LcelRunner(rag_chain()), GatewaySettings("rag"), cancel_elsewhere=elsewhere)
    async with client(app) as http:
        assert (await http.post("/runs/theirs/cancel")).status_code == 200
        assert (await http.post("/runs/nobodys/cancel")).status_code == 404
    assert asked == ["theirs", "nobodys"]


async def test_requests_beyond_the_limit_are_refused() -> None:
    gate = Gate()
    async with client(gateway(gate.chain(), max_in_flight=1)) as http:
        first = asyncio.create_task(http.post("/invoke", json=QUESTION))
        await gate.entered.wait()
        refused = await http.post("/invoke", json=QUESTION)
        gate.open.set()
        assert (await first).status_code == 200
        window = (await http.get("/info")).json()["window"]
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert (window["attained"], window["refused"]) == (1, 1)


async def test_metrics_count_requests_by_outcome() -> None:
    async with client(gateway()) as http:
        await http.post("/invoke", json=QUESTION)
        await http.post("/stream", json=QUESTION)
        await http.post("/invoke", json={"input": 3})
        text = (await http.get("/metrics")).text
    assert 'patchwork_requests_total{app="rag",outcome="attained",slo="default"} 2.0' in text
    assert 'patchwork_http_responses_total{app="rag",route="/invoke",status="422"} 1.0' in text
    assert 'patchwork_ttft_seconds_count{app="rag"} 1.0' in text
    assert 'patchwork_requests_in_flight{app="rag"} 0.0' in text


async def test_info_tells_what_is_deployed() -> None:
    async with client(gateway(default_slo_s=2.0)) as http:
        info = (await http.get("/info")).json()
    assert (info["name"], info["framework"], info["ready"], info["slo"]["default_s"]) == ("rag", "langchain", True, 2.0)
    assert info["release"] == {"target": "my_chain.py"}


async def test_the_docs_need_nothing_from_elsewhere() -> None:
    async with client(gateway()) as http:
        page = await http.get("/rag/docs")
        document = (await http.get("/openapi.json")).json()
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "src=" not in page.text
    assert "http://" not in page.text.replace("http://json-schema.org", "")
    assert "https://" not in page.text
    assert document["components"]["schemas"]["ChainInput"]["type"] == "string"
    assert json.dumps(document).count("$defs") == 0
