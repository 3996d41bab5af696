"""Two ingress replicas behind one address: whichever answers tells of both, and cancels a run of either."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.deployed import Home, a_home, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TARGET = Path(__file__).parent / "chains" / "patient.py"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made


@pytest.fixture(scope="module")
def url(home: Home) -> Iterator[str]:
    with deployed(home, str(TARGET), "--replicas", "2") as made:
        yield made


def info(url: str) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{url}/info", timeout=20).json()
    return document


def exposed(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=20).text


def until_both_are_seen(url: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        document = info(url)
        if len(document["ingress"]) == 2:
            return document
        time.sleep(0.2)
    raise AssertionError(f"only {document['ingress']} answered")


async def ask(url: str, text: str, run_id: str | None = None) -> httpx.Response:
    """On a connection of its own: Serve chooses a replica per request."""
    async with httpx.AsyncClient(timeout=60) as client:
        config = {"run_id": run_id} if run_id else {}
        return await client.post(f"{url}/invoke", json={"input": text, "config": config})


async def test_the_window_and_the_metrics_are_of_both_whoever_answers(url: str) -> None:
    await asyncio.to_thread(until_both_are_seen, url)
    before = info(url)["window"]["requests"]
    answers = await asyncio.gather(*(ask(url, "0.2") for _ in range(12)))
    assert [a.status_code for a in answers] == [200] * 12
    for _ in range(4):
        assert info(url)["window"]["requests"] == before + 12
        families = {f.name: f for f in text_string_to_metric_families(exposed(url))}
        counted = {
            s.labels["ingress"]: s.value for s in families["patchwork_requests"].samples if s.name.endswith("_total")
        }
        assert sum(counted.values()) == before + 12
        assert len(counted) == 2
        waiting = {s.labels["component"]: s.value for s in families["patchwork_component_queued"].samples}
        assert waiting == {"llm": 0.0}


async def test_a_run_is_cancelled_through_any_replica(url: str) -> None:
    await asyncio.to_thread(until_both_are_seen, url)
    ids = [str(uuid.uuid4()) for _ in range(6)]
    runs = [asyncio.create_task(ask(url, "40", run_id)) for run_id in ids]
    while (await asyncio.to_thread(info, url))["in_flight"] < len(ids):
        await asyncio.sleep(0.1)
    spread = {one["replica"]: one["in_flight"] for one in info(url)["ingress"]}
    assert all(spread.values()), spread  # both have some, so that some are cancelled elsewhere
    async with httpx.AsyncClient(timeout=30) as client:
        cancelled = [await client.post(f"{url}/runs/{run_id}/cancel") for run_id in ids]
        unknown = await client.post(f"{url}/runs/{uuid.uuid4()}/cancel")
    assert [c.status_code for c in cancelled] == [200] * len(ids)
    assert unknown.status_code == 404
    assert [r.status_code for r in await asyncio.gather(*runs)] == [499] * len(ids)
    assert info(url)["in_flight"] == 0
