"""A deployment under load: advised, then scaled from one replica to two with the reason in ``status``, and back; idle ones sleep and wake.

Two ingress replicas share the load while it is scaled: one of them decides.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.deployed import Home, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TARGET = Path(__file__).parent / "chains" / "own_parts.py"
#: One call takes 0.15 s, so that one replica carries 6.7 calls/s.
#: Replicas are kept for 15 s: while a command deploys beside it, a slow machine sends less than RATE for some seconds.
CONFIG = """
autoscale: {{mode: {mode}, cpus: 3, settle_s: 15s, idle_s: 8s, every_s: 1s}}
scheduler: {{admission: off}}
ingress_replicas: {ingress}
components:
  retriever: {{min_replicas: {least}}}
  llm: {{max_batch: 1, max_replicas: 2, emulate: {{rows: [{{batch: 1, seconds: 0.15}}]}}}}
"""
RATE = 9.0
_NUMBERS = itertools.count()  # equal calls are made once: every question is another


def app_of(home: Home) -> dict[str, Any]:
    (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
    found: dict[str, Any] = app
    return found


def row(app: dict[str, Any], component: str = "llm") -> dict[str, Any]:
    (found,) = [row for row in app["replicas"] if row["component"] == component]
    return dict(found)


def told(app: dict[str, Any], component: str = "llm") -> list[dict[str, str]]:
    """The decisions about it, without warnings: that two replicas are all that is allowed may be told as well."""
    return [decision for decision in app["decisions"] if f"{component}: " in decision["what"]]


def wait_until(home: Home, reached: Callable[[dict[str, Any]], bool], at_most_s: float) -> dict[str, Any]:
    end = time.monotonic() + at_most_s
    while not reached(app := app_of(home)) and time.monotonic() < end:
        time.sleep(1.0)
    assert reached(app), app
    return app


def load_until(url: str, home: Home, reached: Callable[[dict[str, Any]], bool], at_most_s: float) -> dict[str, Any]:
    """The status when ``reached``, under ``RATE`` requests per second; all of them must be answered."""
    return asyncio.run(_load_until(url, home, reached, at_most_s))


async def _load_until(
    url: str, home: Home, reached: Callable[[dict[str, Any]], bool], at_most_s: float
) -> dict[str, Any]:
    answers: list[asyncio.Task[httpx.Response]] = []
    end = time.monotonic() + at_most_s
    async with httpx.AsyncClient(timeout=60.0) as client:
        look = asyncio.create_task(asyncio.to_thread(app_of, home))
        while True:
            body = {"input": f"parrots speak {next(_NUMBERS)}"}
            answers.append(asyncio.create_task(client.post(f"{url}/invoke", json=body)))
            await asyncio.sleep(1 / RATE)
            if look.done():
                app = look.result()
                if reached(app) or time.monotonic() > end:
                    break
                look = asyncio.create_task(asyncio.to_thread(app_of, home))
        statuses = {answer.status_code for answer in await asyncio.gather(*answers)}
    assert statuses == {200}
    assert reached(app), app
    return app


def test_advice_then_a_second_replica_under_load_one_again_when_it_is_over_and_none_of_what_sleeps(
    home: Home, tmp_path: Path
) -> None:
    config = tmp_path / "patchwork.yaml"
    config.write_text(CONFIG.format(mode="advisory", ingress=1, least=1))
    with deployed(home, str(TARGET), "--name", "busy", "--config", str(config)) as url:
        advised = load_until(url, home, lambda app: bool(told(app)), at_most_s=60.0)
        assert told(advised)[0]["what"] == "advice: llm: 1 to 2 replicas"
        assert row(advised)["target"] == row(advised)["ready"] == 1

        config.write_text(CONFIG.format(mode="on", ingress=2, least=0))
        again = home.run("deploy", str(TARGET), "--name", "busy", "--config", str(config), "--detach")
        assert again.returncode == 0, again.stderr
        grown = load_until(url, home, lambda app: row(app)["ready"] == 2, at_most_s=90.0)
        assert row(grown)["target"] == 2
        (decision,) = told(grown)
        assert decision["what"] == "llm: 1 to 2 replicas"
        assert "requests/s" in decision["why"]
        assert set(decision) == {"time", "what", "why"}
        pids = {process.pid for process in home.replicas("llm")}
        with ThreadPoolExecutor(1) as aside:
            options = ("--name", "busy", "--config", str(config), "--detach")
            deploying = aside.submit(home.run, "deploy", str(TARGET), *options)
            kept = load_until(url, home, lambda app: deploying.done(), at_most_s=90.0)
        assert deploying.result().returncode == 0
        assert row(kept)["target"] == row(kept)["ready"] == 2  # the same again: what was decided is kept
        assert {process.pid for process in home.replicas("llm")} == pids
        metrics = httpx.get(f"{url}/metrics", timeout=30.0).text
        assert 'patchwork_autoscale_target_replicas{app="busy",component="llm"} 2.0' in metrics

        left = wait_until(home, lambda app: row(app)["ready"] == 1 and row(app, "retriever")["ready"] == 0, 120.0)
        assert row(left)["target"] == 1
        assert told(left)[-1]["what"] == "llm: 2 to 1 replica"
        assert "would be used at" in told(left)[-1]["why"]

        asleep = told(left, "retriever")[-1]
        assert asleep["what"] == "retriever: 1 to 0 replicas"
        assert asleep["why"] == "no call in the last 8 s"
        answer = httpx.post(f"{url}/invoke", json={"input": "parrots speak again"}, timeout=90.0)
        assert answer.status_code == 200  # it waited for the retriever to start
        awake = wait_until(home, lambda app: row(app, "retriever")["ready"] == 1, 10.0)
        assert told(awake, "retriever")[-1]["why"] == "called while it had no replica"
