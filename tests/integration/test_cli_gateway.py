"""`invoke` and `status` against the real gateway on a socket, whose chain makes leaf calls that telemetry observes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from kit.gateway import ANSWER, LcelRunner, failing_chain, gateway, rag_chain
from patchwork_adapters import codec
from patchwork_adapters.context import REQUEST
from patchwork_adapters.errors import ComponentUnavailable
from patchwork_adapters.transport import LeafCall
from patchwork_serving import cli
from patchwork_serving.gateway import GatewaySettings, build_gateway
from patchwork_serving.release import ComponentSpec
from patchwork_serving.state import AppState, StateStore
from patchwork_serving.telemetry import RequestTelemetry, open_tracing
from patchwork_serving.wire import Report

LLM = ComponentSpec("llm", "llm", "engine", "llamacpp", model="small")


class ObservedRunner(LcelRunner):
    """Tells telemetry of one leaf call for each request, as the transport does."""

    def __init__(self, telemetry: RequestTelemetry) -> None:
        super().__init__(rag_chain())
        self._telemetry = telemetry

    async def invoke(self, input: Any, config: Any, kwargs: Mapping[str, Any]) -> Any:
        arguments = {"body": {"model": "small", "messages": [{"role": "user", "content": str(input)}]}}
        call = LeafCall("llm", "chain.llm", "chat", codec.encode(arguments), request=REQUEST.get())
        with self._telemetry.observe(call) as seen:
            output = await super().invoke(input, config, kwargs)
            reply = {
                "usage": {"prompt_tokens": 7, "completion_tokens": 3},
                "choices": [{"message": {"content": ANSWER}}],
            }
            seen.reply(codec.encode_outcome(reply))
            seen.report(Report("llm-0", queue_s=0.0, service_s=0.001, batch=2))
        return output

    async def status(self) -> dict[str, Any]:
        return {
            "replicas": [{"component": "llm", "target": 1, "ready": 1, "queued": 0, "running": 0}],
            "decisions": [{"time": "12:00:00", "what": "1 replica of llm", "why": "demand"}],
        }


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of loopback; its URL."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as probe:
            probe.get(f"{url}/livez")
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    telemetry = RequestTelemetry(open_tracing("rag", "ingress"), {"llm": LLM})
    with serving(
        build_gateway(ObservedRunner(telemetry), GatewaySettings("rag", capture_content=True), telemetry)
    ) as found:
        yield found


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PATCHWORK_HOME", str(tmp_path))
    StateStore(tmp_path / "state").save(AppState("rag", "rag.py", url, "now", slo_s=5.0))


def test_an_answer_is_printed_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?"]) == 0
    assert capsys.readouterr() == (f"{ANSWER}\n", "")


def test_a_trace_draws_the_root_and_its_calls(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?", "--trace"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == ANSWER
    assert "invoke_workflow rag" in shown.out
    line = next(line for line in shown.out.splitlines() if "chat small" in line)
    assert "7→3" in line
    assert "llm-0" in line
    assert shown.err.splitlines()[0].startswith("source: d")
    assert "user: why?" not in shown.out


def test_content_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?", "--content"]) == 0
    shown = capsys.readouterr().out
    assert "user: why?" in shown
    assert f"answer: {ANSWER}" in shown


def test_json_has_output_run_trace_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?", "--trace", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == ANSWER
    assert [span["name"] for span in answer["trace"]] == ["invoke_workflow rag", "chat small"]
    assert answer["trace"][1]["parent_id"] == answer["trace"][0]["span_id"]
    assert answer["trace"][0]["attributes"]["patchwork.run_id"] == answer["run_id"]
    assert [source["id"] for source in answer["sources"]]


def test_a_stream_is_printed_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?", "--stream"]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"
    assert cli.run(["invoke", "rag", "why?", "--stream", "--json", "--trace"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "".join(answer["chunks"]) == ANSWER
    assert answer["trace"][0]["name"] == "invoke_workflow rag"


def test_an_input_that_does_not_fit_is_used_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", '{"no": "string"}']) == 2
    assert "HTTP 422" in capsys.readouterr().err.splitlines()[0]


def test_an_error_of_the_chain_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(gateway(failing_chain(ComponentUnavailable("no replica of llm answered")))) as broken:
        for options in ([], ["--stream"]):
            assert cli.run(["invoke", broken, "why?", *options]) == 1
            first = capsys.readouterr().err.splitlines()[0]
            assert "HTTP 503" in first
            assert "try again" in first


def test_a_key_is_sent_when_the_environment_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(gateway(api_key="secret")) as locked:
        assert cli.run(["invoke", locked, "why?"]) == 2
        assert "set PATCHWORK_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("PATCHWORK_API_KEY", "secret")
        assert cli.run(["invoke", locked, "why?"]) == 0


def test_status_has_the_contracts_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["invoke", "rag", "why?"]) == 0
    capsys.readouterr()
    assert cli.run(["status", "--json"]) == 0
    (app,) = json.loads(capsys.readouterr().out)["apps"]
    assert (app["name"], app["state"], app["slo"]) == ("rag", "ready", 5.0)
    assert app["replicas"] == [{"component": "llm", "target": 1, "ready": 1, "queued": 0, "running": 0}]
    assert app["decisions"] == [{"time": "12:00:00", "what": "1 replica of llm", "why": "demand"}]
    assert {"requests", "attained", "missed", "refused", "failed", "p50_s", "p95_s", "p99_s"} <= set(app["window"])
    assert app["window"]["requests"] >= 1
    assert cli.run(["status"]) == 0
    shown = capsys.readouterr().out
    assert "1/1" in shown
    assert "last minute" in shown
