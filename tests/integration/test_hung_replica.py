"""A replica that hangs in the middle of long calls: nobody is sent to it after a second, and it serves again when it goes on. One that is
only slow gets few."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from kit.deployed import Home, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TARGET = Path(__file__).parent / "chains" / "patient.py"
#: How long a call takes. Judged by its prediction alone, a replica would be in doubt only after twice as much.
CALL_S = 4.0
EVERY_S = 0.25
GIVEN_UP_S = 12.0


@pytest.fixture(scope="module")
def url(home: Home) -> Iterator[str]:
    config = home.path / "patchwork.yaml"
    config.write_text("components: {llm: {replicas: 2, slots: 32}}\n", encoding="utf-8")
    with deployed(home, str(TARGET), "--config", str(config)) as made:
        yield made


@dataclass(frozen=True)
class Asked:
    began: float
    status: int
    replica: str


@asynccontextmanager
async def load(url: str, call_s: float = CALL_S, every_s: float = EVERY_S) -> AsyncIterator[list[asyncio.Task[Asked]]]:
    """A request every so often, until the end of the block."""
    asked: list[asyncio.Task[Asked]] = []
    async with httpx.AsyncClient(timeout=60.0) as client:

        async def ask() -> Asked:
            began = time.monotonic()
            headers = {"x-patchwork-trace": "1", "x-request-timeout-seconds": str(GIVEN_UP_S)}
            answer = await client.post(f"{url}/invoke", json={"input": str(call_s)}, headers=headers)
            # who is given up is told so by Serve's proxy, in plain text
            spans = answer.json()["metadata"]["trace"] if answer.status_code == 200 else []
            found = [s["attributes"]["patchwork.replica"] for s in spans if "patchwork.replica" in s["attributes"]]
            return Asked(began, answer.status_code, found[0] if found else "")

        async def go_on() -> None:
            while True:
                asked.append(asyncio.create_task(ask()))
                await asyncio.sleep(every_s)

        going = asyncio.create_task(go_on())
        try:
            yield asked
        finally:
            going.cancel()
            await asyncio.gather(*asked)


async def test_a_replica_that_hangs_gets_no_calls_after_a_second_and_serves_again_when_it_goes_on(
    home: Home, url: str
) -> None:
    hung: psutil.Process = home.replicas("llm")[0]
    async with load(url) as asked:
        await asyncio.sleep(2 * CALL_S)
        hung.suspend()
        stopped = time.monotonic()
        try:
            await asyncio.sleep(7.0)
        finally:
            hung.resume()
        resumed = time.monotonic()
        await asyncio.sleep(8.0)
    seen = [task.result() for task in asked]
    before = [one for one in seen if one.began < stopped - CALL_S - 0.5]
    assert {one.status for one in before} == {200}
    assert len({one.replica for one in before}) == 2
    during = [one for one in seen if stopped + 1.0 < one.began < resumed - 0.5]
    assert len(during) >= 12
    assert Counter(one.status for one in during) == {200: len(during)}
    assert len({one.replica for one in during}) == 1
    after = [one for one in seen if one.began > resumed + 3.0]
    assert {one.status for one in after} == {200}
    assert len({one.replica for one in after}) == 2


@contextmanager
def throttled(process: psutil.Process, runs_s: float = 0.05, stands_s: float = 0.45) -> Iterator[None]:
    """The process gets a tenth of its time, as on a machine that others keep busy."""
    done = threading.Event()

    def throttle() -> None:
        while not done.wait(runs_s):
            process.suspend()
            done.wait(stands_s)
            process.resume()

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        process.resume()


async def test_a_replica_that_becomes_slow_gets_few_calls(home: Home, url: str) -> None:
    async with load(url, call_s=0.2, every_s=0.1) as asked:
        await asyncio.sleep(4.0)
        slowed = time.monotonic()
        with throttled(home.replicas("llm")[0]):
            await asyncio.sleep(8.0)
            ended = time.monotonic()
    seen = [task.result() for task in asked]
    assert {one.status for one in seen} == {200}
    before = Counter(one.replica for one in seen if one.began < slowed - 0.5)
    assert min(before.values()) >= 0.3 * before.total(), before
    during = Counter(one.replica for one in seen if slowed + 1.0 < one.began < ended)
    assert during.total() >= 30
    assert max(during.values()) >= 2 * during.total() / 3, (before, during)
