"""``patchwork bench`` against a small server that is slow, refuses and fails: no Ray, no models."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from kit.gateway import gateway
from kit.hosted import serving
from patchwork_serving import cli
from patchwork_serving.bench import LoadOptions, run_load
from patchwork_serving.bench.apis import ApiName

#: far from what a busy machine may add to a fast answer
SLOW_S, SLO_S, TIMEOUT_S = 2.5, 1.5, 4.0


class Answers:
    """Each input names what becomes of it."""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/invoke", self.invoke, methods=["POST"], response_model=None)
        app.add_api_route("/stream", self.stream, methods=["POST"], response_model=None)
        app.add_api_route("/info", lambda: {"name": "answers", "release": {"emulated": ["llm"]}}, methods=["GET"])
        return app

    async def invoke(self, request: Request) -> Response:
        match (await request.json())["input"]:
            case "refuse":
                return JSONResponse({"error": {"type": "RequestRefused"}}, 429, {"retry-after": "1"})
            case "fail":
                return JSONResponse({"error": {"type": "ValueError"}}, 500)
            case "slow":
                await asyncio.sleep(SLOW_S)
            case "stuck":
                while not await request.is_disconnected():
                    await asyncio.sleep(0.2)
        return JSONResponse({"output": "x"}, headers={"server-timing": "total;dur=2.0, llm;dur=1.0"})

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b'event: data\r\ndata: "a"\r\n\r\n'
            await asyncio.sleep(0.1)
            yield b"event: end\r\n\r\n"

        return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Answers().app()) as root:
        yield root


def test_every_outcome_is_counted(url: str) -> None:
    inputs = ["fast", "slow", "refuse", "fail", "stuck"]
    options = LoadOptions(requests=25, warmup_s=0.0, slo_s=SLO_S, timeout_s=TIMEOUT_S, rate=50.0)
    report = run_load(url, "poisson", inputs, options)
    assert dict(report.counts) == {"attained": 5, "missed": 10, "refused": 5, "failed": 5, "cancelled": 0}
    assert report.statuses == {"200": 10, "429 RequestRefused": 5, "500 ValueError": 5, "timeout": 5}
    assert report.stages["llm"] == pytest.approx([0.001] * 10)
    assert report.environment["emulated"] == ["llm"]


def test_latencies_hold_the_wait_for_a_connection(url: str) -> None:
    options = LoadOptions(requests=2, warmup_s=0.0, slo_s=SLO_S, rate=1000.0, connections=1)
    report = run_load(url, "poisson", ["slow"], options)
    assert max(report.latencies) >= 2 * SLOW_S - 0.1  # one after the other
    assert report.generator_was_late


def test_first_chunks_of_streams_are_timed(url: str) -> None:
    report = run_load(url, "gamma:2", ["q"], LoadOptions(requests=10, warmup_s=0.1, slo_s=5.0, rate=50.0, stream=True))
    assert report.counts["attained"] == 10
    assert all(first < whole for first, whole in zip(report.first_chunks, report.latencies, strict=True))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["langserve", "openai"])
def test_our_own_gateway_is_asked_in_its_protocols(api: ApiName, stream: bool) -> None:
    with serving(gateway()) as root:
        options = LoadOptions(requests=5, warmup_s=0.0, slo_s=20.0, rate=50.0, api=api, stream=stream)
        report = run_load(f"{root}/rag", "poisson", ["What groups statements?"], options)
    assert report.counts["attained"] == 5, report.statuses
    assert len(report.first_chunks) == (5 if stream else 0)
    assert report.environment["application"]["name"] == "rag"
    assert report.environment["emulated"] == []


def arguments(url: str, folder: Path, *more: str, inputs: str) -> list[str]:
    file = folder / "inputs.jsonl"
    file.write_text(inputs)
    return ["bench", url, "--inputs", str(file), "-o", str(folder / "out"), *more]


def read_report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return found


def test_a_sweep_writes_report_plots_and_page(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(url, tmp_path, "--rate", "20,40", "--duration", "1s", "--warmup", "0.2", "--json", inputs='"q"\n')
    assert cli.run(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == read_report(tmp_path)
    assert [point["asked_rate_per_s"] for point in document["sweep"]] == [20.0, 40.0]
    assert document["slo_s"] == pytest.approx(2 * document["sweep"][0]["unloaded_mean_s"])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.json", "report.html", "latency_cdf.png", "throughput.png", "attained.png", "stages.png",
    }  # fmt: skip
    assert "emulated engines" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_writes_what_there_is_and_says_partial(url: str, tmp_path: Path) -> None:
    args = arguments(
        url, tmp_path, "--rate", "50", "--duration", "60s", "--warmup", "0", "--slo", "1s", inputs='"q"\n"slow"\n'
    )
    command = [sys.executable, "-m", "patchwork_serving.cli", *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    while "requests in 60 s" not in (line := process.stderr.readline()):
        assert line, "the command ended before the load began"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1
    report = read_report(tmp_path)
    assert report["partial"]
    assert report["cancelled"] > 0
    assert report["attained"] + report["missed"] + report["cancelled"] == report["offered"] > 10


@pytest.mark.parametrize(("target", "told"), [("/nothing", "404"), ("", "does not answer")])
def test_an_application_that_does_not_answer_is_told_before_the_load(
    url: str, target: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(url + target if target else "http://127.0.0.1:9", tmp_path, "--rate", "5", inputs='"q"\n')
    assert cli.run(args) == (2 if target else 1)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
