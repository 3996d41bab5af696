"""A chain of unknown classes, deployed: every leaf runs as the user's own object in a replica, and answers the same."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.deployed import Home, deployed, invoke
from patchwork_adapters import RemoteRunnable
from patchwork_serving.ray_cluster import UNHURRIED

pytestmark = [pytest.mark.ray]

TARGET = Path(__file__).parent / "chains" / "own_parts.py"
LATE = TARGET.with_name("late_parts.py")  #: constructs its leaves on each call
QUESTIONS = ["parrots speak", "what about snakes", "nothing at all", "norwegian or not"]


@pytest.fixture(scope="module")
def url(home: Home) -> Iterator[str]:
    with deployed(home, str(TARGET), "--name", "own") as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Any:
    sys.path.insert(0, str(TARGET.parent))
    try:
        import own_parts  # type: ignore[import-not-found]

        return own_parts.chain
    finally:
        sys.path.remove(str(TARGET.parent))


def test_answers_are_those_of_the_plain_chain_in_every_mode(url: str, plain: Any) -> None:
    remote = RemoteRunnable(url)
    assert [remote.invoke(q) for q in QUESTIONS] == [plain.invoke(q) for q in QUESTIONS]
    assert remote.batch(QUESTIONS) == plain.batch(QUESTIONS)
    assert list(remote.stream(QUESTIONS[0])) == list(plain.stream(QUESTIONS[0]))


def test_every_leaf_ran_in_a_replica(home: Home, url: str) -> None:
    response = httpx.post(f"{url}/invoke", json={"input": QUESTIONS[0]}, headers={"x-patchwork-trace": "1"}, timeout=60)
    spans = response.json()["metadata"]["trace"]
    replicas = {span["attributes"].get("patchwork.replica", "").split("#")[0] for span in spans} - {""}
    assert replicas == {"retriever", "llm"}
    (app,) = json.loads(home.run("status", "--json").stdout)["apps"]
    assert {row["component"] for row in app["replicas"]} == replicas


def test_a_call_and_its_reply_may_be_longer_than_what_serve_takes_by_itself(url: str, plain: Any) -> None:
    question = "a" * (
        4 * 1024 * 1024 - 200
    )  # as much as the gateway takes; with what goes along, a call is longer than 4 MB
    assert invoke(url, question) == plain.invoke(question)


def test_an_error_of_the_users_own_is_told_by_its_class_and_never_by_its_traceback(url: str) -> None:
    response = httpx.post(f"{url}/invoke", json={"input": "please raise"}, timeout=60)
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "KeyError"
    assert "Traceback" not in response.text
    assert "please raise" not in response.text


def test_two_applications_have_paths_of_their_own_and_one_has_the_root(home: Home, url: str) -> None:
    root = url.rsplit("/own", 1)[0]
    with deployed(home, str(LATE), "--name", "second") as second:
        assert invoke(second, QUESTIONS[0]) == invoke(f"{root}/own", QUESTIONS[0])
        traced = {"x-patchwork-trace": "1"}
        response = httpx.post(f"{second}/invoke", json={"input": QUESTIONS[0]}, headers=traced, timeout=60)
        spans = response.json()["metadata"]["trace"]
        ran = {span["attributes"].get("patchwork.replica", "").split("#")[0] for span in spans} - {""}
        assert ran == {"retriever-context-wordretriever", "llm-answer-echo"}
        assert httpx.get(f"{root}/second/info").json()["name"] == "second"
        before = {p.pid for p in home.replicas("")}
        wait_for(f"{root}/livez", 404)
        assert {p.pid for p in home.replicas("")} == before
    wait_for(f"{root}/livez", 200)
    assert invoke(root, QUESTIONS[0]) == invoke(f"{root}/own", QUESTIONS[0])


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
def test_no_replica_interrupts_what_computes(home: Home, url: str) -> None:
    """And what runs on our Ray, Serve's controller among it, was given its interval."""
    assert httpx.get(f"{url}/info").status_code == 200
    assert {os.sched_getscheduler(one.pid) for one in home.replicas("")} == {os.SCHED_BATCH}
    told = {one.environ().get("RAY_SERVE_CONTROL_LOOP_INTERVAL_S") for one in home.replicas("")}
    assert told == {UNHURRIED["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"]}


def wait_for(url: str, status: int, timeout_s: float = 20.0) -> None:
    """Serve's proxy learns of a changed route within moments."""
    deadline = time.monotonic() + timeout_s
    while httpx.get(url).status_code != status:
        assert time.monotonic() < deadline, f"{url} never answered {status}"
        time.sleep(0.2)


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    import signal
    import subprocess

    import psutil

    home = Home(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "patchwork_serving.cli", "deploy", str(TARGET), "--port", "0"],
        env={**os.environ, "PATCHWORK_HOME": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "is ready at" in line:
            break
    tree = home.ray_processes()
    assert tree
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (0, 130, 1)
    _, left = psutil.wait_procs(tree, timeout=20)
    assert left == []
    assert not (tmp_path / "ray.json").exists()
