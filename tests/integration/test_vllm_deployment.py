"""A chain deployed on Ray with its LLM in vLLM, on the CPU; its engine is killed while it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kit.deployed import Home, deployed, invoke
from kit.llm_engines import ON_A_CPU, hugging_face_folder, needs_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.models, pytest.mark.slow, needs_vllm]

CHAIN = """
from langchain_core.output_parsers import StrOutputParser
from langchain_openai import ChatOpenAI

chain = ChatOpenAI(model="small", temperature=0, max_tokens=16) | StrOutputParser()
"""
QUESTION = "Name the capital city of France."


@pytest.fixture(scope="module")
def target(home: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    (home.path / "ask.py").write_text(CHAIN, encoding="utf-8")
    folder = hugging_face_folder(tmp_path_factory)
    arguments = {**ON_A_CPU, "max_model_len": 512}
    told = ", ".join(f"{name}: {str(value).lower()}" for name, value in arguments.items())
    write(home, f"models: {{small: {{source: {folder}, engine: vllm, engine_args: {{{told}}}}}}}\n")
    return str(home.path / "ask.py")


def write(home: Home, models: str, components: str = "") -> Path:
    path = home.path / "patchwork.yaml"
    path.write_text(models + components, encoding="utf-8")
    return path


def test_without_a_gpu_the_deployment_ends_before_it_began(home: Home, target: str) -> None:
    result = home.run("deploy", target, "--port", "0", "--detach")
    assert result.returncode == 1
    assert "components.llm-small runs on vLLM, which takes 1 GPU" in result.stderr


@pytest.fixture(scope="module")
def url(home: Home, target: str) -> Iterator[str]:
    models = (home.path / "patchwork.yaml").read_text(encoding="utf-8")
    write(home, models, "components: {llm-small: {num_gpus: 0, slots: 4}}\nscheduler: {admission: off}\n")
    with deployed(home, target, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}) as made:
        yield made


def rows(url: str) -> dict[str, Any]:
    return {row["component"]: row for row in httpx.get(f"{url}/info").json()["status"]["replicas"]}


def test_it_answers_and_tells_how_long_its_start_took(home: Home, url: str) -> None:
    assert "Paris" in invoke(url, QUESTION)
    assert rows(url)["llm-small"]["start_s"] > 2.0
    assert "start" in home.run("status").stdout


def test_a_request_that_vllm_refuses_is_refused(url: str) -> None:
    answer = httpx.post(f"{url}/invoke", json={"input": "word " * 3000}, timeout=60.0)
    assert 400 <= answer.status_code < 500, answer.text
    assert "word word" not in answer.text


def test_a_replica_whose_engine_was_killed_is_replaced_and_leaves_nothing(home: Home, url: str) -> None:
    (replica,) = home.replicas("llm-small")
    cores = {p for p in replica.children(recursive=True) if "VLLM" in " ".join(p.cmdline())}
    assert cores
    next(p for p in cores if "EngineCore" in " ".join(p.cmdline())).kill()
    deadline = time.monotonic() + 240.0
    while time.monotonic() < deadline:
        answer = httpx.post(f"{url}/invoke", json={"input": QUESTION}, timeout=120.0)
        if answer.status_code == 200:
            break
        assert answer.status_code in (503, 504), answer.text
        time.sleep(1.0)
    assert "Paris" in answer.json()["output"]
    (successor,) = home.replicas("llm-small")
    assert successor.pid != replica.pid
    _, alive = psutil.wait_procs([replica, *cores], timeout=30.0)
    assert not alive
