"""The door in the gateway: refused, held, let in; SLO classes seen from outside. In process, over a real LCEL chain."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from langchain_core.runnables import RunnableGenerator

from kit.gateway import ANSWER, Gate, LcelRunner, client, events, rag_chain
from patchwork_scheduler.admission import Admit, Decision, Hold, Refuse
from patchwork_scheduler.model import SloClass
from patchwork_serving.errors import ConfigError
from patchwork_serving.gateway import GatewaySettings, build_gateway
from patchwork_serving.gateway.port import OpenDoor
from patchwork_serving.scheduling import Scheduling

QUESTION = {"input": "What is indentation for?"}
CLASSES = {"fast": SloClass("fast", 2.0), "batch": SloClass("batch", 60.0)}


class Scripted(OpenDoor):
    """Decides the n-th time as the n-th decision says; the last one repeats. Notes what it is asked and told."""

    def __init__(self, *decisions: Decision) -> None:
        self._decisions = list(decisions)
        self.asked: list[tuple[str, int]] = []
        self.ended: list[tuple[bool, bool]] = []

    def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
        self.asked.append((slo, weight))
        return self._decisions[min(len(self.asked), len(self._decisions)) - 1]

    def finished(self, run_id: str, now: float, *, whole: bool, cancelled: bool = False) -> None:
        self.ended.append((whole, cancelled))


def behind(door: Any, runner: LcelRunner | None = None, **settings: Any) -> FastAPI:
    settings = {"slo_classes": CLASSES, "default_slo": "fast", **settings}
    return build_gateway(runner or LcelRunner(rag_chain()), GatewaySettings("rag", **settings), door=door)


CALLS = [
    ("/invoke", QUESTION), ("/batch", {"inputs": ["a", "b"]}), ("/stream", QUESTION), ("/stream_events", QUESTION),
    ("/v1/chat/completions", {"model": "rag", "messages": [{"role": "user", "content": "q"}]}),
    ("/v1/chat/completions", {"model": "rag", "stream": True, "messages": [{"role": "user", "content": "q"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_a_refused_request_is_told_when_to_come_back_and_costs_nothing(path: str, body: Any) -> None:
    door, runner = Scripted(Refuse(9.25, 7.3)), LcelRunner(rag_chain())
    async with client(behind(door, runner)) as http:
        response = await http.post(path, json=body)
        window = (await http.get("/info")).json()["window"]
    error = response.json()["error"]
    assert (response.status_code, response.headers["retry-after"]) == (429, "8")
    assert (error["type"], error["stage"], error["retryable"]) == ("RequestRefused", "gateway", True)
    assert "predicted to take 9.25 s" in error["message"]
    assert error["run_id"] == response.headers["x-patchwork-run-id"]
    assert (runner.seen, door.ended) == ([], [(False, True)])
    assert (window["refused"], window["classes"]["fast"]["refused"]) == (1, 1)


async def test_the_openai_client_knows_a_refusal() -> None:
    transport = httpx.ASGITransport(behind(Scripted(Refuse(9.0, 7.0))))
    http = httpx.AsyncClient(transport=transport, base_url="http://gateway/v1")
    async with openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="x", http_client=http, max_retries=0) as asking:
        with pytest.raises(openai.RateLimitError) as refused:
            await asking.chat.completions.create(model="rag", messages=[{"role": "user", "content": "q"}])
    assert refused.value.response.headers["retry-after"] == "7"


async def test_who_is_let_in_is_counted_until_the_end() -> None:
    door = Scripted(Admit(0.1))
    async with client(behind(door)) as http:
        assert (await http.post("/invoke", json=QUESTION)).status_code == 200
        assert (await http.post("/batch", json={"inputs": ["a", "b"]})).status_code == 200
        assert (await http.post("/invoke", json={"input": 3})).status_code == 422  # never came to the door
        metrics = (await http.get("/metrics")).text
    assert door.asked == [("fast", 1), ("fast", 2)]
    assert door.ended == [(True, False), (True, False)]
    assert 'patchwork_admission_total{app="rag",decision="admitted",slo="fast"} 2.0' in metrics


async def test_a_client_that_leaves_is_gone_from_behind_the_door() -> None:
    door, gate = Scripted(Admit(0.1)), Gate()
    app = behind(door, LcelRunner(gate.chain()))
    async with client(app) as http:
        asking = asyncio.create_task(http.post("/invoke", json={"input": "x", "config": {"run_id": RUN}}))
        await gate.entered.wait()
        assert (await http.post(f"/runs/{RUN}/cancel")).status_code == 200
        assert (await asking).status_code == 499
    assert gate.cancelled.is_set()
    assert door.ended == [(False, True)]


RUN = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize("path", ["/invoke", "/stream"])
async def test_a_held_request_is_answered_once_it_is_let_in(path: str) -> None:
    door = Scripted(Hold(3.0, 0.0), Hold(3.0, 0.0), Admit(0.1))
    async with client(behind(door)) as http:
        response = await http.post(path, json=QUESTION)
        metrics = (await http.get("/metrics")).text
    said = (
        response.json()["output"] if path == "/invoke" else "".join(d for e, d in events(response.text) if e == "data")
    )
    assert said == ANSWER
    assert len(door.asked) == 3
    assert 'patchwork_admission_total{app="rag",decision="held",slo="fast"} 1.0' in metrics


async def test_a_held_request_ends_at_its_deadline_and_when_it_is_cancelled() -> None:
    async with client(behind(Scripted(Hold(3.0, 0.001)))) as http:
        late = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-deadline-ms": "20"})
        asking = asyncio.create_task(http.post("/invoke", json={**QUESTION, "config": {"run_id": RUN}}))
        while (await http.post(f"/runs/{RUN}/cancel")).status_code == 404:
            await asyncio.sleep(0)
        assert (late.status_code, (await asking).status_code) == (504, 499)


async def test_later_requests_do_not_pass_those_who_are_held() -> None:
    class OneByOne(Scripted):
        open = False

        def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
            super().decide(run_id, slo, deadline, now, weight)
            return Admit(0.0) if self.open else Hold(1.0, 0.0)

    door, runner = OneByOne(Hold(1.0, 0.0)), LcelRunner(rag_chain())
    async with client(behind(door, runner)) as http:
        asking = []
        for n in range(3):
            config = {"run_id": f"00000000-0000-0000-0000-00000000000{n}"}
            asking.append(asyncio.create_task(http.post("/invoke", json={**QUESTION, "config": config})))
            for _ in range(20):
                await asyncio.sleep(0)
        door.open = True
        await asyncio.gather(*asking)
    assert [str(config["run_id"])[-1] for config in runner.configs] == ["0", "1", "2"]


class Timed(OpenDoor):
    """Notes how long each request took, as the door is told."""

    def __init__(self) -> None:
        self.came = 0.0
        self.took: list[float] = []

    def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
        self.came = now
        return Admit(0.1)

    def finished(self, run_id: str, now: float, *, whole: bool, cancelled: bool = False) -> None:
        self.took.append(now - self.came)


@pytest.mark.parametrize("chunks", [3, 300])
async def test_what_a_slow_reader_takes_is_not_learnt_as_work(chunks: int) -> None:
    async def many(text: Any) -> Any:
        async for _ in text:
            for number in range(chunks):
                yield f"{number} "

    door = Timed()
    app = behind(door, LcelRunner(RunnableGenerator(many)))
    body, sent = b'{"input": "x"}', 0
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(given, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        if message.get("body"):
            await asyncio.sleep(0.1)  # the client reads slowly

    headers = [(b"content-type", b"application/json"), (b"host", b"gateway")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/stream",
        "raw_path": b"/stream", "query_string": b"", "root_path": "", "headers": headers, "server": ("gateway", 80),
    }  # fmt: skip
    began = asyncio.get_running_loop().time()
    await app(scope, receive, send)
    assert asyncio.get_running_loop().time() - began > 0.2
    assert sent > 2 * chunks
    assert len(door.took) == 1
    assert door.took[0] < 0.1


async def test_classes_are_told_apart_in_headers_metrics_and_info() -> None:
    async with client(behind(None)) as http:
        plain = await http.post("/invoke", json=QUESTION)
        batch = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-slo": "batch"})
        unknown = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-slo": "gold"})
        unnamed = await http.post("/invoke", json=QUESTION, headers={"x-patchwork-slo": "default"})
        info = (await http.get("/info")).json()
        metrics = (await http.get("/metrics")).text
    assert (plain.headers["x-patchwork-slo"], batch.headers["x-patchwork-slo"]) == ("fast", "batch")
    assert (unknown.status_code, unnamed.status_code) == (422, 422)
    assert "there are batch, fast" in unknown.json()["error"]["message"]
    assert {name: one["attained"] for name, one in info["window"]["classes"].items()} == {"batch": 1, "fast": 1}
    assert (info["slo"]["default"], info["slo"]["default_s"], info["slo"]["classes"]["batch"]["deadline_s"]) == (
        "fast",
        2.0,
        60.0,
    )
    assert 'patchwork_requests_total{app="rag",outcome="attained",slo="batch"} 1.0' in metrics


def test_a_default_class_must_exist() -> None:
    with pytest.raises(ConfigError, match="default_slo 'gold' is none of"):
        GatewaySettings("rag", slo_classes=CLASSES, default_slo="gold")


async def test_the_scheduler_behind_the_door_tells_what_it_knows() -> None:
    scheduling = Scheduling(CLASSES, {"llm": 1}, admission="refuse")
    async with client(behind(scheduling)) as http:
        await http.post("/invoke", json=QUESTION)
        info = (await http.get("/info")).json()
        metrics = (await http.get("/metrics")).text
    assert info["scheduler"]["admission"] == "refuse"
    assert info["scheduler"]["decided"] == {"fast": {"admitted": 1}}
    assert info["status"]["decisions"] == []
    assert 'patchwork_admission_margin{app="rag"} 1.0' in metrics
    assert len(scheduling._journeys) == 0
